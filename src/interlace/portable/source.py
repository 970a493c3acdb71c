"""The source of a function: cut out of its file, and compiled again without running any of it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import Any

from interlace.errors import TravelError
from interlace.lines import source_lines
from interlace.parse import compile_tree, parse

LAMBDA = "_"
_PLACE = 0x10 | 0x8000000
"""CO_NESTED, and CO_METHOD of Python 3.14: whether a function stands in another one, or in a class."""
FUTURE = 0x1FE0000  # every flag of `from __future__`

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_DEFS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Text:
    """A file of sources: statements at the top level, one for each function or block.

    Attributes:
        text: The whole file.
        filename: What tracebacks call it.
    """

    def __init__(self, text: str, filename: str) -> None:
        self.text = text
        self.filename = filename
        self.statements = {first_line(node): node for node in parse(text, filename).body}

    def get_source(self, _name: str = "") -> str:
        """What `linecache` asks a loader for, so that tracebacks and debuggers show the lines."""
        return self.text

    def function(self, line: int) -> Function:
        """The function whose statement begins on a line.

        Raises:
            KeyError: There is none.
        """
        found = function_of(self.statements[line])
        if found is None:
            raise KeyError(line)
        return found

    def block(self, line: int) -> ast.With:
        """The `with` statement that begins on a line.

        Raises:
            KeyError: There is none.
        """
        found = self.statements[line]
        if not isinstance(found, ast.With):
            raise KeyError(line)
        return found

    def piece(self, line: int) -> str:
        """The text of the statement that begins on a line."""
        return "".join(lines_of(self.text)[line - 1 : self.statements[line].end_lineno])


def lines_of(text: str) -> list[str]:
    """The lines of a source as Python counts them: `str.splitlines` knows more ends of a line."""
    return [f"{line}\n" for line in text.split("\n")]


def function_of(statement: ast.stmt) -> Function | None:
    """The function that a statement of a `Text` defines."""
    if isinstance(statement, _DEFS):
        return statement
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Lambda):
        return statement.value
    return None


def first_line(node: ast.AST) -> int:
    """Where a statement begins, its decorators included."""
    parts: list[Any] = [node, *getattr(node, "decorator_list", ())]
    return min(int(part.lineno) for part in parts)


def source_of(function: FunctionType) -> str:
    """A statement that defines the function, as it is written in its file, moved to the left margin.

    Raises:
        TravelError: The source cannot be had, or is not what the function was made from.
    """
    code = function.__code__
    what = f"`{function.__qualname__}` cannot travel: "
    lines = source_lines(code, function.__globals__)
    if not lines:
        raise TravelError(
            f"{what}its source cannot be had ({code.co_filename}).\n"
            "Write it in a file or a notebook; what is typed at a prompt or made by `exec` leaves no source."
        )
    try:
        tree = parse("".join(lines))
    except (SyntaxError, ValueError, RecursionError):
        tree = ast.Module([], [])
    imports = _imports(tree)
    for node in _functions(tree, code):
        text = cut(lines, node)
        try:
            found = function_of(parse(text).body[0])
            assert found is not None
            made = compile_function(found, code.co_freevars, owner(function), code.co_flags, imports=imports)
        except (SyntaxError, ValueError):
            continue
        if same_code(made, code):
            return text
    raise TravelError(
        f"{what}{code.co_filename}:{code.co_firstlineno} does not hold the code that it was made from.\n"
        "The file has changed since it was loaded, or a tool rewrote the code while loading. Load it again."
    )


def _functions(tree: ast.Module, code: CodeType) -> list[Function]:
    """The functions of a file that have the code's name, nearest to its line first."""
    kinds = (ast.Lambda,) if code.co_name == "<lambda>" else (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, kinds) and getattr(node, "name", "<lambda>") == code.co_name
    ]
    return sorted(found, key=lambda node: abs(first_line(node) - code.co_firstlineno))


def cut(lines: list[str], node: Function) -> str:
    """The lines of a function, as a statement of its own."""
    if not isinstance(node, ast.Lambda):
        return dedent(lines[first_line(node) - 1 : node.end_lineno], node)
    segment = ast.get_source_segment("".join(lines), node)
    return f"{LAMBDA} = ({segment})\n"


def dedent(lines: list[str], node: ast.AST) -> str:
    """Move a statement to the left margin, but not the inside of texts that span lines."""
    margin = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    start = first_line(node)
    inside = {
        line - start
        for part in ast.walk(node)
        if isinstance(part, (ast.Constant, ast.JoinedStr)) and part.end_lineno
        for line in range(part.lineno + 1, part.end_lineno + 1)
    }
    moved = [
        line if at in inside else line[len(margin) :] if line.startswith(margin) else line.lstrip(" \t")
        for at, line in enumerate(lines)
    ]
    return "".join(moved).rstrip() + "\n"


def owner(function: FunctionType) -> str | None:
    """The class in which a function is written, which private names and `super()` need."""
    parts = str(getattr(function.__code__, "co_qualname", function.__qualname__)).split(".")
    while len(parts) > 2 and parts[-2] == "<locals>":
        parts = parts[:-2]
    return parts[-2] if len(parts) > 1 and parts[-2] != "<locals>" else None


def compile_function(
    node: Function,
    free: Iterable[str],
    owner: str | None,
    flags: int = 0,
    filename: str = "<source>",
    imports: ast.Import | None = None,
) -> CodeType:
    """The code of a function in which some names are free. Nothing runs, decorators and defaults included.

    Args:
        node: The function.
        free: Names that it has from functions around it.
        owner: The class in which it is written.
        flags: Those of `from __future__` that it has, with any others.
        filename: What tracebacks call its file.
        imports: The imports of its module, for which Python compiles method calls in another way.
    """
    inner: ast.stmt = node if not isinstance(node, ast.Lambda) else ast.Expr(node)
    if owner is not None:
        inner = ast.ClassDef(name=owner, bases=[], keywords=[], body=[inner], decorator_list=[])
    free = set(free)
    args = [ast.arg(name) for name in sorted(free) if name != "__class__" or owner is None]
    named = {str(part.name) for part in (inner, node) if isinstance(part, (ast.ClassDef, *_DEFS))}
    bound = sorted(named - free)
    body: list[ast.stmt] = (
        [ast.Global(bound), inner] if bound else [inner]
    )  # else what it calls itself is free
    outer = ast.FunctionDef(
        name="_il_around_",
        args=ast.arguments([], args, None, [], [], None, []),
        body=body,
        decorator_list=[],
    )
    around = [outer] if imports is None else [imports, outer]
    tree = ast.fix_missing_locations(ast.Module([*around], []))
    made = compile_tree(tree, filename, flags & FUTURE)
    name = getattr(node, "name", "<lambda>")
    return next(code for code in _inside(made) if code.co_name == name)


def _imports(tree: ast.Module) -> ast.Import | None:
    """An import of every name that a module imports at its top."""
    names: set[str] = set()
    here: list[ast.AST] = [*tree.body]
    while here:
        node = here.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.expr)):
            here += ast.iter_child_nodes(node)
    names.discard("*")
    return ast.Import([ast.alias(name) for name in sorted(names)]) if names else None


def _inside(code: CodeType) -> Iterator[CodeType]:
    """The code objects in another one, outer ones first."""
    here = [code]
    while here:
        here = [part for code in here for part in code.co_consts if isinstance(part, CodeType)]
        yield from here


_COMPARED = (
    "co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_name",
    "co_argcount", "co_posonlyargcount", "co_kwonlyargcount",
)  # fmt: skip


def same_code(one: CodeType, other: CodeType) -> bool:
    """Whether two code objects do the same, wherever they stand."""
    if any(getattr(one, name) != getattr(other, name) for name in _COMPARED):
        return False
    if (one.co_flags ^ other.co_flags) & ~_PLACE or len(one.co_consts) != len(other.co_consts):
        return False
    return all(map(_same, _constants(one), _constants(other)))


def _constants(code: CodeType) -> list[object]:
    """The constants of code, but for where functions inside of it stand, which up to Python 3.10 is among them."""
    inside = {part.co_name for part in code.co_consts if isinstance(part, CodeType)}
    return [
        None if isinstance(part, str) and ".<locals>." in part and part.rpartition(".")[2] in inside else part
        for part in code.co_consts
    ]


def _same(one: object, other: object) -> bool:
    if isinstance(one, CodeType) and isinstance(other, CodeType):
        return same_code(one, other)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, frozenset) and isinstance(other, frozenset):
        return one == other and {type(part) for part in one} == {type(part) for part in other}
    return type(one) is type(other) and repr(one) == repr(other)


def global_names(code: CodeType) -> set[str]:
    """The names that code takes from its module, the functions inside it included."""
    from dis import get_instructions

    loads = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "DELETE_GLOBAL")
    found = {step.argval for step in get_instructions(code) if step.opname in loads}
    for part in code.co_consts:
        if isinstance(part, CodeType):
            found |= global_names(part)
    return found

"""The text of a function: found, parsed, and proven to be what runs.

A code object remembers a file and a line, and the file may have changed since. So the text is compiled
again, as it stands, and must give the same instructions; only then may a rewritten copy take its place.
Knows nothing about operations.
"""

import __future__

import ast
import dis
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from types import CodeType

from interlace.errors import SourceError
from interlace.lines import source_lines

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda

FUTURES = sum({getattr(__future__, name).compiler_flag for name in __future__.all_feature_names})
FACTORY = "_interlace_factory"
MARKS_OF_PYTEST = ("@py_assert", "@py_format")  # it rewrites `assert` when it imports a test module

NAMED = frozenset({*dis.hasname, *dis.haslocal, *dis.hasfree})
SILENT = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "PUSH_NULL"})
ALIKE = {"LOAD_METHOD": "LOAD_ATTR", "CALL_METHOD": "CALL_FUNCTION"}


@dataclass(frozen=True, slots=True)
class Text:
    """One function's text: its lines as they stand in `file`, the first at `line`, and the parsed tree."""

    file: str
    line: int
    lines: tuple[str, ...]
    definition: Definition
    owner: str | None
    """The class whose name mangles `__private` names here."""
    free: tuple[str, ...]
    name: str
    futures: int

    def segment(self, node: ast.expr | ast.stmt) -> str:
        """The text of one expression, its lines joined and the spaces between them shortened."""
        if node.end_lineno is None or node.end_col_offset is None:
            return ast.unparse(node)
        lines = [
            line.encode() for line in self.lines[node.lineno - self.line : node.end_lineno - self.line + 1]
        ]
        if not lines:
            return ast.unparse(node)
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        return " ".join(line.decode(errors="replace").strip() for line in lines)


def read(code: CodeType, qualname: str) -> Text:
    """The text that `code` was compiled from.

    Raises:
        SourceError: There is no text, or it is not (or no longer) what runs.
    """
    try:
        lines, line = _lines(code)
        definition = _definition(code, lines, line)
    except (OSError, SyntaxError, IndexError, StopIteration):
        raise SourceError(
            f"`{qualname}` has no readable Python source ({code.co_filename}, line {code.co_firstlineno}), "
            "so its operations cannot be named. Code from `exec` or a bare interpreter has none."
        ) from None
    text = Text(
        file=code.co_filename,
        line=line,
        lines=tuple(part.rstrip("\n") for part in lines),
        definition=definition,
        owner=_owner(getattr(code, "co_qualname", qualname)),
        free=code.co_freevars,
        name=code.co_name,
        futures=code.co_flags & FUTURES,
    )
    marked = any(name.startswith(MARKS_OF_PYTEST) for name in code.co_varnames)
    if not marked and not _same(compiled(text, definition, ()), code):
        raise SourceError(
            f"the source of `{qualname}` at {code.co_filename}:{code.co_firstlineno} is not what runs: "
            "the file was edited after it was imported, or another library replaced the code. "
            "Import it again (restart Python) to name its operations."
        )
    return text


def _lines(code: CodeType) -> tuple[list[str], int]:
    try:
        return inspect.getsourcelines(code)
    except OSError:
        return inspect.getblock(source_lines(code)[code.co_firstlineno - 1 :]), code.co_firstlineno


def compiled(text: Text, definition: Definition, extra: tuple[str, ...]) -> CodeType:
    """`definition` as a code object with the scopes of the original; `extra` names are free variables too.

    It is compiled inside a function whose parameters are the free variables, and inside a class of the
    owner's name, since the compiler decides by the surroundings what is free, global, mangled, or `super()`.
    """
    inner = _bare(definition)
    name = inner.name if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) else None
    body: ast.stmt = inner if isinstance(inner, ast.stmt) else ast.Expr(inner)
    names = {text.owner if text.owner is not None else name} - {None}
    if text.owner is not None:
        body = ast.ClassDef(name=text.owner, bases=[], keywords=[], body=[body], decorator_list=[])
    free = [*(part for part in text.free if part != "__class__"), *extra]
    # What the factory binds would be its local, and free below, where the original finds a global.
    shadowed = sorted(part for part in names if part is not None and part not in free)
    outer = ast.FunctionDef(
        name=FACTORY,
        args=ast.arguments(
            posonlyargs=[], args=[ast.arg(part) for part in free], kwonlyargs=[], kw_defaults=[], defaults=[]
        ),
        body=[*([ast.Global(shadowed)] if shadowed else []), body],
        decorator_list=[],
    )
    module = ast.fix_missing_locations(ast.Module([outer], type_ignores=[]))
    for node in ast.walk(module):
        if "type_params" in node._fields and not hasattr(node, "type_params"):
            setattr(node, "type_params", [])  # noqa: B010  # exists from Python 3.12
    scope: CodeType = compile(module, text.file, "exec", flags=text.futures, dont_inherit=True)
    for part in (FACTORY, *([text.owner] if text.owner is not None else []), text.name):
        scope = next(
            const for const in scope.co_consts if isinstance(const, CodeType) and const.co_name == part
        )
    return scope


def _bare(definition: Definition) -> Definition:
    """Without decorators, defaults and annotations, which ran once when the function was made."""
    args = definition.args
    plain = ast.arguments(
        posonlyargs=[_unannotated(arg) for arg in args.posonlyargs],
        args=[_unannotated(arg) for arg in args.args],
        vararg=args.vararg and _unannotated(args.vararg),
        kwonlyargs=[_unannotated(arg) for arg in args.kwonlyargs],
        kw_defaults=[None for _ in args.kw_defaults],
        kwarg=args.kwarg and _unannotated(args.kwarg),
        defaults=[],
    )
    if isinstance(definition, ast.Lambda):
        return ast.copy_location(ast.Lambda(args=plain, body=definition.body), definition)
    made = type(definition)(name=definition.name, args=plain, body=definition.body, decorator_list=[])
    return ast.copy_location(made, definition)


def _unannotated(arg: ast.arg) -> ast.arg:
    return ast.copy_location(ast.arg(arg.arg), arg)


def _definition(code: CodeType, lines: list[str], line: int) -> Definition:
    if code.co_name == "<lambda>":
        return _lambda(code)
    # An indented text is parsed under an `if`, not dedented: that would change its multi-line strings.
    if lines[0][:1].isspace():
        tree, shift = ast.parse("if 1:\n" + "".join(lines)), line - 2
        found = tree.body[0].body[0]  # type: ignore[attr-defined]  # the `if` just written
    else:
        tree, shift = ast.parse("".join(lines)), line - 1
        found = tree.body[0]
    if not isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
        raise StopIteration
    ast.increment_lineno(tree, shift)
    return found


def _lambda(code: CodeType) -> ast.Lambda:
    """A lambda is no statement: look for it in the whole file, by its columns where several share a line."""
    tree = ast.parse("".join(source_lines(code)))
    found = [
        node for node in ast.walk(tree) if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno
    ]
    if len(found) > 1 and hasattr(code, "co_positions"):
        spots = [spot for spot in code.co_positions() if None not in spot and spot[2] != spot[3]]
        found = [
            node
            for node in found
            if any(
                (node.body.lineno, node.body.col_offset) == (spot[0], spot[2])
                and (node.body.end_lineno, node.body.end_col_offset) == (spot[1], spot[3])
                for spot in spots
            )
        ]
    elif len(found) > 1:
        raise SourceError(
            f"{len(found)} lambdas begin at {code.co_filename}:{code.co_firstlineno}, and Python 3.10 does not tell "
            "which of them this is. Give each a line of its own."
        )
    if len(found) != 1:
        raise StopIteration
    return found[0]


def _owner(qualname: str) -> str | None:
    """The innermost class around a function: it mangles names, through functions between them too."""
    parts = qualname.split(".")
    classes = [part for part, after in pairwise(parts) if part != "<locals>" and after != "<locals>"]
    return classes[-1] if classes else None


def _same(one: CodeType, other: CodeType) -> bool:
    """Whether two code objects run the same instructions on the same names and constants."""
    pairs = zip_longest(_instructions(one), _instructions(other))
    return all(
        a == b or (isinstance(a, CodeType) and isinstance(b, CodeType) and _same(a, b)) for a, b in pairs
    )


def _instructions(code: CodeType) -> Iterator[object]:
    """What `code` does, one object an instruction, a nested code object after the one that loads it.

    Without jump targets, and without the choice between calling a method and calling an attribute: it depends
    on the imports of the module, which are not part of a function's text.
    """
    for instruction in dis.get_instructions(code):
        name, opcode = instruction.opname, instruction.opcode
        if name in SILENT:
            continue
        if opcode in dis.hasconst and isinstance(instruction.argval, CodeType):
            yield instruction.argval
        elif opcode in dis.hasconst:
            value = instruction.argval
            yield (
                name,
                value if isinstance(value, frozenset) else repr(value),
            )  # equal sets may print differently
        elif opcode in NAMED:
            yield ALIKE.get(name, name), instruction.argval
        elif opcode in dis.hasjrel or opcode in dis.hasjabs:
            yield name
        else:
            yield ALIKE.get(name, name), instruction.arg

"""A `with` block as a function that runs later."""

from __future__ import annotations

import ast
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any

from interlace import frames
from interlace.capture import around, skip
from interlace.capture.bindings import Bindings, loads
from interlace.capture.check import check
from interlace.capture.find import FUNCTION_FORM, Block, find
from interlace.capture.rewrite import SCOPE, Rewrite
from interlace.capture.scope import NOTHING, Scope
from interlace.capture.settle import settle
from interlace.capture.uses import uses
from interlace.errors import CaptureError
from interlace.parse import compile_tree

_OPTIMIZED = 0x1  # CO_OPTIMIZED
_FUTURE = 0x1FE0000  # every flag of `from __future__`
_TEXTS = annotations.compiler_flag  # annotations are not evaluated
_NAME = "_il_body_"


@dataclass(frozen=True, slots=True)
class Template:
    """What is known of a block from its source alone; made once for each place in a code object.

    Attributes:
        code: Of a function of the frame's first argument and the block's `Scope`.
        reads: Names it may take from the frame around.
        binds: Names it may leave in that frame.
        mentions: Both.
        deletes: Names that it unbinds.
        bound_as: The name after `as`.
        entry: Where the block is entered, which is where it is skipped.
        line: Of its `with`.
        source: The lines of the whole `with` statement, as written.
        owner: The class whose body it is written in.
        item: Which item of the `with` enters it.
        uses: The last line on which it uses each name.
        plain: Whether it needs nothing of the frame but names, which are a function's and no kept block's.
        called: What errors call it.
    """

    code: CodeType
    reads: frozenset[str]
    binds: frozenset[str]
    deletes: frozenset[str]
    bound_as: str | None
    entry: range
    line: int
    source: str
    owner: str | None
    item: int
    uses: Mapping[str, float]
    plain: bool
    mentions: frozenset[str] = field(init=False, repr=False)
    called: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mentions", self.reads | self.binds)
        object.__setattr__(self, "called", f"the block at line {self.line}")

    def line_of(self, name: str) -> int:
        """The last line of the block that binds a name; that of its `with` when none can be told."""
        indented = self.source[:1].isspace()
        tree = ast.parse(("if 1:\n" if indented else "") + self.source)
        found = [
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store)
        ]
        return max(found) + self.line - 1 - indented if found else self.line


# By the code object's identity: its own hash and equality compare contents, and forget the file; and by the place in it.
_templates: dict[int, dict[int, Template]] = {}


class Body:
    """One captured block, standing in one frame.

    `skip` is called from `__enter__`, `left` from `__exit__`; `scope` and `run` follow whenever it is time.
    """

    __slots__ = ("_skip", "frame", "template")

    def __init__(self, template: Template, frame: FrameType) -> None:
        self.template = template
        self.frame: FrameType | None = frame
        self._skip: skip.Skip | None = None

    def skip(self) -> None:
        """Make the frame leave the block as soon as it enters it."""
        assert self.frame is not None
        self._skip = skip.skip_at(self.frame, self.template.entry)

    def left(self, error: BaseException | None, entered: object) -> bool:
        """Whether the block was left by `skip`; then `entered` is bound to the name after `as`."""
        pending, self._skip = self._skip, None
        if pending is None or self.frame is None:
            return False
        pending.restore()
        if error is not pending.error:
            return False
        if self.template.bound_as is not None:
            around.write(self.frame, {self.template.bound_as: entered})
        return True

    def before(self) -> dict[str, object]:
        """What the frame holds now of the names that the block mentions."""
        assert self.frame is not None
        return self._before(self.frame, around.outer(self.frame))

    def _before(self, frame: FrameType, outer: Scope | None) -> dict[str, object]:
        template = self.template
        found: dict[str, object] = {}
        here = skip.held(frame) if outer is None else around.held(frame)
        for name in template.mentions:
            if name in here:
                found[name] = here[name]
            elif outer is not None and (value := outer._il_from_outside(name)) is not NOTHING:
                found[name] = value  # now, while the block around can wait for its siblings
        return found

    def scope(self, *, rebinds: bool = False) -> Scope:
        """The names for a run of the block; with `rebinds`, the name after `as` is the block's to bind."""
        frame, template = self.frame, self.template
        assert frame is not None
        binds, outer = template.binds, around.outer(frame)
        if rebinds and template.bound_as is not None:
            binds |= {template.bound_as}
        return Scope(self._before(frame, outer), binds, frame.f_globals, outer, template.uses)

    def bind(self) -> Bound:
        """The block as a function of a `Scope`, free of the frame.

        What the block binds is settled when it ends, also when it fails.
        """
        assert self.frame is not None
        code, frame = self.template.code, self.frame
        if not code.co_freevars:
            return Bound(FunctionType(code, frame.f_globals), None)
        here = skip.held(frame)
        closure = tuple(CellType(here[name]) for name in code.co_freevars)
        first = here.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None
        return Bound(FunctionType(code, frame.f_globals, None, None, closure), first)

    def run(self, scope: Scope) -> None:
        """Run the block in its scope, now."""
        self.bind()(scope)


class Bound:
    """A captured block with its globals.

    Attributes:
        function: The block's code as a function of `first` and a scope.
        first: The first argument of the frame, which `super()` takes for the instance, where the block needs one.
    """

    __slots__ = ("__globals__", "first", "function")

    def __init__(self, function: FunctionType, first: object) -> None:
        self.function = function
        self.first = first
        self.__globals__ = function.__globals__

    def __call__(self, scope: Scope) -> None:
        """Run the block."""
        scope._il_start()
        try:
            self.function(self.first, scope)
        except BaseException as error:
            _forget_skip(error)
            raise
        finally:
            scope._il_settled = None  # all names are what they will be: the block has ended, well or not


def _forget_skip(error: BaseException) -> None:
    """How the block was left is nobody's business: a block run from `__exit__` has it as its error's context."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link.__context__, skip.Skipped):
            link.__context__ = None
        link = link.__context__


def capture(frame: FrameType, remedy: str = FUNCTION_FORM) -> Body:
    """The block that a frame is about to enter, as something that can run later.

    Args:
        frame: The frame that executes the `with` statement; its `__enter__` is running.
        remedy: What the errors say to write instead.

    Raises:
        CaptureError: the block has no source, or holds a statement that works only where it stands.
    """
    code, offset = frame.f_code, frame.f_lasti
    known = _templates.get(id(code))
    if known is None:
        known = _templates[id(code)] = {}
        weakref.finalize(code, _templates.pop, id(code), None).atexit = False
    template = known.get(offset)
    if template is None:
        template = known[offset] = _template(frame, remedy)
    if template.deletes:
        _refuse_deletes(template, frame)
    return Body(template, frame)


def _refuse_deletes(template: Template, frame: FrameType) -> None:
    bound = sorted(template.deletes & around.held(frame).keys())
    if bound:
        raise CaptureError(
            f"{frame.f_code.co_filename}:{template.line}: this block runs later, as a function: `del {bound[0]}`\n"
            "would unbind a name of the code around it. Nothing has run. Move the `del` out of the block."
        )


def _template(frame: FrameType, remedy: str) -> Template:
    code = frame.f_code
    block = find(frame, remedy)
    check(block.body, code.co_filename)
    owner = _class_of(code, block)
    own = frozenset((*code.co_varnames, *code.co_cellvars, *code.co_freevars))
    # In a kept block any name may be one of that block's.
    is_function = bool(code.co_flags & _OPTIMIZED) and around.outer(frame) is None
    found = Bindings(block.body)
    mangle = _mangler(owner)
    binds = {mangle(name) for name in found.bound | found.late}
    _refuse_changed(code, {mangle(name) for name in found.bound}, block)

    def is_shared(name: str) -> bool:
        name = mangle(name)
        return not is_function or name in own or name in binds

    reads = {mangle(name) for name in loads(block.body) if is_shared(name)}
    rewrite = Rewrite(is_shared, mangle, texts=bool(code.co_flags & _TEXTS))
    used = uses(block.body, mangle)
    compiled = _compile(block, rewrite, owner, code)
    entry = skip.entry(code, frames.at(frame))
    names = frozenset(reads), frozenset(binds)
    plain = is_function and not (found.deleted or block.bound_as or compiled.co_freevars)
    return _described(block, compiled, found.deleted, names, owner, entry, used, plain)


def again(block: Block, reads: Iterable[str], owner: str | None, like: CodeType) -> Template:
    """The template of a block that was captured elsewhere, from its source alone.

    Args:
        block: The block; its statements are used up.
        reads: The names that it takes from the frame around; others are its module's.
        owner: The class whose body it was written in.
        like: Any code with the file name, the name and the flags that the block's is to have.
    """
    check(block.body, like.co_filename)
    mangle = _mangler(owner)
    found = Bindings(block.body)
    binds = frozenset(mangle(name) for name in found.bound | found.late)
    known = frozenset(reads)
    shared = known | binds
    rewrite = Rewrite(lambda name: mangle(name) in shared, mangle, texts=bool(like.co_flags & _TEXTS))
    compiled = _compile(block, rewrite, owner, like)
    return _described(block, compiled, found.deleted, (known, binds), owner, range(0), {}, False)


def _mangler(owner: str | None) -> Callable[[str], str]:
    def mangle(name: str) -> str:
        if owner and name.startswith("__") and not name.endswith("__"):
            return f"_{owner.lstrip('_')}{name}"
        return name

    return mangle


def _described(
    block: Block,
    code: CodeType,
    deleted: set[str],
    names: tuple[frozenset[str], frozenset[str]],
    owner: str | None,
    entry: range,
    used: Mapping[str, float],
    plain: bool,
) -> Template:
    mangle = _mangler(owner)
    deletes = frozenset(map(mangle, deleted))
    bound_as = mangle(block.bound_as) if block.bound_as else None
    return Template(
        code,
        *names,
        deletes,
        bound_as,
        entry,
        block.statement.lineno,
        block.text,
        owner,
        block.item,
        used,
        plain,
    )


def _refuse_changed(code: CodeType, bound: set[str], block: Block) -> None:
    strange = sorted(bound.difference(code.co_names, code.co_varnames, code.co_cellvars, code.co_freevars))
    if strange and not bound <= set(_all_names(code)):
        raise CaptureError(
            f"The block at {code.co_filename}:{block.statement.lineno} assigns {strange[0]!r}, which the running code\n"
            "does not: the file has changed since it was loaded. Load it again."
        )


def _compile(block: Block, rewrite: Rewrite, owner: str | None, code: CodeType) -> CodeType:
    body = rewrite.block(settle(block.body, rewrite.mangle))
    args = [ast.arg("_il_self_"), ast.arg(SCOPE)]
    function = ast.FunctionDef(
        name=_NAME, args=ast.arguments([], args, None, [], [], None, []), body=body, decorator_list=[]
    )
    inner: ast.stmt = function
    if owner:  # gives `super()` its cell and private names their class
        inner = ast.ClassDef(name=owner, bases=[], keywords=[], body=[function], decorator_list=[])
    tree = ast.Module([inner], [])
    for node in (inner, function):
        node.lineno = node.end_lineno = block.statement.lineno
        node.col_offset = node.end_col_offset = 0
    ast.fix_missing_locations(tree)
    made = compile_tree(tree, code.co_filename, code.co_flags & _FUTURE)
    while made.co_name != _NAME:
        made = next(part for part in made.co_consts if isinstance(part, CodeType))
    names: dict[str, Any] = {"co_name": code.co_name}
    if hasattr(code, "co_qualname"):
        names["co_qualname"] = code.co_qualname
    replaced: CodeType = made.replace(**names)
    return replaced


def _class_of(code: CodeType, block: Block) -> str | None:
    """The class whose body the block is written in, however deep."""
    if not hasattr(code, "co_qualname"):  # Python 3.10
        return _class_by_names(code, block)
    parts = code.co_qualname.split(".")
    if "__module__" in code.co_names and not code.co_flags & _OPTIMIZED and code.co_name != "<module>":
        return str(parts[-1])  # the body of a class itself
    while len(parts) > 2 and parts[-2] == "<locals>":
        parts = parts[:-2]
    return str(parts[-2]) if len(parts) > 1 else None


def _class_by_names(code: CodeType, block: Block) -> str | None:
    private = {
        name
        for node in block.body
        for part in ast.walk(node)
        for name in (getattr(part, "attr", None), getattr(part, "id", None))
        if isinstance(name, str) and name.startswith("__") and not name.endswith("__")
    }
    known = list(_all_names(code))
    for name in sorted(private, key=len, reverse=True):
        for candidate in known:
            if candidate.endswith(name) and candidate.startswith("_") and not candidate.startswith("__"):
                return candidate[1 : -len(name)]
    return "_il_class_" if "__class__" in (*code.co_freevars, *code.co_cellvars) else None


def _all_names(code: CodeType) -> list[str]:
    names = [*code.co_names, *code.co_varnames, *code.co_cellvars, *code.co_freevars]
    for part in code.co_consts:
        if isinstance(part, CodeType):
            names += _all_names(part)
    return names

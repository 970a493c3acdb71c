"""A copy of a function in which every operation reports.

`f(x)` becomes `call(3, f, x)`, `a @ b` becomes `operator(4, a, b)`, and `y = e` becomes `y = value(5,
e)`; nothing else changes: what is evaluated, in which order, and the line and file that a traceback
shows. The three names are free variables of the copy, filled in for each run, so that one compilation
serves every module and every run. Knows nothing about modules, runs or visits.
"""

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Protocol

from interlace.source.names import Operation, named
from interlace.source.syntax import CALL, LOCALS, NAMES, OPERATOR, PREFIX, SLICE, VALUE, Instrumenter
from interlace.source.text import Text, compiled, read


class Reporter(Protocol):
    """What a rewritten function calls instead of doing it itself. `at` is the position of the operation."""

    def call(self, at: int, function: Callable[..., object], /, *args: object, **kwargs: object) -> object:
        """The call `function(*args, **kwargs)`; gives what takes the place of its result."""

    def operator(self, at: int, /, *operands: object) -> object:
        """The operator `operations[at].function(*operands)`; gives what takes the place of its result."""

    def value(self, at: int, value: object, /) -> object:
        """A variable is about to hold `value`; gives what it holds instead."""


class Rewritten:
    """The rewritten copy of one code object: its `operations` in order, and functions made of it.

    Functions made by `bind` share the closure cells, defaults and globals of the one they stand for.
    """

    __slots__ = ("__weakref__", "by_name", "code", "functions", "operations", "original", "qualname", "text")

    def __init__(self, code: CodeType, qualname: str) -> None:
        self.text: Text = read(code, qualname)
        self.qualname = qualname
        self.original = weakref.ref(code)
        instrumenter = Instrumenter(self.text)
        definition = instrumenter.rewritten()
        self.operations: tuple[Operation, ...] = named(instrumenter.found)
        self.functions = tuple(one.function for one in self.operations)
        self.by_name = {one.name: one for one in self.operations}
        made = compiled(self.text, definition, NAMES)
        if sys.version_info >= (3, 11):
            made = made.replace(co_qualname=code.co_qualname)
        self.code: CodeType = made

    def __repr__(self) -> str:
        return f"Rewritten({self.qualname}, {len(self.operations)} operations)"

    def bind(self, function: FunctionType, reporter: Reporter) -> FunctionType:
        """A function that does what `function` does and reports to `reporter`."""
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        cells |= {
            CALL: CellType(reporter.call),
            OPERATOR: CellType(reporter.operator),
            VALUE: CellType(reporter.value),
            SLICE: CellType(slice),
            LOCALS: CellType(_visible),
        }
        return like(function, self.code, tuple(cells[name] for name in self.code.co_freevars))


def like(function: FunctionType, code: CodeType, closure: tuple[CellType, ...]) -> FunctionType:
    """`function` with other code and cells: same globals, defaults, names, annotations and attributes."""
    made = FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__qualname__ = function.__qualname__
    made.__module__ = function.__module__
    made.__doc__ = function.__doc__
    if sys.version_info >= (3, 14):
        made.__annotate__ = function.__annotate__  # not evaluated before it is asked for
    else:
        made.__annotations__ = function.__annotations__
    made.__dict__.update(function.__dict__)
    return made


def _visible(names: dict[str, object]) -> dict[str, object]:
    """`locals()` without what the rewriting added."""
    for name in [name for name in names if name.startswith(PREFIX)]:
        del names[name]
    return names


@dataclass(frozen=True, slots=True)
class _Kept:
    code: "weakref.ref[CodeType]"
    rewritten: Rewritten


class _Cache:
    """Rewritten code objects, each for as long as the original lives.

    By identity, since equal code objects may come from different files. Shared by all models on purpose:
    parsing takes milliseconds, the layers of a model run the same code, and nothing in it belongs to a run.
    """

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}

    def __call__(self, function: FunctionType) -> Rewritten:
        code = function.__code__
        kept = self._kept.get(id(code))
        if kept is not None and kept.code() is code:
            return kept.rewritten
        rewritten = Rewritten(code, function.__qualname__)
        key, kept_all = id(code), self._kept
        self._kept[key] = _Kept(weakref.ref(code, lambda _: kept_all.pop(key, None)), rewritten)
        return rewritten


rewrite = _Cache()

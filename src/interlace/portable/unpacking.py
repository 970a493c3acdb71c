"""Make functions and values again from what was written down."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import util
from types import CellType, CodeType, FunctionType
from typing import Any

from interlace.portable.names import is_name, named
from interlace.portable.plain import DEPTH, EMPTY, READERS, Node, refill
from interlace.portable.source import Text, compile_function

Resolve = Callable[[str, Any], Any]


@dataclass(frozen=True, slots=True)
class Tables:
    """What a set of functions and values was written down as.

    Attributes:
        text: The sources.
        functions: See `Pack`; `line` is where in the text a function begins.
        namespaces: See `Pack`.
        cells: See `Pack`.
        shared: See `Pack`.
        tensor: Gives a tensor by its name.
        resolve: Gives what a node of the user's own kind stands for.
    """

    text: Text
    functions: list[dict[str, Any]]
    namespaces: list[dict[str, Any]]
    cells: list[Node]
    shared: list[Node]
    tensor: Callable[[str], Any]
    resolve: Resolve


class Unpack:
    """Makes each function and value once. Compiles sources and imports packages; runs nothing of the sources.

    The functions are there first, empty; `fill` then gives them what they read, which may be each other.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._containers: dict[int, Any] = {}
        self._depth = 0
        self.namespaces: list[dict[str, Any]] = [self._names(entry) for entry in tables.namespaces]
        self.cells = [CellType() for _ in tables.cells]
        self.functions: list[Any] = [self._make(entry) for entry in tables.functions]

    def fill(self) -> None:
        """Give functions the values that they read."""
        tables = self._tables
        for names, entry in zip(self.namespaces, tables.namespaces, strict=True):
            names.update({name: self.value(node) for name, node in entry["names"].items()})
        for cell, node in zip(self.cells, tables.cells, strict=True):
            if not (isinstance(node, dict) and "unbound" in node):
                cell.cell_contents = self.value(node)
        for function, entry in zip(self.functions, tables.functions, strict=True):
            self._give(function, entry)

    def value(self, node: Node) -> Any:
        """The value of a node."""
        if not isinstance(node, dict):
            if isinstance(node, list):
                raise ValueError("a list stands where a value is expected")
            return node
        self._depth += 1
        if self._depth > DEPTH:
            raise ValueError("a value is nested too deeply")
        try:
            ((kind, held),) = node.items()
            if kind in EMPTY:
                empty = EMPTY[kind](held)
                refill(kind, empty, held, self.value)
                return empty
            reader = READERS.get(kind)
            if reader is not None:
                return reader(held, self.value)
            own = _OWN.get(kind)
            return getattr(self, own)(held) if own is not None else self._tables.resolve(kind, held)
        finally:
            self._depth -= 1

    def _tensor(self, name: str) -> Any:
        return self._tables.tensor(name)

    def _shared(self, number: int) -> Any:
        if number not in self._containers:
            ((kind, held),) = at(self._tables.shared, number).items()
            self._containers[number] = EMPTY[kind](held)
            refill(kind, self._containers[number], held, self.value)
        return self._containers[number]

    def _import(self, name: str) -> Any:
        return named(name)

    def _object(self, name: str) -> Any:
        return named(name)

    def _partial(self, held: list[Node]) -> Any:
        function, args, kwargs = (self.value(part) for part in held)
        return partial(function, *args, **kwargs)

    def _method(self, held: list[Any]) -> Any:
        node, name = held
        return getattr(self.value(node), name)

    def _function(self, number: int) -> Any:
        return at(self.functions, number)

    # -- functions ----------------------------------------------------------------------------------------

    def _names(self, entry: dict[str, Any]) -> dict[str, Any]:
        return {"__builtins__": builtins, "__name__": entry["module"], "__loader__": self._tables.text}

    def _make(self, entry: dict[str, Any]) -> FunctionType:
        text, free = self._tables.text, entry.get("free", {})
        code = compile_function(
            text.function(entry["line"]), free, entry.get("owner"), entry.get("future", 0), text.filename
        )
        named: dict[str, Any] = {"co_qualname": entry["qualname"]} if hasattr(code, "co_qualname") else {}
        names = at(self.namespaces, entry["namespace"])
        made = FunctionType(code.replace(**named), names, entry["name"], None, self.closure(code, free))
        made.__qualname__ = entry["qualname"]
        return made

    def closure(self, code: CodeType, free: dict[str, int]) -> tuple[CellType, ...]:
        """The cells of code's free variables, whose numbers are given."""
        return tuple(at(self.cells, free[name]) for name in code.co_freevars)

    def _give(self, function: Any, entry: dict[str, Any]) -> None:
        defaults = tuple(map(self.value, entry.get("defaults", ())))
        keywords = {name: self.value(node) for name, node in entry.get("kwdefaults", {}).items()}
        function.__defaults__, function.__kwdefaults__ = defaults or None, keywords or None
        vars(function).update({name: self.value(node) for name, node in entry.get("attributes", {}).items()})


_OWN = {
    kind: f"_{kind}" for kind in ("function", "import", "object", "partial", "method", "tensor", "shared")
}
"""The methods that make what stands in the tables or has a name; not bound ones, which would be a cycle."""


class Check(Unpack):
    """Goes through all that was written down as `Unpack` does, and makes, compiles and imports nothing.

    Any exception means that it could not be unpacked.
    """

    def fill(self) -> None:
        """Look at everything, wanted by somebody or not."""
        super().fill()
        for number in range(len(self._tables.shared)):
            self._shared(number)

    def _import(self, name: str) -> Any:
        _check_package(name)
        return _Stand()

    def _object(self, name: str) -> Any:
        home, _, inside = name.partition(":")
        if not is_name(inside):
            raise ValueError(f"{name!r} names no object")
        _check_package(home)
        return _Stand()

    def _method(self, held: list[Any]) -> Any:
        node, name = held
        if not is_name(name):
            raise ValueError(f"{name!r} names no method")
        self.value(node)
        return _Stand()

    def _make(self, entry: dict[str, Any]) -> Any:
        self._tables.text.function(entry["line"])
        texts = (entry["name"], entry["qualname"], entry.get("owner", ""))
        plain = type(entry.get("future", 0)) is int and isinstance(entry.get("defaults", []), list)
        if not plain or not all(isinstance(text, str) for text in texts):
            raise ValueError("a function is not described as functions are")
        at(self.namespaces, entry["namespace"])
        for name, number in entry.get("free", {}).items():
            if not is_name(name):
                raise ValueError(f"{name!r} is no name")
            at(self.cells, number)
        return _Stand()


class _Stand:
    """Stands for a function or an object that is not made yet."""

    def __call__(self) -> Any:
        raise AssertionError("nothing runs while a file is read")


def at(table: list[Any], number: Any) -> Any:
    """An entry of a table.

    Raises:
        ValueError: There is none of that number.
    """
    if type(number) is not int or not 0 <= number < len(table):
        raise ValueError(f"there is no entry {number!r}")
    return table[number]


def _check_package(name: str) -> None:
    """Whether a package can be imported, without importing it."""
    if not is_name(name):
        raise ValueError(f"{name!r} names no module")
    top = name.partition(".")[0]
    if top not in sys.modules and util.find_spec(top) is None:
        raise ModuleNotFoundError(f"it needs the package `{top}`, which is not installed here", name=top)

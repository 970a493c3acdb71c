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
from interlace.portable.plain import EMPTY, READERS, Node, refill
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
    """Makes each function and value once. Compiles sources and imports packages; runs nothing of the sources."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._functions: dict[int, FunctionType] = {}
        self._namespaces: dict[int, dict[str, Any]] = {}
        self._cells: dict[int, CellType] = {}
        self._containers: dict[int, Any] = {}
        self._filled: set[tuple[str, int]] = set()

    def value(self, node: Node) -> Any:
        """The value of a node."""
        if not isinstance(node, dict):
            if isinstance(node, list):
                raise ValueError("a list stands where a value is expected")
            return node
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

    def _tensor(self, name: str) -> Any:
        return self._tables.tensor(name)

    def _shared(self, number: int) -> Any:
        if number not in self._containers:
            ((kind, held),) = _at(self._tables.shared, number).items()
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

    # -- functions ----------------------------------------------------------------------------------------

    def _function(self, number: int) -> Any:
        """A function by its number."""
        made = self._functions.get(number)
        if made is None:
            made = self._make(number, _at(self._tables.functions, number))
        return made

    def _make(self, number: int, entry: dict[str, Any]) -> FunctionType:
        code = self._code(entry)
        closure = tuple(self.cell(entry["free"][name], fill=False) for name in code.co_freevars)
        names = self.namespace(entry["namespace"], fill=False)
        made = self._functions[number] = FunctionType(code, names, entry["name"], None, closure)
        # Known from here on: what it reads may read it.
        self.namespace(entry["namespace"])
        for name in code.co_freevars:
            self.cell(entry["free"][name])
        if entry.get("defaults"):
            made.__defaults__ = tuple(map(self.value, entry["defaults"]))
        if entry.get("kwdefaults"):
            made.__kwdefaults__ = {name: self.value(node) for name, node in entry["kwdefaults"].items()}
        vars(made).update({name: self.value(node) for name, node in entry.get("attributes", {}).items()})
        made.__qualname__ = entry["qualname"]
        return made

    def _code(self, entry: dict[str, Any]) -> CodeType:
        text = self._tables.text
        code = compile_function(
            text.function(entry["line"]),
            sorted(entry.get("free", ())),
            entry.get("owner"),
            filename=text.filename,
            flags=entry.get("future", 0),
        )
        named: dict[str, Any] = {"co_qualname": entry["qualname"]} if hasattr(code, "co_qualname") else {}
        return code.replace(**named)

    def cell(self, number: int, *, fill: bool = True) -> CellType:
        """A cell by its number; `fill` puts its value in, once."""
        cell = self._cells.get(number)
        if cell is None:
            cell = self._cells[number] = CellType()
        if fill and ("cell", number) not in self._filled:
            self._filled.add(("cell", number))
            node = _at(self._tables.cells, number)
            if not (isinstance(node, dict) and "unbound" in node):
                cell.cell_contents = self.value(node)
        return cell

    def namespace(self, number: int, *, fill: bool = True) -> dict[str, Any]:
        """The global names of the functions from one module; `fill` puts their values in, once."""
        entry = _at(self._tables.namespaces, number)
        names = self._namespaces.get(number)
        if names is None:
            names = self._namespaces[number] = {
                "__builtins__": builtins,
                "__name__": entry["module"],
                "__loader__": self._tables.text,
            }
        if fill and ("namespace", number) not in self._filled:
            self._filled.add(("namespace", number))
            for name, node in entry["names"].items():
                names[name] = self.value(node)
        return names


_OWN = {kind: f"_{kind}" for kind in ("function", "import", "object", "partial", "method", "tensor", "shared")}
"""The methods that make what stands in the tables or has a name; not bound ones, which would be a cycle."""


class Check(Unpack):
    """Goes through all that was written down as `Unpack` does, and makes, compiles and imports nothing.

    Any exception means that it could not be unpacked.
    """

    def all(self) -> None:
        """Look at everything, wanted by somebody or not."""
        tables = self._tables
        for n in range(len(tables.functions)):
            self._function(n)
        for n in range(len(tables.namespaces)):
            self.namespace(n)
        for n in range(len(tables.cells)):
            self.cell(n)
        for n in range(len(tables.shared)):
            self._shared(n)

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

    def _make(self, number: int, entry: dict[str, Any]) -> Any:
        made: Any = self._functions.setdefault(number, _Stand())  # type: ignore[arg-type]
        self._tables.text.function(entry["line"])
        texts = (entry["name"], entry["qualname"], entry.get("owner", ""))
        if not all(isinstance(text, str) for text in texts) or not isinstance(entry.get("future", 0), int):
            raise ValueError(f"function {number} is not described as functions are")
        self.namespace(entry["namespace"])
        for cell in entry.get("free", {}).values():
            self.cell(cell)
        for node in entry.get("defaults", ()):
            self.value(node)
        for key in ("kwdefaults", "attributes"):
            for node in entry.get(key, {}).values():
                self.value(node)
        return made


class _Stand:
    """Stands for a function or an object that is not made yet."""

    def __call__(self) -> Any:
        raise AssertionError("nothing runs while a file is read")


def _at(table: list[Any], number: Any) -> Any:
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

"""Write functions and values down: nodes of JSON, pieces of source, tensors beside them."""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

from interlace.errors import TravelError
from interlace.portable.names import is_installed, name_of
from interlace.portable.plain import CONTAINERS, DEPTH, Node, context, fill, parts, simple
from interlace.portable.source import FUTURE, global_names, owner, source_of
from interlace.portable.tensors import Tensors

Refer = Callable[[object, str], "dict[str, Any] | None"]


class Pack:
    """One set of functions and values that travel together: what two of them share, they share elsewhere too.

    Args:
        refer: Given a value and its name, the node of a value that is named and not written down; else None.

    Attributes:
        functions: What is known of each function besides its source.
        namespaces: The global names that functions read, one for each module that they come from.
        cells: The values of free variables.
        shared: Containers that stand in more than one place.
        sources: The pieces of source.
        tensors: The tensors.
        modules: The packages that are imported.
    """

    def __init__(self, refer: Refer) -> None:
        self.functions: list[dict[str, Any]] = []
        self.namespaces: list[dict[str, Any]] = []
        self.cells: list[Node] = []
        self.shared: list[Node] = []
        self.sources: list[str] = []
        self.tensors = Tensors()
        self.modules: set[str] = set()
        self._refer = refer
        self._known: dict[
            tuple[str, int], tuple[object, Any]
        ] = {}  # holds what it knows: ids must stay taken
        self._reader = ""
        self._depth = 0
        self._waiting: list[tuple[FunctionType, dict[str, Any]]] = []

    # -- values -------------------------------------------------------------------------------------------

    def value(self, value: object, name: str) -> Node:
        """The node of a value.

        Args:
            value: The value.
            name: What the code calls it; errors do so too.

        Raises:
            TravelError: It cannot travel.
        """
        if value is None or value is True or value is False:
            return value
        self._depth += 1
        if self._depth > DEPTH:
            raise TravelError(
                f"`{name.partition('[')[0]}` cannot travel: it holds more than {DEPTH} containers in each other.\n"
                "Flatten it."
            )
        found = self._node(value, name)
        self._depth -= 1
        if found is None:
            raise self._refusal(value, name)
        return found

    def _node(self, value: object, name: str) -> Node | None:
        found = simple(value)
        if found is None:
            found = parts(value, self.value, name)
        if found is None and type(value) in CONTAINERS:
            found = self._container(value, name)
        if found is None:
            found = self._refer(value, name) or context(value)
        if found is None:
            found = self._object(value, name)
        return found

    def _container(self, value: object, name: str) -> Node:
        known = self._known.get(("value", id(value)))
        if known is None:
            node: dict[str, Node] = {}
            self._known["value", id(value)] = (value, node)
            fill(node, value, self.value, name)
            return node
        node = known[1]
        if "shared" not in node:
            self.shared.append(dict(node))
            node.clear()
            node["shared"] = len(self.shared) - 1
        return dict(node)

    def _object(self, value: object, name: str) -> Node | None:
        tensor = self.tensors.add(value, name.partition("[")[0])
        if tensor is not None:
            return {"tensor": tensor}
        if isinstance(value, ModuleType):
            return self._module(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        if type(value) is partial:
            inside = (value.func, value.args, value.keywords)
            return {"partial": [self.value(part, name) for part in inside]}
        if isinstance(value, MethodType) and isinstance(value.__func__, FunctionType):
            return {"method": [self.value(value.__self__, f"{name}.__self__"), value.__name__]}
        if isinstance(value, enum.Enum):
            cls = self._named(type(value))
            return cls and {"object": f"{cls['object']}.{value.name}"}
        return self._named(value)

    def _module(self, module: ModuleType) -> Node | None:
        if module.__name__ == "__main__":
            return None
        self.modules.add(module.__name__.partition(".")[0])
        return {"import": module.__name__}

    def _named(self, value: object) -> Any:
        found = name_of(value) if isinstance(value, type) or callable(value) else None
        if found is None:
            return None
        self.modules.add(found.partition(":")[0].partition(".")[0])
        return {"object": found}

    # -- functions ----------------------------------------------------------------------------------------

    def _function(self, function: FunctionType) -> Node:
        if is_installed(function.__code__.co_filename):
            found = self._named(function)
            if found is not None:
                return found
        known = self._known.get(("function", id(function)))
        if known is None:
            number = len(self.functions)
            self._known["function", id(function)] = known = (function, {"function": number})
            entry: dict[str, Any] = {}
            self.functions.append(entry)
            self._waiting.append((function, entry))
        return known[1]

    def finish(self) -> None:
        """Describe the functions that were met, and those that these read."""
        while self._waiting:
            self._describe(*self._waiting.pop(0))

    def _describe(self, function: FunctionType, entry: dict[str, Any]) -> None:
        code, name = function.__code__, function.__name__
        self._reader = name
        entry |= {"name": name, "qualname": function.__qualname__, "source": self._source(function)}
        cls = owner(function)
        if cls is not None:
            entry["owner"] = cls
        if code.co_flags & FUTURE:
            entry["future"] = code.co_flags & FUTURE
        entry["namespace"] = self.namespace(function.__globals__, global_names(code))
        if code.co_freevars:
            entry["free"] = self.free(code, function.__closure__ or ())
        given = {"defaults": function.__defaults__, "kwdefaults": function.__kwdefaults__}
        given["attributes"] = vars(function)
        names = code.co_varnames[: code.co_argcount]
        for key, values in given.items():
            if values:
                entry[key] = self._given(values, names)

    def _given(self, values: Any, names: tuple[str, ...]) -> Node:
        if isinstance(values, tuple):
            return [
                self.value(value, name) for value, name in zip(values, names[-len(values) :], strict=True)
            ]
        return {name: self.value(value, name) for name, value in values.items()}

    def _source(self, function: FunctionType) -> int:
        known = self._known.get(("source", id(function.__code__)))
        if known is None:
            number = self.add_source(source_of(function))
            self._known["source", id(function.__code__)] = known = (function.__code__, number)
        return int(known[1])

    def add_source(self, text: str) -> int:
        """Take in a piece of source; its number."""
        self.sources.append(text)
        return len(self.sources) - 1

    def free(self, code: CodeType, cells: tuple[CellType, ...]) -> dict[str, int]:
        """The cells of code's free variables, by number."""
        return {name: self._cell(cell, name) for name, cell in zip(code.co_freevars, cells, strict=True)}

    def _cell(self, cell: CellType, name: str) -> int:
        known = self._known.get(("cell", id(cell)))
        if known is None:
            number = len(self.cells)
            self._known["cell", id(cell)] = known = (cell, number)
            self.cells.append(None)
            try:
                value = cell.cell_contents
            except ValueError:
                self.cells[number] = {"unbound": name}
            else:
                self.cells[number] = self.value(value, name)
        return int(known[1])

    def namespace(self, names: dict[str, Any], wanted: set[str]) -> int:
        """Write down the wanted global names of a module; the number of its namespace."""
        known = self._known.get(("namespace", id(names)))
        if known is None:
            self.namespaces.append({"module": str(names.get("__name__", "")), "names": {}})
            known = self._known["namespace", id(names)] = (names, len(self.namespaces) - 1)
        held = self.namespaces[known[1]]["names"]
        for name in sorted(wanted - held.keys()):
            if name in names and name != "__builtins__":
                held[name] = None
                held[name] = self.value(names[name], name)
        return int(known[1])

    # -- what cannot travel -------------------------------------------------------------------------------

    def reading(self, reader: str) -> None:
        """Name who reads the values that follow."""
        self._reader = reader

    def _refusal(self, value: object, name: str) -> TravelError:
        kind = value if isinstance(value, type) else type(value)
        what = f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
        what = f"the class {what}" if kind is value else f"a {what}"
        reader = f", which `{self._reader}` reads," if self._reader else ""
        return TravelError(f"`{name}`{reader} cannot travel: it is {what}{_why(value)}")


def _why(value: object) -> str:
    """Why a value cannot travel, and what to write."""
    if isinstance(value, torch.Tensor):
        return (
            f" ({value.layout}, {value.device}), and only dense tensors with values do.\n"
            "Give it as a plain tensor: `.to_dense()`, `.dequantize()`, or on a real device."
        )
    if isinstance(value, nn.Module):
        return (
            " that is no part of this model.\n"
            "Give its tensors to the function, and write there what it computes; or make it a module of the model."
        )
    if isinstance(value, type):
        return (
            ".\n"
            "A class travels by name, from a module that can be imported; or write what it does as a function."
        )
    if isinstance(value, ModuleType):
        return ", the script itself.\nRead its names one by one: they travel."
    if callable(value):
        return (
            ", which has no name in a package.\n"
            "Write what it does as a function: that travels as source, with the numbers and tensors that it reads."
        )
    return ".\nGive it as numbers, text, tensors or containers of these, or make it inside the function."

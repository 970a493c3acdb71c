"""Plain values as JSON and back.

`None`, booleans, numbers and text are themselves; everything else is an object of one key, its kind:
`{"tuple": [1, 2]}`, `{"dtype": "float32"}`.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

import torch

Node = Any
"""What a value is in JSON."""

Down = Callable[[object, str], Node]
Up = Callable[[Node], Any]

DEPTH = 100
"""How many containers may stand in each other."""

_DIGITS = 300  # a longer number is written in hexadecimal: Python refuses to read very long decimal ones


def simple(value: object) -> Node | None:
    """A value without parts, or None where it is no such value."""
    kind = type(value)
    if kind is int:
        return value if abs(value) < 10**_DIGITS else {"int": hex(value)}  # type: ignore[arg-type]
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}  # type: ignore[arg-type]
    if kind is str:
        return value
    found = _SIMPLE.get(kind)
    if found is None:
        return None
    name, write = found
    return {name: write(value)}


_SIMPLE: dict[type, tuple[str, Callable[[Any], Node]]] = {
    complex: ("complex", lambda value: [value.real.hex(), value.imag.hex()]),
    bytes: ("bytes", bytes.hex),
    range: ("range", lambda value: [value.start, value.stop, value.step]),
    type(...): ("constant", lambda _: "..."),
    torch.dtype: ("dtype", lambda value: str(value).removeprefix("torch.")),
    torch.device: ("device", str),
    torch.Size: ("size", list),
    torch.layout: ("torch", lambda value: str(value).removeprefix("torch.")),
    torch.memory_format: ("torch", lambda value: str(value).removeprefix("torch.")),
}


def parts(value: object, down: Down, name: str) -> Node | None:
    """A value that cannot change, with its parts, or None where it is no such value."""
    if type(value) is tuple:
        return {"tuple": [down(part, f"{name}[{n}]") for n, part in enumerate(value)]}
    if type(value) is frozenset:
        return {"frozenset": _sorted(value, down, name)}
    if type(value) is slice:
        return {"slice": [down(part, name) for part in (value.start, value.stop, value.step)]}
    return None


def _sorted(values: Iterable[object], down: Down, name: str) -> list[Node]:
    """The members of a set in an order that does not change from one process to the next."""
    return sorted((down(part, f"{name}{{...}}") for part in values), key=repr)


def _context(value: Any) -> Node:
    return value.mode if hasattr(value, "mode") else None


_CONTEXTS = {
    torch.no_grad: "no_grad",
    torch.enable_grad: "enable_grad",
    torch.inference_mode: "inference_mode",
    torch.set_grad_enabled: "set_grad_enabled",
}
"""Contexts of torch, which functions are decorated with."""


def context(value: object) -> Node | None:
    """One of torch's contexts for gradients, or None where it is no such value."""
    found = _CONTEXTS.get(type(value))
    return None if found is None else {"context": [found, _context(value)]}


def _made_context(held: Any, _: Up) -> Any:
    name, mode = held
    if name not in _CONTEXTS.values() or type(mode) not in (bool, type(None)):
        raise ValueError(f"torch.{name} is no context for gradients")
    return getattr(torch, name)(*() if mode is None else (mode,))


CONTAINERS = (list, dict, set, bytearray, OrderedDict, Counter, defaultdict, deque)
"""Values that can change, and so may be one and the same in two places."""


def fill(node: dict[str, Node], value: Any, down: Down, name: str) -> None:
    """Write a container into its node, which is known before its parts are."""
    kind = type(value)
    if kind is bytearray:
        node["bytearray"] = value.hex()
    elif kind is set:
        node["set"] = _sorted(value, down, name)
    elif kind in (list, deque):
        items: list[Node] = []
        node["list" if kind is list else "deque"] = items if kind is list else [value.maxlen, items]
        items.extend(down(part, f"{name}[{n}]") for n, part in enumerate(value))
    elif kind is dict and all(type(key) is str for key in value):
        named: dict[str, Node] = {}
        node["dict"] = named
        named.update((key, down(part, f"{name}[{key!r}]")) for key, part in value.items())
    else:
        pairs: list[Node] = []
        node[_MAPPINGS[kind]] = pairs
        if kind is defaultdict:
            pairs.append(down(value.default_factory, f"{name}.default_factory"))
        pairs.extend(
            [down(key, f"{name}.keys()"), down(part, f"{name}[{key!r}]")] for key, part in value.items()
        )


_MAPPINGS: dict[Any, str] = {
    dict: "pairs",
    OrderedDict: "ordered",
    Counter: "counter",
    defaultdict: "default",
}

EMPTY: dict[str, Callable[[Any], Any]] = {
    "list": lambda _: [],
    "dict": lambda _: {},
    "pairs": lambda _: {},
    "ordered": lambda _: OrderedDict(),
    "counter": lambda _: Counter(),
    "default": lambda _: defaultdict(None),
    "set": lambda _: set(),
    "deque": lambda held: deque(maxlen=held[0]),
    "bytearray": lambda _: bytearray(),
}
"""A container of each kind before its parts are there."""


def refill(kind: str, empty: Any, held: Any, up: Up) -> None:
    """Put the parts into a container that was made empty."""
    if kind == "bytearray":
        empty.extend(bytes.fromhex(held))
    elif kind == "set":
        empty.update(map(up, held))
    elif kind in ("list", "deque"):
        empty.extend(map(up, held if kind == "list" else held[1]))
    elif kind == "dict":
        for key, part in held.items():
            empty[key] = up(part)
    else:
        pairs = held
        if kind == "default":
            empty.default_factory, pairs = up(held[0]), held[1:]
        for key, part in pairs:
            empty[up(key)] = up(part)


def _torch(kind: type) -> Callable[[Any, Up], Any]:
    def read(name: Any, _: Up) -> Any:
        found = vars(torch)[name]
        if not isinstance(found, kind):
            raise ValueError(f"torch.{name} is no {kind.__name__}")
        return found

    return read


READERS: dict[str, Callable[[Any, Up], Any]] = {
    "int": lambda held, _: int(held, 16),
    "float": lambda held, _: {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[held],
    "complex": lambda held, _: complex(*map(float.fromhex, held)),
    "bytes": lambda held, _: bytes.fromhex(held),
    "range": lambda held, _: range(*held),
    "constant": lambda held, _: {"...": ...}[held],
    "context": _made_context,
    "dtype": _torch(torch.dtype),
    "device": lambda held, _: torch.device(held),
    "size": lambda held, _: torch.Size(held),
    "torch": _torch((torch.layout, torch.memory_format)),  # type: ignore[arg-type]
    "tuple": lambda held, up: tuple(map(up, held)),
    "frozenset": lambda held, up: frozenset(map(up, held)),
    "slice": lambda held, up: slice(*map(up, held)),
}
"""How each kind that cannot change is read."""

"""What a trace read, remembered without keeping it alive, so that `il.backward` can name it by its site.

It knows values and nothing else: no runs, no graphs.
"""

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from interlace import trees
from interlace.errors import NotReachedError
from interlace.site import Port

Key = tuple[Any, int, Port]
"""The key of a site, the number of the visit, and a port of it."""


class Parts(NamedTuple):
    """A container whose tensors are held weakly: its type, and its children by name, None without a gradient."""

    kind: type
    inside: dict[str, Any]


def weakly(value: Any) -> Any:
    """The tensors of a nested value that gradients flow to, by weak references; None where there are none."""
    if isinstance(value, torch.Tensor):
        return weakref.ref(value) if value.requires_grad else None
    inside = trees.children(value)
    if not inside:
        return None
    held = {name: weakly(part) for name, part in inside}
    return Parts(type(value), held) if any(weak is not None for weak in held.values()) else None


def tensors(weak: Any) -> list[torch.Tensor]:
    """Those that are still alive."""
    if isinstance(weak, Parts):
        return [tensor for part in weak.inside.values() for tensor in tensors(part)]
    tensor = None if weak is None else weak()
    return [] if tensor is None else [tensor]


def revive(weak: Any, where: str) -> Any:
    """The value again: a tensor, or what stands for its container; None where nothing is known."""
    if weak is None:
        return None
    return Recalled(weak, where) if isinstance(weak, Parts) else weak()


class Missing:
    """A part of a container of which nothing is known: it can be unpacked, and be asked for nothing."""

    __slots__ = ("_where",)

    def __init__(self, where: str) -> None:
        self._where = where

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotReachedError(gone(self._where))

    def __repr__(self) -> str:
        return gone(self._where)


class Recalled:
    """A container of which only the tensors are known: indexed and walked as the container was."""

    def __init__(self, parts: Parts, where: str) -> None:
        self._parts = parts
        self._where = where

    def _part(self, *names: str) -> Any:
        inside = self._parts.inside
        name = next((name for name in names if name in inside), names[0])
        found = revive(inside[name], self._where + name) if name in inside else None
        if found is None:
            raise NotReachedError(gone(self._where + name))
        return found

    def __len__(self) -> int:
        return len(self._parts.inside)

    def __iter__(self) -> Iterator[Any]:
        kind = self._parts.kind
        if not issubclass(kind, (tuple, list)):
            raise TypeError(
                f"Of the {kind.__name__} at `{self._where}` only the tensors are known: name them."
            )
        for name, weak in self._parts.inside.items():
            found = revive(weak, self._where + name)
            yield Missing(self._where + name) if found is None else found

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, slice)) and issubclass(self._parts.kind, (tuple, list)):
            found = list(self)[key]
            if isinstance(found, Missing):
                raise NotReachedError(str(found))
            return found
        return self._part(f"[{key!r}]", f".{key}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._part(f".{name}", f"[{name!r}]")

    def __repr__(self) -> str:
        return f"<what was read at `{self._where}`: {', '.join(self._parts.inside)}>"


def gone(where: str) -> str:
    """Why a site gives no tensor any more."""
    return (
        f"What was read at `{where}` has no gradient, or is not in memory any more: nothing kept it.\n"
        "Keep it under a name in the trace, and ask that name for its `.grad`."
    )

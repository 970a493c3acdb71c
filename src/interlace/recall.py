"""What a trace read, remembered without keeping it alive, so that `il.backward` can name it by its site.

It knows values and nothing else: no runs, no graphs.
"""

import weakref
from typing import Any, NamedTuple

import torch

from interlace import trees
from interlace.errors import NotReachedError
from interlace.site import Port

Key = tuple[Any, int, Port]
"""The key of a site, the number of the visit, and a port of it."""


class Parts(NamedTuple):
    """A container whose tensors are held weakly: its type, and its children by name."""

    kind: type
    inside: dict[str, Any]


def weakly(value: Any) -> Any:
    """The tensors of a nested value that gradients flow to, by weak references; None where there are none."""
    if isinstance(value, torch.Tensor):
        return weakref.ref(value) if value.requires_grad else None
    inside = trees.children(value)
    if not inside:
        return None
    held = {name: weak for name, part in inside if (weak := weakly(part)) is not None}
    return Parts(type(value), held) if held else None


def tensors(weak: Any) -> list[torch.Tensor]:
    """Those that are still alive."""
    if isinstance(weak, Parts):
        return [tensor for part in weak.inside.values() for tensor in tensors(part)]
    tensor = None if weak is None else weak()
    return [] if tensor is None else [tensor]


def revive(weak: Any, where: str) -> Any:
    """The value again: a tensor, or what stands for its container."""
    return Recalled(weak, where) if isinstance(weak, Parts) else weak()


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

    def __getitem__(self, key: Any) -> Any:
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

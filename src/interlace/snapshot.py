"""What a run on tensors without values leaves behind in a model, taken back.

Some models keep tables, masks or counters in attributes while they run, and some inputs (a cache of keys and
values) are filled by the run. A snapshot remembers what all of these held, and puts it back. Knows nothing of
scans.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import _lru_cache_wrapper
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

LARGEST = 1 << 12
"""A container with more entries is taken for a table that no run writes to."""

_PLAIN = (
    torch.Tensor, str, bytes, int, float, complex, type, FunctionType, MethodType, ModuleType, type(None),
    torch.dtype, torch.device, torch.Size,
)  # fmt: skip
_TORCHS = frozenset(vars(nn.Module())) - {"_parameters", "_buffers", "_modules", "training"}
"""What torch itself keeps on a module: hooks, which come and go for other reasons."""
_SLOT = "_compiled_call_impl"


class Snapshot:
    """What modules and inputs hold, to be put back.

    Args:
        modules: All modules of the model.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> before = Snapshot([net])
        >>> net.seen = [1]
        >>> before.put_back()
        >>> hasattr(net, "seen")
        False
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._seen: dict[int, Any] = {}
        modules = list(modules)
        self._caches = [(cache, cache.cache_info().misses) for cache in _caches(modules)]
        for module in modules:
            self._take(module)

    def add(self, values: Any) -> None:
        """Remember what an input holds, too."""
        self._take(values)

    def _take(self, value: Any) -> None:
        if isinstance(value, _PLAIN) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        parts: Iterable[Any] = ()
        if isinstance(value, dict):
            if len(value) <= LARGEST:
                self._dicts.append((value, dict(value)))
                parts = list(value.values())
        elif isinstance(value, list):
            if len(value) <= LARGEST:
                self._lists.append((value, list(value)))
                parts = list(value)
        elif isinstance(value, set):
            if len(value) <= LARGEST:
                self._sets.append((value, set(value)))
        elif isinstance(value, tuple):
            parts = value
        elif not type(value).__module__.startswith("interlace."):
            own = getattr(value, "__dict__", None)
            if isinstance(own, dict):
                kept = {name: part for name, part in own.items() if not _is_torchs(value, name)}
                self._dicts.append((own, kept))
                self._seen[id(own)] = own
                parts = kept.values()
        for part in parts:
            self._take(part)

    def put_back(self) -> None:
        """Let everything hold what it held; caches of functions that were filled meanwhile are emptied."""
        for held, before in self._dicts:
            for name in [name for name in held if name not in before and not _is_hook(name)]:
                del held[name]
            for name, value in before.items():
                if name not in held or held[name] is not value:
                    held[name] = value
        for items, were in self._lists:
            if len(items) != len(were) or any(new is not old for new, old in zip(items, were, strict=True)):
                items[:] = were
        for members, had in self._sets:
            if members != had:
                members.clear()
                members.update(had)
        for cache, misses in self._caches:
            if cache.cache_info().misses != misses:
                cache.cache_clear()


def _is_torchs(value: Any, name: str) -> bool:
    return isinstance(value, nn.Module) and _is_hook(name)


def _is_hook(name: Any) -> bool:
    return name in _TORCHS or name == _SLOT


def _caches(modules: list[nn.Module]) -> Iterator[Any]:
    """The `lru_cache`s beside the classes of a model, which its forwards may fill."""
    classes = {cls for kind in {type(module) for module in modules} for cls in kind.__mro__}
    beside = {cls.__module__ for cls in classes if not cls.__module__.startswith(("torch.", "builtins"))}
    places = [vars(cls) for cls in classes] + [
        vars(sys.modules[name]) for name in beside if name in sys.modules
    ]
    found: dict[int, Callable[..., Any]] = {}
    for place in places:
        for value in list(place.values()):
            for held in (value, *_enclosed(value)):
                if isinstance(held, _lru_cache_wrapper):
                    found[id(held)] = held
    return iter(found.values())


def _enclosed(value: Any) -> Iterator[Any]:
    if isinstance(value, FunctionType) and value.__closure__:
        for cell in value.__closure__:
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                continue

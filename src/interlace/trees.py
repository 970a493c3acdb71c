"""Nested values: visit, replace and compare the tensors inside tuples, dicts, dataclasses and `ModelOutput`s.

What travels between the modules of a model is a tensor or some nest of containers around tensors. Anything
that is not a known container is a leaf. Knows nothing of models.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch


def children(value: object) -> list[tuple[str, Any]] | None:
    """The parts of a container, each with its spelling (`[0]`, `.logits`), or None for a leaf."""
    if isinstance(value, torch.Tensor):
        return None
    if isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None)
        spell = [f".{name}" for name in names] if names else [f"[{n}]" for n in range(len(value))]
        return list(zip(spell, value, strict=True))
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [
            (f".{f.name}", getattr(value, f.name))
            for f in dataclasses.fields(value)
            if hasattr(value, f.name)
        ]
    return None


def rebuild(value: Any, parts: list[Any]) -> Any:
    """A container like `value` with other parts, in the order of `children`."""
    if isinstance(value, tuple):
        return type(value)(*parts) if hasattr(value, "_fields") else _sequence(value, parts)
    if isinstance(value, list):
        return _sequence(value, parts)
    if isinstance(value, Mapping):
        items = dict(zip(value, parts, strict=True))
        if type(value) is dict:
            return items
        make: Any = type(value)
        if dataclasses.is_dataclass(value):  # a `ModelOutput`
            return make(**items)
        if not isinstance(value, MutableMapping):
            return make(items)
        same = copy.copy(value)  # with what its class keeps beside the items
        same.update(items)
        return same
    names = [f.name for f in dataclasses.fields(value) if hasattr(value, f.name)]
    other = object.__new__(type(value))
    other.__dict__.update(getattr(value, "__dict__", {}))
    for name, part in zip(names, parts, strict=True):
        object.__setattr__(other, name, part)
    return other


def _sequence(value: Any, parts: list[Any]) -> Any:
    return type(value)(parts)


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Replace every leaf by `function(leaf)`; a container none of whose leaves changed is itself.

    >>> map_leaves(lambda leaf: leaf * 2, (1, {"a": [2]}))
    (2, {'a': [4]})
    """
    inside = children(value)
    if inside is None:
        return function(value)
    parts = [map_leaves(function, part) for _, part in inside]
    if all(new is old for new, (_, old) in zip(parts, inside, strict=True)):
        return value
    return rebuild(value, parts)


def map_tensors(function: Callable[[torch.Tensor], Any], value: Any) -> Any:
    """Replace every tensor by `function(tensor)` and leave everything else as it is."""
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, torch.Tensor) else leaf, value)


def leaves(value: object) -> Iterator[Any]:
    """Every leaf, depth first."""
    inside = children(value)
    if inside is None:
        yield value
    else:
        for _, part in inside:
            yield from leaves(part)


def tensors(value: object) -> Iterator[torch.Tensor]:
    """Every tensor, depth first."""
    return (leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor))


def describe(value: object) -> str:
    """What a value is, in the few words that an error needs.

    >>> describe((torch.zeros(2, 3), None))
    '(Tensor(2, 3) float32 cpu, None)'
    """
    if isinstance(value, torch.Tensor):
        return f"Tensor{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} {value.device}"
    inside = children(value)
    if inside is None:
        return "None" if value is None else type(value).__name__
    if type(value) in (tuple, list):
        left, right = "()" if isinstance(value, tuple) else "[]"
        return (
            left + ", ".join(describe(part) for _, part in inside[:4]) + (", ..." * (len(inside) > 4)) + right
        )
    return f"{type(value).__name__}({', '.join(name.strip('.') for name, _ in inside[:8])})"


def mismatch(old: Any, new: Any, where: str = "", *, structure: bool = False) -> str | None:
    """Why `new` cannot stand where `old` stood, or None when it can.

    Structure, shape, dtype and device must agree, or the structure alone; leaves that are not tensors may be
    anything but tensors.

    >>> mismatch((torch.zeros(2), 1), (torch.zeros(3), 1))
    'its shape at [0] is (3,), the model has (2,) there'
    """
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        if structure:
            return None
        at = f" at {where}" if where else ""
        if old.shape != new.shape:
            return f"its shape{at} is {tuple(new.shape)}, the model has {tuple(old.shape)} there"
        if old.dtype != new.dtype:
            return f"its dtype{at} is {new.dtype}, the model has {old.dtype} there"
        if old.device != new.device:
            return f"its device{at} is {new.device}, the model has {old.device} there"
        return None
    if old is new:
        return None
    inside, other = children(old), children(new)
    at = f" at {where}" if where else ""
    if inside is None or other is None:
        plain = inside is None and other is None
        if plain and not isinstance(old, torch.Tensor) and not isinstance(new, torch.Tensor):
            return None
        return f"it is {describe(new)}{at}, the model has {describe(old)} there"
    if type(old) is not type(new) or [name for name, _ in inside] != [name for name, _ in other]:
        return f"it is {describe(new)}{at}, the model has {describe(old)} there"
    for (name, part), (_, replacement) in zip(inside, other, strict=True):
        found = mismatch(part, replacement, where + name, structure=structure)
        if found is not None:
            return found
    return None


def span(tensor: torch.Tensor) -> int:
    """How many elements of its memory a tensor reaches over."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))

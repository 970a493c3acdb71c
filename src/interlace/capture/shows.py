"""Whether a change of one object in place shows in what another name holds.

Looks into tensors that share memory, containers, bound methods, functions and the attributes of objects; what lies
deeper than one function or object below a name is not looked for.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable
from functools import partial
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch

from interlace import trees

_PLAIN = frozenset((bool, bytes, complex, float, int, str, type(None)))


class Shows:
    """A question to ask of many values, which often are the same: whether a change of an object shows in one."""

    def __init__(self, changed: object) -> None:
        self._changed = changed
        self._known: dict[int, tuple[object, bool]] = {}  # with the value, so that its identity stays its own

    def __call__(self, value: object, deep: bool = True) -> bool:
        """Whether it does; with `deep`, functions and objects are looked into."""
        changed, known = self._changed, self._known
        if value is changed:
            return True
        if isinstance(value, torch.Tensor):
            return isinstance(changed, torch.Tensor) and _overlap(changed, value)
        if id(value) not in known:
            known[id(value)] = value, False  # while we are in it
            inside = _inside(value, deep)
            found = _share(changed, value) or any(self(part, deep and below) for part, below in inside)
            known[id(value)] = value, found
        return known[id(value)][1]


def _inside(value: Any, deep: bool) -> Iterable[tuple[object, bool]]:
    """The parts of a value, and whether functions and objects among them are looked into."""
    if isinstance(value, dict):
        return ((part, True) for part in list(value.values()) if type(part) not in _PLAIN)
    if isinstance(value, (list, tuple, deque)):
        return ((part, True) for part in value if type(part) not in _PLAIN)
    if not deep or isinstance(value, (type, ModuleType)):
        return ()
    if isinstance(value, FunctionType):
        return ((part, False) for part in _read_by(value))
    if isinstance(value, partial):
        return ((part, True) for part in (value.func, *value.args, *value.keywords.values()))
    if isinstance(value, (BuiltinMethodType, MethodType)):
        return ((value.__self__, True),)
    return ((part, False) for part in list(getattr(value, "__dict__", {}).values()))


def _read_by(function: FunctionType) -> Iterable[object]:
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from map(_content, function.__closure__ or ())
    names = function.__globals__
    yield from (names[name] for name in function.__code__.co_names if name in names)


def _content(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.layout is not torch.strided or other.layout is not torch.strided:
        return False
    if one.untyped_storage()._cdata != other.untyped_storage()._cdata:
        return False
    (start, end), (begin, stop) = _bytes(one), _bytes(other)
    return start < stop and begin < end


def _bytes(tensor: torch.Tensor) -> tuple[int | torch.SymInt, int | torch.SymInt]:
    """From where to where in its memory a tensor lies."""
    start = tensor.storage_offset() * tensor.element_size()
    return start, start + trees.span(tensor) * tensor.element_size()


def _share(one: object, other: object) -> bool:
    """Whether two arrays of NumPy share memory."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not isinstance(one, numpy.ndarray) or not isinstance(other, numpy.ndarray):
        return False
    return bool(numpy.may_share_memory(one, other))

"""What code written for nnsight finds on objects that are not ours: `.save()` on all, `with loss.backward():`.

`mount` puts them in place, and only importing `interlace.compat.nnsight` calls it; `unmount` takes them away.

`.save` is served to a call that is written out with no arguments, `x.save()`, and to nothing else: to `hasattr`,
`getattr`, `dir`, `dataclasses` and duck typing it does not exist. A class's own `save`, an instance's, and one that
`__getattr__` gives come first. What remains is that `x.save()` returns `x` where it used to be an error, and that
`object.__dict__` shows it.
"""

import ctypes
import functools
import gc
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

from interlace.frames import calls_attribute, with_follows
from interlace.grad import backward as watched
from interlace.saving import save

TORCH_BACKWARD: Any = torch.Tensor.backward
"""torch's own, as it was when this was imported."""


_LOOKS_AT_ALL = frozenset({"importlib.metadata", "importlib_metadata"})
"""From Python 3.12 on these ask a class of theirs for every name in the dictionaries of its bases."""


class _Save:
    """`x.save()` for any `x`, which returns `x`.

    Args:
        before: What another tool had put there.
    """

    def __init__(self, before: Any) -> None:
        self.before = before

    def __get__(self, value: Any, owner: type) -> Any:
        is_class = _of_class(value, owner)
        if is_class and sys._getframe(1).f_globals.get("__name__") in _LOOKS_AT_ALL:
            return self
        if is_class or not calls_attribute(sys._getframe(1)) or _own(owner):
            kind = f"type object {owner.__name__!r}" if is_class else f"{owner.__name__!r} object"
            raise AttributeError(
                f"{kind} has no attribute 'save'", name="save", obj=owner if is_class else value
            )
        missing: Any = getattr(owner, "__getattr__", None)
        if missing is not None:
            try:
                return missing(value, "save")
            except AttributeError:
                pass
        return functools.partial(save, value)


def _own(owner: type) -> bool:
    """Whether a class has a `save` of its own; then only `super().save` leads here."""
    return any("save" in vars(kind) for kind in owner.__mro__[:-1])


@functools.wraps(TORCH_BACKWARD)
def backward(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """Go backward; under a `with`, let the block read and change gradients: `il.backward`."""
    if not with_follows(sys._getframe(1)):
        return TORCH_BACKWARD(tensor, *args, **kwargs)
    return watched(tensor, *args, **kwargs)


class _Names:
    """A `__dir__` that leaves out the `save` of `object`: some libraries act on every name that `dir` tells."""

    def __init__(self, names_of: Callable[[Any], Iterable[str]]) -> None:
        functools.update_wrapper(self, names_of)
        self._names_of = names_of

    def __get__(self, value: Any, owner: type) -> Any:
        return self if _of_class(value, owner) else functools.partial(self, value)

    def __call__(self, value: Any) -> Iterable[str]:
        found = self._names_of(value)
        kinds = value.__mro__ if isinstance(value, type) else (*type(value).__mro__, value)
        if any("save" in getattr(kind, "__dict__", ()) for kind in kinds if kind is not object):
            return found
        return [name for name in found if name != "save"]


def _of_class(value: Any, owner: type) -> bool:
    """Whether a class was asked, and not an instance: None is an instance too, which a function would not see."""
    return value is None and owner is not type(None)


_BEFORE = {object: object.__dict__["__dir__"], type: type.__dict__["__dir__"]}
_MOUNTED = {kind: _Names(names_of) for kind, names_of in _BEFORE.items()}


def _names_of(kind: type) -> dict[str, Any]:
    """The dictionary behind `kind.__dict__`, which Python shows read-only."""
    found: dict[str, Any] = gc.get_referents(kind.__dict__)[0]
    return found


def mounted() -> bool:
    """Whether `.save` is on `object`."""
    return isinstance(object.__dict__.get("save"), _Save)


def mount_save(wanted: bool = True) -> None:
    """Put `.save` on `object`, or take it away."""
    if wanted == mounted():
        return
    for kind, names_of in (_MOUNTED if wanted else _BEFORE).items():
        _names_of(kind)["__dir__"] = names_of
    names = _names_of(object)
    held = names.pop("save", None)
    before = held.before if isinstance(held, _Save) else held
    if wanted or before is not None:
        names["save"] = _Save(before) if wanted else before
    for kind in _BEFORE:  # forget what lookups found before
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))


def mount() -> None:
    """Put everything in place."""
    mount_save()
    torch.Tensor.backward = backward  # type: ignore[assignment, method-assign]


def unmount() -> None:
    """Take everything away that `mount` put in place."""
    mount_save(False)
    if torch.Tensor.backward is backward:
        torch.Tensor.backward = TORCH_BACKWARD  # type: ignore[method-assign]

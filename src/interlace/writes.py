"""Replacements: a write is checked where it is written, against what it replaces.

`il.insist(value)` passes one value through unchecked; `il.config.checks = False` passes all.
"""

from dataclasses import dataclass
from typing import Any

import torch

from interlace.config import config
from interlace.errors import WriteError
from interlace.site import Site, Visit, spell
from interlace.trees import describe, mismatch


@dataclass(frozen=True, slots=True)
class Insisted:
    """A replacement that is not compared with what it replaces."""

    value: Any


def insist(value: Any) -> Any:
    """Write `value` as it is, whatever stood there.

    >>> import interlace as il
    >>> model = il.Model(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()))
    >>> with model.trace(torch.ones(1, 2)):
    ...     model[0].output = il.insist(torch.ones(4, 3))
    ...     out = model.output
    >>> out.shape
    torch.Size([4, 3])
    """
    return Insisted(value)


def replace(old: Any, new: Any, where: str, feature: str = "") -> Any:
    """What the model goes on with when `new` is written where `old` stood.

    Args:
        old: What stood there.
        new: What is written.
        where: The place, for an error.
        feature: The rest of the place; apart, since text that nobody reads takes time.

    Raises:
        WriteError: Structure, shape, dtype or device differ.
    """
    if not config.checks:
        return new.value if type(new) is Insisted else new
    both = type(new) is torch.Tensor and type(old) is torch.Tensor
    if both and new.shape == old.shape and new.dtype is old.dtype and new.device == old.device:
        return new
    if isinstance(new, Insisted):
        return new.value
    why = mismatch(old, new)
    if why is not None:
        raise WriteError(
            f"`{spell(where + feature)}` cannot be replaced: {why}.\n"
            f"Written: {describe(new)}. Replaced: {describe(old)}.\n"
            "To write it all the same: `il.insist(value)`."
        )
    return new


def replace_first(visit: Visit, value: Any, where: str) -> bool:
    """Write the first positional argument of a call, else the first keyword one; False when it has none.

    Raises:
        WriteError: `value` differs from what it replaces.
    """
    if visit.args:
        visit.args = (replace(visit.args[0], value, where), *visit.args[1:])
    elif visit.kwargs:
        first = next(iter(visit.kwargs))
        visit.kwargs = {**visit.kwargs, first: replace(visit.kwargs[first], value, where)}
    else:
        return False
    return True


def replace_inputs(visit: Visit, value: Any, where: str) -> None:
    """Write the whole `(args, kwargs)` of a call.

    Raises:
        WriteError: `value` is no such pair, or its parts differ from what they replace.
    """
    checked = not isinstance(value, Insisted)
    pair = value if checked else value.value
    if not (
        isinstance(pair, tuple)
        and len(pair) == 2
        and isinstance(pair[0], tuple)
        and isinstance(pair[1], dict)
    ):
        raise WriteError(
            f"`{spell(where)}` takes `(args, kwargs)`, a tuple and a dict, not {describe(pair)}."
        )
    if checked:
        replace((visit.args, visit.kwargs), pair, where)
    visit.args, visit.kwargs = pair


def _kin(kind: type) -> type:
    return torch.Tensor if issubclass(kind, torch.Tensor) else kind


def stand_in(value: Any, site: Site, kind: type | None, scanned: Visit | None) -> Any:
    """What a skipped call gives, compared with what is known of its output.

    Args:
        value: The replacement.
        site: The call that is skipped.
        kind: The type of its output at an earlier visit of the run, if that was seen.
        scanned: What a scan told.

    Raises:
        WriteError: The structure differs.
    """
    if isinstance(value, Insisted):
        return value.value
    if config.checks:
        if kind is not None and not isinstance(value, _kin(kind)):
            why: str | None = f"it is {describe(value)}, the module gave {kind.__name__} at an earlier visit"
        else:
            why = None if scanned is None else mismatch(scanned.result, value, structure=True)
        if why is not None:
            raise WriteError(
                f"{site.at('output')} cannot be skipped with this: {why}.\n"
                "To write it all the same: `il.insist(value)`."
            )
    return value

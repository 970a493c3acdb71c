"""What of a value is kept: detached or with its graph, a view or a copy, where, as what, at which positions."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from interlace.errors import InputError
from interlace.trees import describe, map_tensors

Keep = Callable[[Any], Any]
Positions = int | slice | Sequence[int] | None


def keeper(
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    detach: bool = True,
    clone: bool = False,
    positions: Positions = None,
    pos_axis: int | None = None,
) -> Keep:
    """What makes of a nested value the one that is kept.

    Args:
        device: Where tensors are kept; None for where they are.
        dtype: What floating-point tensors become; None for what they are.
        detach: Cut them off from the graph.
        clone: Copy them, so that what is done to them in place later does not show.
        positions: What to keep along the axis of positions.
        pos_axis: Which axis that is.

    Raises:
        InputError: `dtype` is none of floating point, or no positions are given for `pos_axis`.
    """
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise InputError(f"`dtype=` is a dtype of torch, such as torch.float16, not {dtype!r}.")
    if dtype is not None and not dtype.is_floating_point:
        raise InputError(f"`dtype=` is what floating-point values become, so it is not {dtype}.")
    if positions is None and pos_axis is not None:
        raise InputError("`pos_axis=` says where `positions=` are; give both.")
    chosen = _chosen(positions)

    def keep_tensor(tensor: torch.Tensor) -> torch.Tensor:
        kept = tensor.detach() if detach else tensor
        if chosen is not None:
            kept = _take(kept, chosen, pos_axis)
        kept = kept.to(device=device, dtype=dtype if kept.is_floating_point() else None)
        return kept.clone() if clone and shares(kept, tensor) else kept

    def keep(value: Any) -> Any:
        return keep_tensor(value) if isinstance(value, torch.Tensor) else map_tensors(keep_tensor, value)

    plain = device is None and dtype is None and not clone and positions is None
    if plain:
        return _detached if detach else _itself
    return keep


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if type(value) is tuple:  # what most modules return that return no tensor; quicker than the general way
        return tuple([None if part is None else _detached(part) for part in value])
    return map_tensors(torch.Tensor.detach, value)


def _itself(value: Any) -> Any:
    return value


def shares(kept: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether two tensors have their memory in common."""
    return kept.device == tensor.device and (
        kept.device.type == "meta" or kept.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    )


def _chosen(positions: Positions) -> Any:
    if positions is None or isinstance(positions, (int, slice)):
        return positions
    found = list(positions)
    if not all(isinstance(one, int) for one in found):
        raise InputError(f"`positions=` is an int, a slice or several ints, not {positions!r}.")
    return found


def _take(tensor: torch.Tensor, positions: Any, axis: int | None) -> torch.Tensor:
    if axis is None:
        if tensor.ndim < 3:
            return tensor  # `batch d_model`: it has no positions
        if tensor.ndim > 3:
            raise InputError(
                f"Which axis of a {describe(tensor)} has the positions is not known.\n"
                "Say it, `pos_axis=2` for `batch head pos d_head`, or leave such values out."
            )
        axis = 1
    if not -tensor.ndim <= axis < tensor.ndim:
        return tensor
    try:
        found: torch.Tensor = tensor[(slice(None),) * (axis % tensor.ndim) + (positions,)]
    except IndexError:
        raise InputError(f"`positions={positions}` are not in a {describe(tensor)}, axis {axis}.") from None
    return found

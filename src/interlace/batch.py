"""Put the inputs of several prompts into one call. A model class for another kind of input has its own way."""

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import torch

from interlace import trees
from interlace.errors import InputError
from interlace.rows import Rows

Input = tuple[tuple[Any, ...], dict[str, Any]]
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)

Batch = tuple[tuple[Any, ...], dict[str, Any], list[Rows]]
"""The arguments of one call, and which rows of it belong to each prompt."""


def concatenate(inputs: list[Input]) -> Batch:
    """Join prepared inputs along their first dimension.

    Args:
        inputs: `(args, kwargs)` of each prompt.

    Returns:
        The arguments of one call, and which rows of it belong to each prompt.

    Raises:
        InputError: They do not fit together; names the first two that differ, and the field.
    """
    first_args, first_kwargs = inputs[0]
    rows: list[Rows] = []
    end = 0
    for number, (args, kwargs) in enumerate(inputs):
        first = args[0] if args else None
        size = first.size(0) if type(first) is torch.Tensor and first.dim() else _rows(args, kwargs, number)
        if len(args) != len(first_args) or (
            (kwargs or first_kwargs) and kwargs.keys() != first_kwargs.keys()
        ):
            raise InputError(
                f"The inputs of invoke 0 and invoke {number} cannot be combined: one has {_fields(*inputs[0])}, the "
                f"other {_fields(args, kwargs)}."
            )
        rows.append(Rows(end, size, 0))
        end += size
    for own in rows:
        own.total = end
    joined: list[Any] = []
    for column in zip(*map(itemgetter(0), inputs), strict=True):
        joined.append(_join(list(column), f"argument {len(joined)}"))
    named: dict[str, Any] = {}
    for key in first_kwargs:
        named[key] = _join([kwargs[key] for _, kwargs in inputs], f"`{key}`")
    return tuple(joined), named, rows


def alone(row: Any) -> Input:
    """One row of a dataset as a batch of one: a tensor, a tuple of arguments, or a mapping of named ones.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(row, Mapping):
        return (), {name: _batch_of_one(value) for name, value in row.items()}
    if isinstance(row, tuple):
        return tuple(_batch_of_one(value) for value in row), {}
    return (_batch_of_one(row),), {}


def _batch_of_one(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value[None]
    try:
        return torch.as_tensor(value)[None]
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"A row of a dataset is a tensor, or a tuple or mapping of them, not {type(value).__name__}."
        ) from None


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any], number: int) -> int:
    for value in (*args, *kwargs.values()) if kwargs else args:
        for tensor in (value,) if isinstance(value, torch.Tensor) else trees.tensors(value):
            if tensor.dim():
                return tensor.size(0)
    raise InputError(
        f"The input of invoke {number} holds no tensor with a batch dimension, so it has no rows."
    )


def _fields(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    return f"{len(args)} positional" + (f" and {', '.join(map(repr, kwargs))}" if kwargs else "")


def _join(values: list[Any], field: str) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor) and first.dim():
        shape, dtype = first.shape, first.dtype
        for number, value in enumerate(values):
            same = isinstance(value, torch.Tensor) and (
                value.shape == shape or (value.dim() and value.shape[1:] == shape[1:])
            )
            if not same or value.dtype != dtype or value.is_meta != first.is_meta:
                raise InputError(
                    f"The inputs of invoke 0 and invoke {number} cannot be combined: {field} is "
                    f"{trees.describe(first)} and {trees.describe(value)}."
                )
        if any(value.device != first.device for value in values):  # each alone would be moved to the model
            values = [value.to(first.device) for value in values]
        return torch.cat(values) if len(values) > 1 else first
    inside = trees.children(first)
    if inside is None:
        for number, value in enumerate(values):
            if _differ(first, value):
                raise InputError(
                    f"The inputs of invoke 0 and invoke {number} cannot be combined: {field} is {_said(first)} and "
                    f"{_said(value)}, and one call takes one of them.\n"
                    "Give every invoke the same, or open a trace for each."
                )
        return first
    parts = [trees.children(value) for value in values]
    if any(part is None or len(part) != len(inside) for part in parts):
        raise InputError(f"The inputs of several invokes cannot be combined: {field} differs in structure.")
    joined = [
        _join([part[at][1] for part in parts if part], f"{field}{name}")
        for at, (name, _) in enumerate(inside)
    ]
    return trees.rebuild(first, joined)


def _differ(one: Any, other: Any) -> bool:
    """Whether two values without rows surely are not the same."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one is other or one.is_meta or other.is_meta:
            return False
        return (one.dtype, one.device) != (other.dtype, other.device) or not torch.equal(one, other)
    plain = isinstance(one, _PLAIN) or isinstance(other, _PLAIN)
    return plain and (type(one) is not type(other) or one != other)


def _said(value: Any) -> str:
    return trees.describe(value) if isinstance(value, torch.Tensor) and value.dim() else repr(value)

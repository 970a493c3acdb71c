"""What has to be known of torch's operations to run them on tensors without values.

Which write in place, which draw random numbers, which make tensors; and the tensors among the arguments of a
call, in the nests that torch takes.
"""

from collections.abc import Callable
from typing import Any

import torch

RANDOM = (
    "rand", "multinomial", "bernoulli", "dropout", "normal", "uniform", "exponential", "cauchy", "geometric",
    "poisson",
)  # fmt: skip
FACTORIES = frozenset({
    torch.arange, torch.zeros, torch.ones, torch.full, torch.eye, torch.tensor, torch.as_tensor,
    torch.scalar_tensor, torch.tril_indices, torch.triu_indices,
})  # fmt: skip
LARGER = frozenset(
    {"repeat", "repeat_interleave", "tile", "one_hot", "pad", "new_zeros", "new_ones", "new_full"}
)
_WRITES = frozenset({
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__",
    "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
})  # fmt: skip
STRICT = frozenset({"grouped_mm", "_grouped_mm"})
"""Operations for which torch has a rule of shapes in bfloat16 alone, though they take other dtypes."""


def in_bfloat16(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call one of `STRICT` in the dtype that torch has a rule for; what it gives has the dtype that it would have."""

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor

    given = next(tensor.dtype for tensor in tensors((args, kwargs)) if tensor.is_floating_point())
    return func(*swap(args, cast), **swap(kwargs, cast)).to(kwargs.get("out_dtype") or given)


def itself(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor."""
    return tensor


def written(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The tensor that an operation writes to."""
    found = kwargs.get("out")
    if found is None and args:
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place or name in _WRITES or kwargs.get("inplace"):
            found = args[0]
    return found if isinstance(found, torch.Tensor) else None


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors among arguments, in the nests that torch takes."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for part in value for tensor in tensors(part)]


def swap(value: Any, pick: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same arguments with other tensors."""
    if isinstance(value, torch.Tensor):
        return pick(value)
    if isinstance(value, dict):
        return {name: swap(part, pick) for name, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(swap(part, pick) for part in value)
    return value

"""The small tensors of a scan whose values are known, because they were counted out from integers.

They are computed with for real. A tensor of somebody else's is copied before, so that nothing is written to
it, and one that is written to with what has no values is known no longer.
"""

import weakref
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from interlace.torch_operations import tensors

COUNTED = 1 << 16
"""The most elements that are computed for real."""


class Known:
    """Which tensors have values in a scan.

    Args:
        real: Whether the device of the model is there to compute on.
    """

    def __init__(self, real: bool) -> None:
        self.real = real
        self._known: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._stale: dict[int, torch.UntypedStorage] = {}

    def note(self, value: Any) -> Any:
        """Know the tensors of a value from now on."""
        for tensor in tensors(value):
            self._known[id(tensor)] = tensor
        return value

    def counts(self, tensor: torch.Tensor) -> bool:
        """Whether what follows from the values of somebody else's tensor can be computed for real."""
        return (
            self.real
            and type(tensor) is torch.Tensor
            and tensor.device.type != "meta"
            and not tensor.dtype.is_floating_point
            and not tensor.dtype.is_complex
            and tensor.numel() <= COUNTED
        )

    def take(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        """A known copy of somebody else's tensor, the same each time."""
        with unset_fake_temporarily():
            copy: torch.Tensor = self.note(tensor.to(device, copy=True))
        self._copies[id(tensor)] = (tensor, copy)
        return copy

    def true(self, tensor: torch.Tensor) -> torch.Tensor:
        """The copy of a tensor, if it has one, else itself."""
        held = self._copies.get(id(tensor))
        return tensor if held is None else held[1]

    def find(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The tensor to compute with in place of a real one, if its values are known and few."""
        copy = self.true(tensor)
        if self._known.get(id(copy)) is not copy:
            if not self.counts(tensor):
                return None
            copy = self.take(tensor, tensor.device)
        return None if copy.numel() > COUNTED or self.is_stale(copy) else copy

    def lose(self, tensor: torch.Tensor) -> None:
        """A tensor has been written to, with what has no values."""
        store = self.true(tensor).untyped_storage()
        self._stale[store._cdata] = store

    def is_stale(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor, or one that it is a view of, has been written to so."""
        if not self._stale or isinstance(tensor, FakeTensor) or tensor.layout != torch.strided:
            return False
        return self.true(tensor).untyped_storage()._cdata in self._stale

    def clear(self) -> None:
        """Hold nothing any longer."""
        self._known.clear()
        self._copies.clear()
        self._stale.clear()

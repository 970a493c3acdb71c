"""How many bytes the tensors of a run hold at a time, and what of it is held in the end. Knows nothing of models."""

import weakref
from dataclasses import dataclass
from typing import Any

import torch

from interlace.trees import tensors


@dataclass(slots=True)
class Stored:
    """The memory behind some tensors: how many bytes, and whether anything still holds it."""

    bytes: int
    held: bool = True


class Memory:
    """What the operations of a run hold at a time.

    Attributes:
        now: Bytes that are held.
        peak: The most bytes that were held at once.
    """

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self._stores: dict[int, tuple[Stored, Any]] = {}

    def made(self, tensor: torch.Tensor) -> None:
        """An operation has given a tensor."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._stores:
            return
        stored = Stored(storage.nbytes())
        self.now += stored.bytes
        self.peak = max(self.peak, self.now)
        this = weakref.ref(self)

        def freed(ref: object) -> None:  # noqa: ARG001
            memory = this()
            stored.held = False
            if memory is not None:
                memory.now -= stored.bytes
                memory._stores.pop(key, None)

        self._stores[key] = stored, weakref.ref(storage, freed)

    def behind(self, value: Any) -> list[Stored]:
        """The memory behind the tensors of a value, each once."""
        keys = {t.untyped_storage()._cdata for t in tensors(value) if t.layout == torch.strided}
        return [self._stores[key][0] for key in keys if key in self._stores]

    def close(self) -> None:
        """What is held stays held, as far as anybody is told."""
        self._stores.clear()

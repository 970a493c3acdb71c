"""Which rows of a batch belong to one prompt.

Tensors whose first dimension is the size of the batch have them; everything else passes through as it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from interlace import trees


@dataclass(slots=True)
class Rows:
    """Which rows of a batch belong to one prompt.

    Attributes:
        start: The first one.
        size: How many.
        total: Of the batch.
        padding: Positions on the left that a longer prompt of the batch brought.
        length: Positions of the batch, padding included.
        copies: How often a run may repeat each row, the copies next to each other: a beam search, say.
    """

    start: int
    size: int
    total: int
    padding: int = 0
    length: int = 0
    copies: tuple[int, ...] = ()

    def among(self, size: int) -> "Rows | None":
        """These rows among so many: themselves, their copies, or None where there are no rows of prompts."""
        if size == self.total:
            return self
        for times in self.copies:
            if size == self.total * times:
                return replace(self, start=self.start * times, size=self.size * times, total=size, copies=())
        return None

    def has(self, value: object) -> bool:
        """Whether a value has a row for every prompt."""
        return isinstance(value, torch.Tensor) and value.dim() > 0 and self.among(value.size(0)) is not None

    def narrow(self, value: Any) -> Any:
        """The rows of every tensor in a nested value."""
        return trees.map_tensors(self._narrow, value)

    def _narrow(self, value: torch.Tensor) -> torch.Tensor:
        own = self.among(value.size(0)) if value.dim() else None
        return value if own is None else value.narrow(0, own.start, own.size)

    def unpadded(self, value: torch.Tensor, dims: Iterable[int], steps: int | None) -> torch.Tensor:
        """What of these rows is there without the other prompts; a view.

        Args:
            value: Of this prompt.
            dims: Its axes that count positions.
            steps: After how many generated tokens these rows ended, if they have.
        """
        for dim in dims:
            size = value.size(dim)
            if size >= self.length:  # else the positions of one step of a generation
                end = size if steps is None else min(size, self.length + steps)
                value = value.narrow(dim, self.padding, end - self.padding)
        return value

"""Which rows of a batch belong to one prompt.

Tensors whose first dimension is the size of the batch have them; everything else passes through as it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from interlace import trees


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of a batch belong to one prompt.

    Attributes:
        start: The first one.
        size: How many.
        total: Of the batch.
        padding: Positions on the left that a longer prompt of the batch brought.
        length: Positions of the batch, padding included.
    """

    start: int
    size: int
    total: int
    padding: int = 0
    length: int = 0

    def has(self, value: object) -> bool:
        """Whether a value has a row for every prompt."""
        return isinstance(value, torch.Tensor) and value.dim() > 0 and value.size(0) == self.total

    def narrow(self, value: Any) -> Any:
        """The rows of every tensor in a nested value."""
        return trees.map_tensors(self._narrow, value)

    def _narrow(self, value: torch.Tensor) -> torch.Tensor:
        return value.narrow(0, self.start, self.size) if self.has(value) else value

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

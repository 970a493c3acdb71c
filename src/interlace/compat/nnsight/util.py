"""`WrapperModule`, under the path where nnsight documents it."""

from typing import Any

from torch import nn


class WrapperModule(nn.Module):
    """A module that passes its input through: a place to attach, call with `hook=True`, and read.

    >>> WrapperModule()(3)
    3
    """

    def forward(self, *args: Any) -> Any:
        """Give one argument back as it is, several as a tuple."""
        return args[0] if len(args) == 1 else args

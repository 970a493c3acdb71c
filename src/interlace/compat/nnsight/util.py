"""`WrapperModule`, `apply` and `fetch_attr`, under the path where nnsight documents them."""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from torch import nn

from interlace.trees import map_leaves


class WrapperModule(nn.Module):
    """A module that passes its input through: a place to attach, call with `hook=True`, and read.

    >>> WrapperModule()(3)
    3
    """

    def forward(self, *args: Any) -> Any:
        """Give one argument back as it is, several as a tuple."""
        return args[0] if len(args) == 1 else args


def apply(data: Any, fn: Callable[[Any], Any], cls: type) -> Any:
    """Replace every `cls` inside nested containers by `fn` of it.

    >>> apply((1, {"a": [2, "b"]}), lambda number: number + 1, int)
    (2, {'a': [3, 'b']})
    """
    return map_leaves(lambda leaf: fn(leaf) if isinstance(leaf, cls) else leaf, data)


def fetch_attr(object: Any, target: str) -> Any:  # noqa: A002  (nnsight's name)
    """What a dotted path leads to.

    >>> fetch_attr(nn.Sequential(nn.Linear(2, 3)), "0.out_features")
    3
    """
    return attrgetter(target)(object) if target else object

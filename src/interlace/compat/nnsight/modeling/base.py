"""`NNsight`, under the path where nnsight documents it."""

from interlace.compat.nnsight.intervention.base import NNsight

__all__ = ["NNsight"]

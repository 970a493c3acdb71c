"""The documented import paths `nnsight.intervention.backends.*`."""

from interlace.compat.nnsight.intervention.backends import remote

__all__ = ["remote"]

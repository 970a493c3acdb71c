"""The documented import paths `nnsight.schema.*`."""

from interlace.compat.nnsight.schema import config

__all__ = ["config"]

"""`save`, under the path where nnsight documents it."""

from interlace.saving import save

__all__ = ["save"]

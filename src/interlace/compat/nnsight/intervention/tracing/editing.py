"""What `model.edit()` opens."""

from interlace.edit import EditBlock as EditingTracer

__all__ = ["EditingTracer"]

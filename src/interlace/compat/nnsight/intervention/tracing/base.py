"""The tracer, and the error of a block that cannot be captured."""

from interlace.capture import CaptureError as WithBlockNotFoundError
from interlace.trace import Trace as Tracer

__all__ = ["Tracer", "WithBlockNotFoundError"]

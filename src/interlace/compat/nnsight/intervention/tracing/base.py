"""The tracer, and the error of a block that cannot be captured."""

from interlace.capture import CaptureError as WithBlockNotFoundError
from interlace.compat.nnsight.intervention.tracing.tracer import Tracer

__all__ = ["Tracer", "WithBlockNotFoundError"]

"""What `with model.trace(...) as tracer:` binds, and what it makes."""

from interlace.invoke import Barrier
from interlace.trace import Trace as InterleavingTracer

Tracer = InterleavingTracer

__all__ = ["Barrier", "InterleavingTracer", "Tracer"]

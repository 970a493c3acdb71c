"""The documented import paths `nnsight.intervention.tracing.*`."""

from interlace.compat.nnsight.intervention.tracing import base, editing, invoker, iterator, tracer

__all__ = ["base", "editing", "globals", "invoker", "iterator", "tracer"]

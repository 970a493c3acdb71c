"""What `tracer.iter` is."""

from interlace.steps import Iter as IteratorProxy
from interlace.steps import Loop as IteratorTracer

__all__ = ["IteratorProxy", "IteratorTracer"]

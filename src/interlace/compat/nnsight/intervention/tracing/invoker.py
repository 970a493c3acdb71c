"""What `tracer.invoke(...)` makes."""

from interlace.invoke import Invoke as Invoker

__all__ = ["Invoker"]

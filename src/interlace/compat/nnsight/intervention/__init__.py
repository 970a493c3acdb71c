"""The documented import paths `nnsight.intervention.*`."""

from interlace.compat.nnsight.intervention import backends, base, envoy, hooks, interleaver, tracing

__all__ = ["backends", "base", "envoy", "hooks", "interleaver", "tracing"]

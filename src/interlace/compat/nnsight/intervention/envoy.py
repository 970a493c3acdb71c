"""The stand-in of a module, and values of one's own on it."""

from interlace.compat.nnsight.intervention.eproperty import eproperty
from interlace.envoy import Envoy

__all__ = ["Envoy", "eproperty"]

"""The errors of requests, and `eproperty`, under the path where nnsight documents them."""

from interlace.compat.nnsight.intervention.eproperty import eproperty
from interlace.errors import OrderError, RunEnded, TraceError

EarlyStopException = RunEnded


class Mediator:
    """The errors of a block's requests. Every error of a request here is a `MissedProviderError`."""

    MissedProviderError = TraceError
    OutOfOrderError = OrderError


__all__ = ["EarlyStopException", "Mediator", "eproperty"]

"""The error of a block that cannot be kept as a function."""

from interlace.errors import TraceError


class CaptureError(TraceError):
    """A `with` block that must run later cannot be made into a function. Nothing of it has run."""

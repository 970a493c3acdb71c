"""The version of this library: files that it writes carry it."""

__version__ = "0.1.0"

"""Decorators that say which value an `eproperty` stands on; here its key says it."""

from typing import TypeVar

T = TypeVar("T")


def requires_output(stub: T) -> T:
    """Return the stub of an `eproperty` of an output."""
    return stub


def requires_input(stub: T) -> T:
    """Return the stub of an `eproperty` of an input."""
    return stub

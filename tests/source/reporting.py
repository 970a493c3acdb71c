"""Reporters for tests: one that lists what it is told, and how to rewrite a callable with it."""

from collections.abc import Callable
from typing import Any

from interlace.source.callables import innermost, rebuilt
from interlace.source.rewrite import Rewritten, rewrite


class Listing:
    """Does what it is asked to and lists the names of the operations in the order in which they ran."""

    def __init__(self, rewritten: Rewritten) -> None:
        self.rewritten = rewritten
        self.names: list[str] = []

    def call(self, at: int, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        self.names.append(self.rewritten.operations[at].name)
        return result

    def operator(self, at: int, /, *operands: Any) -> Any:
        function = self.rewritten.operations[at].function
        assert function is not None
        return self.call(at, function, *operands)

    def value(self, at: int, value: Any, /) -> Any:
        self.names.append(self.rewritten.operations[at].name)
        return value


def reporting(target: Callable[..., Any]) -> tuple[Callable[..., Any], Listing]:
    """`target` rewritten, and what will have run."""
    function = innermost(target)
    rewritten = rewrite(function)
    listing = Listing(rewritten)
    return rebuilt(target, rewritten.bind(function, listing)), listing

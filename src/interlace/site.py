"""Locations in a model, and the occasions on which a run comes past them.

A `Site` is a place: a module's call, or an operation of one. It has two ports, `input` and `output`. A
`Visit` is one occasion on which a run reaches a site. This is the only module that turns a location into
text.
"""

from dataclasses import dataclass
from typing import Any, Literal

from interlace.errors import OrderError

Port = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class Site:
    """A place in a model: the key that identifies it for a run, and the path that a reader knows it by."""

    key: Any
    path: str

    def at(self, port: Port, number: int = 0) -> str:
        """The place as text, with the visit when it is not the first.

        >>> Site(0, "model.h.3").at("output", 2)
        '`model.h[3].output` (visit 2)'
        """
        return f"`{spell(self.path)}.{port}`" + (f" (visit {number})" if number else "")

    def under(self, other: "Site") -> bool:
        """Whether this place lies inside the other one."""
        return self.path.startswith(other.path + ".")


class Visit:
    """One occasion on which a run reaches a site, with the values that are at hand.

    `port` says which side of the call the run is at. What is written to `args`, `kwargs` and `result` is what
    the model goes on with; `skipped` means that `result` stands in for the call.
    """

    __slots__ = ("__weakref__", "args", "key", "kwargs", "number", "port", "result", "skipped")

    def __init__(
        self,
        key: Any,
        number: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        port: Port = "input",
        result: Any = None,
    ) -> None:
        self.key = key
        self.number = number
        self.args = args
        self.kwargs = kwargs
        self.port = port
        self.result = result
        self.skipped = False


class Past(Visit):
    """A visit that is over and can still be read; a write to it raises.

    Args:
        visit: The visit.
        where: The place as text.
    """

    __slots__ = ("where",)

    where: str

    def __init__(self, visit: Visit, where: str) -> None:
        for name in ("args", "key", "kwargs", "number", "port", "result", "skipped"):
            object.__setattr__(self, name, getattr(visit, name))
        object.__setattr__(self, "where", where)

    def __setattr__(self, name: str, value: Any) -> None:
        raise OrderError(
            f"{self.where} has passed: the model ran to its end in search of another step. It can be read, not "
            "changed.\nTo change it, bound the loop: `for step in tracer.iter[:n]:` stops after step n - 1."
        )


def spell(path: str) -> str:
    """A dotted module path the way one would type it.

    >>> spell("model.transformer.h.5.mlp")
    'model.transformer.h[5].mlp'
    """
    first, *rest = path.split(".")
    return first + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in rest)

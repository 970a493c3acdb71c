"""The rows of one prompt in a batch: narrow what the model holds to them, splice what was edited back.

Tensors whose first dimension is the size of the batch are narrowed; everything else passes through as it
is. Without gradients the narrowed tensors are views, so that an in-place edit is the model's at once. With
gradients they are copies that are joined again, since one prompt's in-place edit would otherwise void what
another's backward needs.
"""

from dataclasses import dataclass
from typing import Any

import torch

from interlace import trees
from interlace.recall import Key, weakly
from interlace.site import Port, Visit


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of a batch belong to one prompt."""

    start: int
    size: int
    total: int

    def has(self, value: object) -> bool:
        """Whether a value has a row for every prompt."""
        return isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == self.total

    def narrow(self, value: Any) -> Any:
        """The rows of every tensor in a nested value."""
        return trees.map_tensors(self._narrow, value)

    def _narrow(self, value: torch.Tensor) -> torch.Tensor:
        if not self.has(value):
            return value
        rows = value.narrow(0, self.start, self.size)
        return rows.clone() if rows.requires_grad else rows

    def splice(self, whole: Any, rows: Any) -> Any:
        """A nested value with the rows of one prompt replaced."""
        inside, parts = trees.children(whole), trees.children(rows)
        if inside is None or parts is None or len(inside) != len(parts):
            return self._splice(whole, rows)
        new = [self.splice(old, part) for (_, old), (_, part) in zip(inside, parts, strict=True)]
        if all(part is old for part, (_, old) in zip(new, inside, strict=True)):
            return whole
        return trees.rebuild(whole, new)

    def _splice(self, whole: Any, rows: Any) -> Any:
        if not self.has(whole) or not isinstance(rows, torch.Tensor):
            return rows
        if not rows.requires_grad and rows._base is not None and self._is_view(whole, rows):
            return whole
        after = self.start + self.size
        return torch.cat([whole[: self.start], rows, whole[after:]])

    def _is_view(self, whole: torch.Tensor, rows: torch.Tensor) -> bool:
        own = whole.narrow(0, self.start, self.size)
        return own.data_ptr() == rows.data_ptr() and own.shape == rows.shape and own.stride() == rows.stride()


class RowVisit:
    """A visit as one prompt sees it: the same names as a `Visit`, with its rows only."""

    __slots__ = ("_given", "_rows", "_visit")

    def __init__(self, visit: Visit, rows: Rows) -> None:
        self._visit = visit
        self._rows = rows
        self._given: dict[str, Any] = {}

    @property
    def key(self) -> Any:
        """The key of the site."""
        return self._visit.key

    @property
    def number(self) -> int:
        """Which occurrence, from 0."""
        return self._visit.number

    @property
    def port(self) -> Port:
        """The side of the call."""
        return self._visit.port

    @property
    def skipped(self) -> bool:
        """Whether the call does not run."""
        return self._visit.skipped

    def _get(self, field: str) -> Any:
        if field not in self._given:
            self._given[field] = self._rows.narrow(getattr(self._visit, field))
        return self._given[field]

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments."""
        value: tuple[Any, ...] = self._get("args")
        return value

    @args.setter
    def args(self, value: tuple[Any, ...]) -> None:
        self._given["args"] = value

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments."""
        value: dict[str, Any] = self._get("kwargs")
        return value

    @kwargs.setter
    def kwargs(self, value: dict[str, Any]) -> None:
        self._given["kwargs"] = value

    @property
    def result(self) -> Any:
        """What the call returned."""
        return self._get("result")

    @result.setter
    def result(self, value: Any) -> None:
        self._given["result"] = value

    def remember(self, reads: dict[Key, Any]) -> None:
        """Note, without keeping it alive, what the block has seen and made of its rows."""
        given = self._given
        if "result" in given:
            reads[self.key, "output", self.number] = weakly(given["result"])
        args, kwargs = given.get("args", ()), given.get("kwargs", {})
        if args or kwargs:
            first = args[0] if args else next(iter(kwargs.values()))
            reads[self.key, "input", self.number] = weakly(first)

    def join(self) -> None:
        """Hand the rows back to the model."""
        visit, rows = self._visit, self._rows
        for field, value in self._given.items():
            setattr(visit, field, rows.splice(getattr(visit, field), value))
        self._given.clear()

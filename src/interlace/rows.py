"""The rows of one prompt in a batch: narrow what the model holds to them, splice what was edited back.

Tensors whose first dimension is the size of the batch are narrowed; everything else passes through as it
is. Without gradients the narrowed tensors are views, so that an in-place edit is the model's at once. With
gradients they are copies that are joined again, since one prompt's in-place edit would otherwise void what
another's backward needs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from interlace import trees
from interlace.site import Port, Visit

VIEW, COPY, JOINED = range(3)
Mark = tuple[torch.Tensor, torch.Tensor, int, int]
"""A tensor that was handed out, what it was narrowed from, how, and its address or version then."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows of a batch belong to one prompt."""

    start: int
    size: int
    total: int

    def has(self, value: object) -> bool:
        """Whether a value has a row for every prompt."""
        return isinstance(value, torch.Tensor) and value.dim() > 0 and value.size(0) == self.total

    def narrow(self, value: Any) -> Any:
        """The rows of every tensor in a nested value."""
        return trees.map_tensors(self._narrow, value)

    def _narrow(self, value: torch.Tensor) -> torch.Tensor:
        return value.narrow(0, self.start, self.size) if self.has(value) else value

    def splice(self, whole: Any, value: Any) -> Any:
        """A nested value with the rows of one prompt replaced."""
        return _splice(whole, [(Piece(self), value)])


class Piece:
    """One field of a visit as one prompt has it: what was handed out, and what stands there now."""

    __slots__ = ("marks", "rows", "value")

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.marks: dict[int, Mark] = {}
        self.value: Any = None

    def take(self, whole: Any, copy: bool) -> None:
        """Hand out the rows of a value, and remember what they are."""
        if isinstance(whole, torch.Tensor):
            self.value = self._take(whole, copy)
        else:
            self.value = trees.map_tensors(lambda tensor: self._again(tensor, copy), whole)

    def _again(self, whole: torch.Tensor, copy: bool) -> torch.Tensor:
        """The same rows for a tensor that stands in two places."""
        found = next((mark[0] for mark in self.marks.values() if mark[1] is whole), None)
        return self._take(whole, copy) if found is None else found

    def _take(self, whole: torch.Tensor, copy: bool) -> torch.Tensor:
        rows = self.rows
        if whole.dim() == 0 or whole.size(0) != rows.total:
            return whole
        own = whole.narrow(0, rows.start, rows.size)
        if copy:
            own = own.clone()
            self.marks[id(own)] = (own, whole, COPY, _version(own))
        else:
            self.marks[id(own)] = (own, whole, VIEW, _address(own))
        return own

    def touched(self, value: Any, whole: Any) -> bool:
        """Whether what stands where `whole` was narrowed is something that the model does not have yet."""
        if value is whole:
            return False
        mark = self.marks.get(id(value))
        if mark is None or mark[1] is not whole:
            return True
        if mark[2] == VIEW:
            return _address(value) != mark[3] or (value.requires_grad and not whole.requires_grad)
        return _version(value) != mark[3] or (mark[2] == COPY and value.requires_grad)


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _address(tensor: torch.Tensor) -> int:
    """Where its values are: `tensor.data = other` leaves the tensor the same object."""
    return tensor.data_ptr() if type(tensor) is torch.Tensor else 0


def _splice(whole: Any, pieces: list[tuple[Piece, Any]]) -> Any:
    inside = trees.children(whole)
    if inside is None:
        return _splice_leaf(whole, pieces)
    parts = [(piece, trees.children(value)) for piece, value in pieces]
    for (_, value), (_, own) in zip(pieces, parts, strict=True):
        if own is None or len(own) != len(inside):
            return value  # insisted on
    new = [
        _splice(old, [(piece, own[at][1]) for piece, own in parts if own is not None])
        for at, (_, old) in enumerate(inside)
    ]
    if all(part is old for part, (_, old) in zip(new, inside, strict=True)):
        return whole
    return trees.rebuild(whole, new)


def _splice_leaf(whole: Any, pieces: list[tuple[Piece, Any]]) -> Any:
    changed = [(piece.rows, value) for piece, value in pieces if piece.touched(value, whole)]
    if not changed:
        return whole
    last = changed[-1][1]
    if not changed[0][0].has(whole) or not all(isinstance(value, torch.Tensor) for _, value in changed):
        return last
    parts, at = [], 0
    for rows, value in sorted(changed, key=lambda each: each[0].start):
        if rows.start > at:
            parts.append(whole.narrow(0, at, rows.start - at))
        parts.append(value)
        at = rows.start + rows.size
    if at < whole.size(0):
        parts.append(whole.narrow(0, at, whole.size(0) - at))
    new = torch.cat(parts)
    for piece, value in pieces:  # a block that goes on at this visit may edit what it holds once more
        piece.marks[id(value)] = (value, new, JOINED, _version(value))
    return new


class RowVisit:
    """A visit as one prompt sees it: the same names as a `Visit`, with its rows only."""

    __slots__ = ("pieces", "rows", "visit")

    def __init__(self, visit: Visit, rows: Rows) -> None:
        self.visit = visit
        self.rows = rows
        self.pieces: dict[str, Piece] = {}

    @property
    def key(self) -> Any:
        """The key of the site."""
        return self.visit.key

    @property
    def number(self) -> int:
        """Which occurrence, from 0."""
        return self.visit.number

    @property
    def port(self) -> Port:
        """The side of the call."""
        return self.visit.port

    @property
    def skipped(self) -> bool:
        """Whether the call does not run."""
        return self.visit.skipped

    def _piece(self, field: str) -> Piece:
        piece = self.pieces.get(field)
        if piece is None:
            piece = self.pieces[field] = Piece(self.rows)
            # What a call was made with is not the model's to take any more once the call is over.
            ahead = field == "result" or self.visit.port == "input"
            piece.take(getattr(self.visit, field), ahead and torch.is_grad_enabled())
        return piece

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments."""
        value: tuple[Any, ...] = self._piece("args").value
        return value

    @args.setter
    def args(self, value: tuple[Any, ...]) -> None:
        self._piece("args").value = value

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments."""
        value: dict[str, Any] = self._piece("kwargs").value
        return value

    @kwargs.setter
    def kwargs(self, value: dict[str, Any]) -> None:
        self._piece("kwargs").value = value

    @property
    def result(self) -> Any:
        """What the call returned."""
        piece = self.pieces.get("result")
        return self._piece("result").value if piece is None else piece.value

    @result.setter
    def result(self, value: Any) -> None:
        self._piece("result").value = value


def join(visit: Visit, views: Iterable[RowVisit]) -> None:
    """Hand the rows of all prompts back to the model, each field at once."""
    fields: dict[str, list[tuple[Piece, Any]]] = {}
    for view in views:
        for field, piece in view.pieces.items():
            if field in fields:
                fields[field].append((piece, piece.value))
            else:
                fields[field] = [(piece, piece.value)]
    for field, pieces in fields.items():
        whole = getattr(visit, field)
        new = _splice(whole, pieces)
        if new is not whole:
            setattr(visit, field, new)


def stack(values: list[Any]) -> Any:
    """Nested values of several prompts as one, their tensors one below the other."""
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values) if first.dim() else first
    inside = trees.children(first)
    if inside is None:
        return first
    columns = zip(*(trees.children(value) or () for value in values), strict=True)
    return trees.rebuild(first, [stack([part for _, part in column]) for column in columns])

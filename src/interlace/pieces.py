"""What each prompt has of one visit: its rows of what the model holds, handed out and joined again.

Without gradients the rows are views, so that an in-place edit is the model's at once. With gradients they
are copies that are joined again, since one prompt's in-place edit would otherwise void what another's
backward needs.
"""

from collections.abc import Iterable
from typing import Any

import torch

from interlace import trees
from interlace.errors import WriteError
from interlace.rows import Rows
from interlace.site import Port, Visit

_grad = torch.is_grad_enabled
VIEW, COPY, JOINED = range(3)
Place = tuple[int, tuple[int, ...], tuple[int, ...]] | None
"""Address, shape and strides of a tensor; None for one that has no such."""
Mark = tuple[torch.Tensor, int, Place, int]
"""A tensor that was handed out, how, and its place and version then."""


class Piece:
    """One field of a visit as one prompt has it.

    Args:
        copy: Whether the rows are copied, not viewed.

    Attributes:
        whole: What the rows were taken from.
        value: What stands there now.
        fits: Whether `whole` is a tensor with so many rows as the batch.
    """

    __slots__ = ("_marks", "fits", "rows", "value", "whole")

    def __init__(self, rows: Rows, whole: Any, copy: bool) -> None:
        self.rows = rows
        self.whole = whole
        self._marks: dict[int, Mark] = {}  # by the identity of the tensor that they were taken from
        self.fits = isinstance(whole, torch.Tensor) and whole.dim() > 0 and whole.size(0) == rows.total
        self.value: Any
        if isinstance(whole, torch.Tensor):
            self.value = self._take(whole, copy)
        else:  # a tensor may stand in two places
            known = self._marks
            self.value = trees.map_tensors(
                lambda tensor: known[id(tensor)][0] if id(tensor) in known else self._take(tensor, copy),
                whole,
            )

    def _take(self, whole: torch.Tensor, copy: bool) -> torch.Tensor:
        """Hand out the rows of one tensor, and remember what they are."""
        rows, shape = self.rows, whole.shape
        if not shape:
            return whole
        if shape[0] != rows.total:
            among = rows.among(shape[0])
            if among is None:
                return whole
            rows = among
        own = whole[rows.start : rows.start + rows.size]
        if copy:
            own = own.clone()
            self._marks[id(whole)] = (own, COPY, _place(own), _version(own))
        else:
            self._marks[id(whole)] = (own, VIEW, _place(own), 0)
        return own

    def touched(self, whole: Any, value: Any) -> bool:
        """Whether what stands where the rows of `whole` were is something that the model does not have yet."""
        if value is whole:
            return False
        mark = self._marks.get(id(whole))
        if mark is None or mark[0] is not value:
            return True
        _, how, place, version = mark
        if _place(value) != place:
            return True
        if how == VIEW:
            return value.requires_grad and not whole.requires_grad
        if value.is_inference():
            return True  # it has no version; handing it back unchanged does no harm
        return value._version != version or (how == COPY and value.requires_grad)

    def edited(self) -> bool:
        """Whether any of it is touched."""
        whole = self.whole
        if isinstance(whole, torch.Tensor):
            return self.touched(whole, self.value)
        pairs = _pairs(whole, self.value)
        return pairs is None or any(self.touched(whole, value) for whole, value in pairs)

    def shares(self) -> bool:
        """Whether something in it is touched that may have no rows, so that it is every prompt's."""
        pairs = _pairs(self.whole, self.value)
        return pairs is None or any(
            not self.rows.has(whole) and self.touched(whole, value) for whole, value in pairs
        )

    def keep(self) -> None:
        """The model has it now; a block that goes on at this visit may edit what it holds once more."""
        for whole, value in _pairs(self.whole, self.value) or ():
            if isinstance(value, torch.Tensor) and value is not whole:
                self._marks[id(whole)] = (value, JOINED, _place(value), _version(value))


def _place(tensor: torch.Tensor) -> Place:
    """Where it lies: all that `tensor.data = other`, or turning it in place, changes of the same object."""
    if type(tensor) is not torch.Tensor or tensor.layout is not torch.strided:
        return None
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _pairs(whole: Any, value: Any) -> list[tuple[Any, Any]] | None:
    """The leaves of two nested values, side by side; None where they are not alike."""
    inside = trees.children(whole)
    if inside is None:
        return [(whole, value)]
    own = trees.children(value)
    if own is None or len(own) != len(inside):
        return None
    found = []
    for (_, old), (_, new) in zip(inside, own, strict=True):
        pairs = _pairs(old, new)
        if pairs is None:
            return None
        found += pairs
    return found


Part = tuple[Piece, Any, Any]
"""A piece, the part of its `whole` that is looked at, and what stands there now."""


Made = dict[tuple[int, ...], Any]
"""What has been made of a leaf, by the identities of the leaf and of what stands there now."""


def _splice(whole: Any, parts: list[Part], made: Made) -> Any:
    inside = trees.children(whole)
    if inside is None:
        key = (id(whole), *(id(value) for *_, value in parts))
        if key not in made:  # else one object stands in two places, and goes on doing so
            touched = [(piece.rows, value) for piece, base, value in parts if piece.touched(base, value)]
            made[key] = _splice_leaf(whole, touched)
        return made[key]
    below: list[list[Part]] = [[] for _ in inside]
    for piece, base, value in parts:
        own, old = trees.children(value), trees.children(base)
        if own is None or old is None or not len(own) == len(old) == len(inside):
            return value  # insisted on
        for at, ((_, was), (_, now)) in enumerate(zip(old, own, strict=True)):
            below[at].append((piece, was, now))
    new = [_splice(part, at, made) for (_, part), at in zip(inside, below, strict=True)]
    if all(part is old for part, (_, old) in zip(new, inside, strict=True)):
        return whole
    return trees.rebuild(whole, new)


def _splice_leaf(whole: Any, changed: list[tuple[Rows, Any]]) -> Any:
    if not changed:
        return whole
    size = whole.size(0) if isinstance(whole, torch.Tensor) and whole.dim() else None
    if size != changed[0][0].total:
        if size is None or changed[0][0].among(size) is None:
            return changed[-1][1]
        changed = [(rows.among(size) or rows, value) for rows, value in changed]
    for _, value in changed:
        if not isinstance(value, torch.Tensor):
            return changed[-1][1]
    if len(changed) > 1:
        changed.sort(key=_start)
    pieces, at = [], 0
    for rows, value in changed:
        if rows.start > at:
            pieces.append(whole[at : rows.start])
        pieces.append(value)
        at = rows.start + rows.size
    if at < size:
        pieces.append(whole[at:])
    try:
        return torch.cat(pieces)
    except RuntimeError as error:
        strange = next((value for _, value in changed if value.shape[1:] != whole.shape[1:]), changed[-1][1])
        raise WriteError(
            f"A replacement does not fit beside the rows of other prompts: {trees.describe(strange)} in "
            f"{trees.describe(whole)}.\nA prompt whose values have another shape needs a trace of its own."
        ) from error


def _start(each: tuple[Rows, Any]) -> int:
    return each[0].start


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
            visit = self.visit
            # What a call was made with is not the model's to take any more once the call is over.
            copy = (field == "result" or visit.port == "input") and _grad()
            piece = self.pieces[field] = Piece(self.rows, getattr(visit, field), copy)
        return piece

    def shares(self) -> bool:
        """Whether something was replaced that may have no rows, so that it is every prompt's."""
        return any(piece.shares() for piece in self.pieces.values())

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
        return self._piece("result").value

    @result.setter
    def result(self, value: Any) -> None:
        self._piece("result").value = value


def join(visit: Visit, views: Iterable[RowVisit], again: bool = False) -> None:
    """Hand the rows of all prompts back to the model, each field at once.

    Args:
        visit: What the rows are of.
        views: What each prompt has of it.
        again: Whether blocks will go on at this visit.
    """
    fields: dict[str, list[Part]] = {}
    for view in views:
        for field, piece in view.pieces.items():
            if piece.edited():
                part = piece, piece.whole, piece.value
                if field in fields:
                    fields[field].append(part)
                else:
                    fields[field] = [part]
    for field, parts in fields.items():
        whole = getattr(visit, field)
        if type(whole) is torch.Tensor:  # every part of a tensor is touched
            new = _splice_leaf(whole, [(piece.rows, value) for piece, _, value in parts])
        else:
            new = _splice(whole, parts, {})
        if new is not whole:
            setattr(visit, field, new)
    if again:
        for view in views:
            for piece in view.pieces.values():
                piece.keep()


def splice(rows: Rows, whole: Any, value: Any) -> Any:
    """A nested value with the rows of one prompt replaced."""
    # It has handed out no rows, so whatever is not the model's own is new.
    nothing = Piece(rows, None, copy=False)
    return _splice(whole, [(nothing, whole, value)], {})


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

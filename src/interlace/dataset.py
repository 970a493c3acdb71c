"""The rows of a dataset that is recorded: prepared for the model, told apart, and grouped into batches and files."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from interlace import trees
from interlace.errors import InputError
from interlace.keeping import Positions

Input = tuple[tuple[Any, ...], dict[str, Any]]

CHUNK = 256
"""How many rows are prepared at a time."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row, prepared.

    Attributes:
        number: Which it is, from 0.
        input: What the model is called with, as a batch of one.
        real: Which of its positions are no padding.
        kept: Which of the real ones are kept, counted in the row.
        digest: Tells it from another row.
    """

    number: int
    input: Input
    real: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def digest(self) -> str:
        """What tells it from a row that holds something else."""
        found = hashlib.blake2b(digest_size=8)
        for tensor in trees.tensors(self.input):
            found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(_bytes(tensor))
        return found.hexdigest()

    @property
    def signature(self) -> tuple[Any, ...]:
        """What rows must have in common to be put into one batch without padding."""
        return tuple((*tensor.shape, str(tensor.dtype)) for tensor in trees.tensors(self.input))


class Rows:
    """A dataset as prepared rows.

    Args:
        dataset: Rows: a sequence, a tensor along its first axis, or any iterable.
        prepare: The inputs of several rows, each as a batch of one.
        positions: Which positions of a row are kept; None for all.

    Raises:
        InputError: It is no dataset of rows.
    """

    def __init__(
        self, dataset: Any, prepare: Callable[[list[Any]], list[Input]], positions: Positions
    ) -> None:
        known = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if isinstance(dataset, (str, bytes, Mapping)) or not (known or isinstance(dataset, Iterable)):
            raise InputError(
                f"A dataset is a list or another iterable of rows, not {type(dataset).__name__}."
            )
        if isinstance(dataset, torch.utils.data.DataLoader):
            raise InputError(
                "A DataLoader gives batches, and a recording makes its own: give its `.dataset`."
            )
        self._dataset = dataset
        self._prepare = prepare
        self._positions = positions
        self.count: int | None = len(dataset) if known else None

    def starting(self, done: int, first: str = "", last: str = "") -> Iterator[Row]:
        """The rows after those that are recorded already, which must be the same as they were.

        Args:
            done: How many are recorded.
            first: The digest of the first of these.
            last: The digest of the last of these.

        Raises:
            InputError: They are not.
        """
        if self.count is None:
            raw = iter(self._dataset)
            before = [(n, given) for n, given in enumerate(islice(raw, done)) if n in (0, done - 1)]
        else:
            raw = (self._dataset[at] for at in range(done, self.count))
            before = [(n, self._dataset[n]) for n in {0, done - 1} if 0 <= n < min(done, self.count)]
        if done and max((n for n, _ in before), default=-1) < done - 1:
            raise InputError(f"{done} rows are recorded already, and the dataset has fewer.")
        for number, given in before:
            (row,) = self._made([given], number)
            if row.digest != (first if number == 0 else last):
                raise InputError(
                    f"Row {number} of the dataset is another than the one that is recorded in this folder.\n"
                    "Go on with the same dataset, or give another folder."
                )
        while chunk := list(islice(raw, CHUNK)):
            yield from self._made(chunk, done)
            done += len(chunk)

    def _made(self, chunk: list[Any], start: int) -> Iterator[Row]:
        for number, given in enumerate(self._prepare(chunk), start):
            real = _real(given)
            yield Row(number, given, real, _kept(len(real), self._positions, number))


def files(rows: Iterable[Row], size: Callable[[Row], int], limit: int, batch: int) -> Iterator[list[Row]]:
    """Successive rows that make up a file each: as many as reach `limit` bytes, in whole batches if possible."""
    held: list[Row] = []
    total = 0
    for row in rows:
        held.append(row)
        total += size(row)
        if total >= (limit if len(held) % batch == 0 else 2 * limit):
            yield held
            held, total = [], 0
    if held:
        yield held


def batches(rows: list[Row], pads: bool, size: Callable[[], int]) -> Iterator[list[Row]]:
    """Rows of like length together, the longest first.

    Args:
        rows: The rows of one file.
        pads: Whether the model pads rows of different lengths; else only equal ones go together.
        size: How many rows at most; asked anew for each batch.
    """
    ordered = sorted(rows, key=lambda row: (-len(row.real), () if pads else tuple(map(str, row.signature))))
    at = 0
    while at < len(ordered):
        batch = ordered[at : at + size()]
        if not pads:
            batch = [row for row in batch if row.signature == batch[0].signature]
        at += len(batch)
        yield batch


def fingerprint(module: nn.Module) -> str:
    """What tells a model from one with other weights, seen from a few of them."""
    found = hashlib.blake2b(digest_size=8)
    named = list(module.named_parameters())
    for name, parameter in named[:: max(1, len(named) // 16)]:
        found.update(f"{name} {tuple(parameter.shape)}".encode())
        if not parameter.is_meta:
            found.update(_bytes(parameter.detach().flatten()[:64].float()))
    return found.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _real(given: Input) -> tuple[int, ...]:
    """The positions of a row that are no padding."""
    mask = given[1].get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        return tuple(mask[0].nonzero().flatten().tolist())
    first = next((tensor for tensor in trees.tensors(given) if tensor.ndim > 1), None)
    return tuple(range(1 if first is None else first.shape[1]))


def _kept(count: int, positions: Positions, number: int) -> tuple[int, ...]:
    every = range(count)
    if positions is None:
        return tuple(every)
    if isinstance(positions, slice):
        return tuple(every[positions])
    try:
        return tuple(every[at] for at in ([positions] if isinstance(positions, int) else positions))
    except IndexError:
        raise InputError(
            f"Row {number} has {count} positions, so it has no `positions={positions}`."
        ) from None

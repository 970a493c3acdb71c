"""Read back what `model.record(...)` wrote: arrays with named axes, memory-mapped, and batches to train on."""

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch

from interlace.errors import CacheMissError, InputError, nearest
from interlace.selection import Modules, dotted, path_of
from interlace.shards import Shard, Shards

COORDINATES = ("row", "pos", "ids")
"""What stands beside the sites: the row of the dataset, the position in it, the token there."""

KIND = "recording"


class Files:
    """The shards of a recording, opened when they are first looked into."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self._open: dict[int, Shard] = {}
        for entry in shards.entries:
            path = shards.folder / entry["file"]
            if not path.exists() or path.stat().st_size != entry["bytes"]:
                Shard(path, entry)  # says what is wrong

    def part(self, at: int, name: str) -> torch.Tensor:
        """An array's part in one file."""
        shard = self._open.get(at)
        if shard is None:
            shard = self._open[at] = self.shards.shard(at)
        return shard.tensor(name)


class Labelled:
    """An array on disk with named axes, in one or several files. What is indexed is read, and no more.

    Indexing gives tensors: `array[5]`, `array[10:20]`, `array[[3, 1]]`, `array[mask]`, `array[10:20, :5]`. Of an
    array that fits one file, slices are views of the memory-mapped file.

    Attributes:
        name: The site: `model.transformer.h.3.output`.
        axes: The names of its axes: `("token", "d_model")`.
        shape: The size of each.
        dtype: The type of its numbers.
    """

    def __init__(
        self, files: Files, name: str, axes: tuple[str, ...], shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        self.name = name
        self.axes = axes
        self.shape = shape
        self.dtype = dtype
        self._files = files
        self._starts = [0]
        for entry in files.shards.entries:
            self._starts.append(self._starts[-1] + entry["items"])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> torch.Tensor:
        first, rest = (key[0], key[1:]) if isinstance(key, tuple) else (key, ())
        if first is Ellipsis:
            left = (slice(None),) * (len(self.shape) - len(rest))  # what it stands for
            first, rest = (left[0], (*left[1:], *rest)) if left else (rest[0], rest[1:])
        if hasattr(first, "__index__") and getattr(first, "ndim", 0) == 0:  # of numpy and torch, too
            first = int(first)
            at = first + len(self) if first < 0 else first
            if not 0 <= at < len(self):
                raise IndexError(f"{self.name} has {len(self)} along `{self.axes[0]}`, so no [{first}].")
            found = self._slice(at, at + 1)[0]
            return found[rest] if rest else found
        if isinstance(first, slice):
            start, stop, step = first.indices(len(self))
            if step == 1:
                found = self._slice(start, max(start, stop))
            else:
                found = self.take(torch.tensor(range(start, stop, step), dtype=torch.long))
        else:
            found = self.take(self._indices(first))
        inner = (slice(None), *rest)
        return found[inner] if rest else found

    def _indices(self, key: Any) -> torch.Tensor:
        indices = torch.as_tensor(key)
        if indices.dtype is torch.bool:
            if indices.shape != (len(self),):
                raise IndexError(
                    f"A mask for {self.name} has {len(self)} entries, not {tuple(indices.shape)}."
                )
            indices = indices.nonzero().flatten()
        indices = torch.where(indices < 0, indices + len(self), indices)
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(f"{self.name} has {len(self)} along `{self.axes[0]}`; an index lies outside.")
        return indices

    def _slice(self, start: int, stop: int) -> torch.Tensor:
        first, last = (
            bisect_right(self._starts, start) - 1,
            bisect_right(self._starts, max(start, stop - 1)) - 1,
        )
        parts = []
        for at in range(first, min(last + 1, len(self._starts) - 1)):
            begin = self._starts[at]
            parts.append(self._files.part(at, self.name)[max(0, start - begin) : max(0, stop - begin)])
        if not parts:
            return torch.empty((0, *self.shape[1:]), dtype=self.dtype)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """The entries at these places along the first axis, in this order."""
        found = torch.empty((*indices.shape, *self.shape[1:]), dtype=self.dtype)
        ends = torch.tensor(self._starts[1:], dtype=torch.long)
        files = torch.bucketize(indices, ends, right=True)
        for at in set(files.flatten().tolist()):
            here = files == at
            found[here] = self._files.part(at, self.name)[indices[here] - self._starts[at]]
        return found

    def tensor(self) -> torch.Tensor:
        """All of it: a view of the memory-mapped file if there is one, else read into memory."""
        return self._slice(0, len(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        whole = self.tensor()
        found = (whole.float() if whole.dtype is torch.bfloat16 else whole).numpy()  # numpy has no bfloat16
        return found if dtype is None else found.astype(dtype)

    def batches(self, size: int, **how: Any) -> Iterator[torch.Tensor]:
        """Parts of it to train on; see `Recording.batches`."""
        for indices in index_batches(self._starts, size, **how):
            yield self.take(indices)

    def __repr__(self) -> str:
        shape = " x ".join(f"{axis} {size:,}" for axis, size in zip(self.axes, self.shape, strict=True))
        return f"{self.name}: {shape}, {str(self.dtype).removeprefix('torch.')}"


class Recording(Mapping[str, Labelled]):
    """What `model.record(..., to=folder)` wrote.

    A mapping from the names of sites to arrays; an envoy or an operation stands for its output. The first axis of
    all of them is `token` or `row`; beside them stand, along the same axis, `row` (of the dataset), `pos` (in the
    row) and, for language models, `ids`.

    Args:
        folder: Where it is.

    Raises:
        RecordingError: There is none, or a file of it is missing or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._shards = Shards.read(folder, KIND)
        self._files = Files(self._shards)
        self.folder = self._shards.folder
        progress = self._shards.progress
        self.rows: int = progress.get("rows", 0)
        self.complete: bool = progress.get("complete", False)
        items = sum(entry["items"] for entry in self._shards.entries)
        self._arrays: dict[str, Labelled] = {}
        self._beside: dict[str, Labelled] = {}
        for name, about in progress.get("arrays", {}).items():
            made = Labelled(
                self._files,
                name,
                tuple(about["axes"]),
                (items, *about["shape"]),
                getattr(torch, about["dtype"]),
            )
            (self._beside if name in COORDINATES else self._arrays)[name] = made

    def __getitem__(self, site: Any) -> Labelled:
        site = path_of(site)
        if not isinstance(site, str):
            raise CacheMissError(
                f"A site of a recording is named by its path or its envoy, not by {type(site).__name__}.\n"
                f'Write `acts["{next(iter(self), "h.0")}"]`.'
            )
        path = dotted(site)
        known = {**self._arrays, **self._beside}
        for name in (path, f"{path}.output"):
            found = (
                [known[name]] if name in known else [known[one] for one in known if one.endswith(f".{name}")]
            )
            if len(found) == 1:
                return found[0]
            if found:
                several = " or ".join(f"`{array.name}`" for array in found[:3])
                raise CacheMissError(f"`{site}` in {self.folder} may be {several}: say more of the path.")
        some = ", ".join(f"`{name}`" for name in list(known)[:6]) + ", ..." * (len(known) > 6)
        raise CacheMissError(f"There is no `{site}` in {self.folder}.{nearest(path, known)}\nIt has {some}.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, site: object) -> bool:
        try:
            return self[site] is not None
        except CacheMissError:
            return False

    @cached_property
    def _first_rows(self) -> list[int]:
        return [entry["first_row"] for entry in self._shards.entries]

    def row(self, number: int) -> dict[str, torch.Tensor]:
        """What was recorded of one row of the dataset: by site, without the axis `row`.

        Raises:
            IndexError: There are fewer rows.
        """
        if not -self.rows <= number < self.rows:
            raise IndexError(f"{self.folder} has {self.rows} rows, so no row {number}.")
        number %= self.rows
        at = bisect_right(self._first_rows, number) - 1
        rows = self._files.part(at, "row")
        start, stop = torch.searchsorted(rows, torch.tensor([number, number + 1])).tolist()
        by_row = self._shards.settings["by"] == "row"
        names = [*self._arrays, *(name for name in self._beside if name != "row")]
        return {name: self._files.part(at, name)[start if by_row else slice(start, stop)] for name in names}

    def batches(
        self,
        size: int,
        sites: Modules = None,
        *,
        seed: int | None = None,
        mix: int = 8,
        drop_last: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Batches for a training loop, each with the sites and with `row`, `pos` and `ids`.

        Args:
            size: Tokens in a batch; rows, where values are kept by row.
            sites: Which sites: a path, an envoy, or an iterable of those; None for all.
            seed: Shuffle; the same seed gives the same order. None keeps the order of the dataset.
            mix: From how many files, chosen at random, tokens are mixed at a time. As many as there are make the
                shuffle a perfect one; fewer keep reading from disk quick.
            drop_last: Leave out a last batch that is smaller.
            device: Where batches are put.
            dtype: What floating-point values become.

        Raises:
            CacheMissError: A site was not recorded.
            InputError: `size` or `mix` is smaller than 1.
        """
        sites = path_of(sites)
        wanted = [sites] if isinstance(sites, str) else list(self._arrays if sites is None else sites)
        arrays = [self[site] for site in wanted] + list(self._beside.values())
        starts = next(iter(arrays))._starts
        for indices in index_batches(starts, size, seed=seed, mix=mix, drop_last=drop_last):
            batch = {array.name: array.take(indices) for array in arrays}
            yield {
                name: value.to(device=device, dtype=dtype if value.is_floating_point() else None)
                for name, value in batch.items()
            }

    def verify(self) -> None:
        """Read every file and compare its checksum.

        Raises:
            RecordingError: One differs; names it.
        """
        for shard in self._shards:
            shard.verify()

    def __repr__(self) -> str:
        done = "" if self.complete else ", unfinished"
        lines = [f"Recording of {self.rows:,} rows in {self.folder}{done}"]
        return "\n".join(
            lines + [f"  {array!r}" for array in (*self._arrays.values(), *self._beside.values())]
        )


def index_batches(
    starts: list[int], size: int, *, seed: int | None = None, mix: int = 8, drop_last: bool = False
) -> Iterator[torch.Tensor]:
    """Places along an axis that lies in several files, in batches.

    Args:
        starts: Where each file begins, and where the last one ends.
        size: How many in a batch.
        seed: Shuffle; None keeps the order.
        mix: From how many files at a time, when shuffled.
        drop_last: Leave out a last batch that is smaller.
    """
    if size < 1 or mix < 1:
        raise InputError(f"A batch has at least 1 entry, from at least 1 file, not {size} from {mix}.")
    random = None if seed is None else torch.Generator().manual_seed(seed)
    count = len(starts) - 1
    order = range(count) if random is None else torch.randperm(count, generator=random).tolist()
    left = torch.empty(0, dtype=torch.long)
    for at in range(0, count, mix):
        here = torch.cat([torch.arange(starts[n], starts[n + 1]) for n in order[at : at + mix]])
        if random is not None:
            here = here[torch.randperm(len(here), generator=random)]
        left = torch.cat([left, here])
        whole = len(left) // size * size
        yield from (left[at : at + size] for at in range(0, whole, size))
        left = left[whole:]
    if len(left) and not drop_last:
        yield left

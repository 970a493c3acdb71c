"""Run rows of a dataset and take from each forward what is to be kept of them.

Rows go through the model in batches of like length. A batch that does not fit into memory is run in parts, and those
after it are smaller.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interlace import trees
from interlace.cache import Cache
from interlace.dataset import Row, batches
from interlace.errors import InputError, NotReachedError, RunEnded
from interlace.keeping import Positions, shares
from interlace.recording import COORDINATES
from interlace.selection import Modules
from interlace.site import Port, Visit, spell

if TYPE_CHECKING:
    from interlace.envoy import Envoy

Flat = dict[str, torch.Tensor]
"""By name, the values of several rows one after the other: `token ...` or `row ...`."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be recorded, and how.

    Attributes:
        sites: What `tracer.cache` takes.
        ports: Whether outputs, inputs, or both.
        by: `token`, or `row`.
        positions: Which positions of each row; None for all.
        dtype: What floating-point values become.
        every: Whether `sites` is every module, of which some may give nothing to record.
    """

    sites: Modules
    ports: tuple[Port, ...]
    by: str
    positions: Positions
    dtype: torch.dtype | None
    every: bool = False

    @property
    def single(self) -> bool:
        """Whether each row keeps one position, and no axis for it."""
        return isinstance(self.positions, int)


class Batch:
    """Several rows that go through the model together, and where in the batch what is kept of them lies."""

    def __init__(self, job: Job, pads: bool, rows: list[Row], kwargs: dict[str, Any]) -> None:
        self.job = job
        self.rows = rows
        self.whole = job.by == "row" and not pads and job.positions is None
        given = kwargs.get("attention_mask")
        mask = given if isinstance(given, torch.Tensor) and given.ndim == 2 else None
        self.width = max(len(row.real) for row in rows) if mask is None else mask.shape[1]
        self.places = None if self.whole else self._places(mask)
        counts = {len(row.kept): row for row in rows}
        if job.by == "row" and not self.whole and len(counts) > 1:
            (count, row), (other, another) = list(counts.items())[:2]
            raise InputError(
                f"Row {row.number} has {count} positions and row {another.number} has {other}.\n"
                'Keep rows of different lengths with `by="token"`, or choose `positions=`.'
            )

    def _places(self, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The kept positions, as rows and columns of the batch; None where it is all of them."""
        if all(len(row.kept) == self.width for row in self.rows):
            return None
        if mask is not None and all(len(row.kept) == len(row.real) for row in self.rows):
            at, columns = mask.nonzero(as_tuple=True)
            return at, columns
        real = [
            row.real if mask is None else mask[n].nonzero().flatten().tolist()
            for n, row in enumerate(self.rows)
        ]
        columns = torch.tensor(
            [real[n][at] for n, row in enumerate(self.rows) for at in row.kept], dtype=torch.long
        )
        rows = torch.tensor([n for n, row in enumerate(self.rows) for _ in row.kept], dtype=torch.long)
        return rows, columns

    def take(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """What is kept of a value, row after row."""
        count, width = len(self.rows), self.width
        if self.whole:
            if value.shape[:1] != (count,):
                raise InputError(
                    f"`{spell(name)}` gives {trees.describe(value)} for {count} rows: not `batch ...`."
                )
            return value
        if value.shape[:1] == (count * width,) and value.shape[:2] != (count, width):
            value = value.reshape(count, width, *value.shape[1:])
        if value.shape[:2] != (count, width):
            raise InputError(
                f"`{spell(name)}` gives {trees.describe(value)} for {count} rows of {width} positions: not "
                "`batch pos ...`.\nLeave it out, or record it in a trace, with `tracer.cache(...)`."
            )
        if self.places is None:
            flat = value.flatten(0, 1)
        else:
            rows, columns = self.places
            flat = value[rows.to(value.device), columns.to(value.device)]
        if self.job.by == "token" or self.job.single:
            return flat
        return flat.reshape(count, len(self.rows[0].kept), *flat.shape[1:])


class Runner:
    """Runs rows and gives what is kept of them.

    Attributes:
        size: How many rows a batch has at most; it shrinks when memory runs out.
        shapes: Of one token or row, by name; known after `probe`.
        names: What is recorded of every module; None before `choose` has looked, and where sites were listed.
    """

    def __init__(self, envoy: "Envoy", job: Job, size: int) -> None:
        self.envoy = envoy
        self.job = job
        self.size = size
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.names: frozenset[str] | None = None
        self._settings = {"include_output": "output" in job.ports, "include_inputs": "input" in job.ports}

    # -- one batch -----------------------------------------------------------------------------------------------

    def flat(self, rows: list[Row]) -> Flat:
        """What is kept of some rows, in one batch."""
        args, kwargs, _ = self.envoy._combine([row.input for row in rows], None)
        batch = Batch(self.job, self.envoy._pads, rows, kwargs)
        found = self._forward(args, kwargs, batch)
        for name, values in found.items():
            shape = self.shapes.get(name)
            if shape is not None and tuple(values.shape[1:]) != shape:
                raise InputError(
                    f"`{spell(name)}` gives {tuple(values.shape[1:])} for rows from {rows[0].number}, and gave "
                    f'{shape} for the first row.\nKeep values of different lengths with `by="token"`.'
                )
        ids = kwargs.get("input_ids")
        if isinstance(ids, torch.Tensor):
            found["ids"] = batch.take("ids", ids).cpu()
        return found

    def _forward(self, args: Any, kwargs: Any, batch: "Batch") -> Flat:
        """One forward, with what each site gives taken as soon as it is there, so that no more is held."""
        job, known, found = self.job, bool(self.shapes), dict[str, torch.Tensor]()
        choosing = job.every and self.names is None
        with self.envoy.trace(*args, **kwargs) as tracer:
            cache = tracer.cache(job.sites, **self._settings)
            cache._reports = False
            run = tracer._model_run
            names = self._named(cache)

            def take(visit: Visit) -> None:
                name = names.get((visit.key, visit.port))
                value = cache._values[visit.port][visit.key].pop(visit.number)
                if name is None:
                    return
                if name in found:
                    raise _repeated(name)
                tensor = next(trees.tensors(value), None)
                if tensor is None:
                    raise InputError(f"`{spell(name)}` gives {trees.describe(value)}: no tensor to record.")
                taken = batch.take(name, tensor)
                kept = taken.to(device="cpu", dtype=job.dtype if taken.is_floating_point() else None)
                found[name] = kept.clone() if shares(kept, tensor) else kept
                if known and len(found) == len(names):  # what comes after the last site need not be computed
                    run.stopped = True
                    raise RunEnded

            def attempt(visit: Visit) -> None:
                try:
                    take(visit)
                except InputError:
                    found.pop(names.pop((visit.key, visit.port)), None)

            for port in job.ports:
                run.record(cache._keys, port, attempt if choosing else take)
        for name in names.values():
            if name not in found and not choosing:
                raise NotReachedError(
                    f"`{spell(name)}` was not reached for every row.\nRecord sites that each forward comes past."
                )
        return {name: found[name] for name in names.values() if name in found}

    def _named(self, cache: Cache) -> dict[tuple[Any, Port], str]:
        """What is recorded, by the key of its site and the port."""
        named = {
            (site.key, port): f"{site.path}.{port}"
            for site in cache._outline.sites.values()
            if site.key in cache._keys
            for port in self.job.ports
        }
        known = self.names
        return named if known is None else {at: name for at, name in named.items() if name in known}

    def choose(self, row: Row) -> None:
        """Where every module is to be recorded, keep to those that give something of each row.

        A second copy of the row shows what is one value for the whole batch.
        """
        _, found = next(self._fitting([row, row]))
        self.names = frozenset(found) - {"ids"}
        if not self.names:
            raise InputError(
                "No module of the model gives a tensor of each row, so there is nothing to record.\n"
                "Record in a trace, with `tracer.cache(...)`."
            )

    # -- a file's rows -------------------------------------------------------------------------------------------

    def items(self, row: Row) -> int:
        """How many entries along the first axis a row has."""
        return 1 if self.job.by == "row" else len(row.kept)

    def file(self, rows: list[Row], done: Callable[[list[Row]], None] | None = None) -> Flat:
        """What is kept of the rows of one file, in their order."""
        starts, total = {}, 0
        for row in rows:
            starts[row.number] = total
            total += self.items(row)
        whole: Flat = {}
        for batch in batches(rows, self.envoy._pads, lambda: self.size):
            for part, flat in self._fitting(batch):
                places = torch.cat(
                    [torch.arange(starts[r.number], starts[r.number] + self.items(r)) for r in part]
                )
                for name, values in flat.items():
                    if name not in whole:
                        whole[name] = values.new_empty((total, *values.shape[1:]))
                    whole[name][places] = values
                if done is not None:
                    done(part)
        numbers = [row.number for row in rows for _ in range(self.items(row))]
        whole["row"] = torch.tensor(numbers, dtype=torch.long)
        kept: list[Any] = [row.kept for row in rows]
        if self.job.by == "token" or self.job.single:
            whole["pos"] = torch.tensor([at for one in kept for at in one], dtype=torch.long)
        return whole

    def _fitting(self, batch: list[Row]) -> Iterator[tuple[list[Row], Flat]]:
        """A batch, in as many parts as memory makes necessary."""
        while batch:
            part, flat = batch[: self.size], None
            try:
                flat = self.flat(part)
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                if len(part) == 1:
                    said = f"Row {part[0].number} does not fit into memory by itself."
                    error.__dict__.setdefault("__notes__", []).append(said)  # `add_note`, from Python 3.11
                    raise
            if flat is None:  # outside of `except`, whose traceback holds what took the memory
                self.size = len(part) // 2
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            yield part, flat
            batch = batch[len(part) :]

    def probe(self, row: Row) -> dict[str, Any]:
        """Run one row to the end, and tell of each array its axes, its shape without the first, its type."""
        arrays: dict[str, Any] = {}
        for name, values in self.file([row]).items():
            shape = tuple(values.shape[1:])
            if name not in COORDINATES:
                self.shapes[name] = shape
            axes = (self.job.by, *self._axes(name, shape))
            dtype = str(values.dtype).removeprefix("torch.")
            arrays[name] = {"axes": axes, "shape": shape, "dtype": dtype}
        return arrays

    def _axes(self, name: str, shape: tuple[int, ...]) -> list[str]:
        """Names for the axes after the first."""
        if name in COORDINATES:
            return ["pos"] * len(shape)
        with_pos = self.job.by == "row" and not self.job.single and len(shape) == 2
        rest = shape[1:] if with_pos else shape
        if len(rest) > 1:
            return ["pos"] * with_pos + [f"axis_{n}" for n in range(1, len(rest) + 1)]
        return ["pos"] * with_pos + [self._width_name(size) for size in rest]

    def _width_name(self, size: int) -> str:
        known = getattr(self.envoy._module, "config", None)
        named = {
            "d_vocab": ("vocab_size",),
            "d_mlp": ("intermediate_size", "n_inner"),
            "d_model": ("hidden_size",),
        }
        found = [axis for axis, keys in named.items() if size in [getattr(known, key, None) for key in keys]]
        return found[-1] if found else "d_model"


def _out_of_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said


def _repeated(name: str) -> InputError:
    return InputError(
        f"`{spell(name)}` is called several times in a forward, and a recording keeps one value of it a row.\n"
        "Record another site, or each visit in a trace, with `tracer.cache(...)`."
    )

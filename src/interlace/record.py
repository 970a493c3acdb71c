"""Run a model over a dataset and keep what some sites give, row by row, in a folder.

The rows of a file are run in batches of like length and written in the order of the dataset. A file is the unit of
resuming: what was being computed when the process died is computed again, in the same batches.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from interlace.config import config
from interlace.dataset import Row, Rows, files, fingerprint
from interlace.errors import InputError
from interlace.recorder import Job, Runner
from interlace.recording import COORDINATES, KIND, Recording
from interlace.selection import choose
from interlace.shards import Shards

if TYPE_CHECKING:
    from interlace.envoy import Envoy


def record(
    envoy: "Envoy", dataset: Any, to: str | os.PathLike[str], job: Job, batch_size: int, shard_bytes: int
) -> Recording:
    """Record a dataset; see `Envoy.record`."""
    if batch_size < 1 or shard_bytes < 1:
        raise InputError(f"`batch_size={batch_size}` and `shard_bytes={shard_bytes}` must be at least 1.")
    envoy._tree.load()
    wanted = choose(envoy, job.sites)  # once, not for each batch
    chosen = {
        _path(site): site for one in wanted for site in (*(at.path for at in one.sites), *one.operations)
    }
    job = replace(job, sites=list(chosen.values()), every=job.sites is None)
    rows = Rows(dataset, envoy._row_inputs, job.positions)
    if rows.count == 0:
        raise InputError("The dataset has no rows.")
    shards = Shards.write(to, KIND, _settings(envoy, job, shard_bytes))
    try:
        with torch.no_grad():
            _run(envoy, rows, job, shards, batch_size, shard_bytes)
    finally:
        shards.close()
    return Recording(to)


def _settings(envoy: "Envoy", job: Job, shard_bytes: int) -> dict[str, Any]:
    return {
        "root": envoy._tree.path,
        "sites": sorted(f"{_path(site)}.{port}" for site in job.sites for port in job.ports),
        "by": job.by,
        "positions": repr(job.positions),
        "dtype": str(job.dtype),
        "shard_bytes": shard_bytes,
        "model": type(envoy._module).__name__,
        "weights": fingerprint(envoy._module),
        "edits": len(envoy._tree.edits),
    }


def _path(site: Any) -> str:
    return site if isinstance(site, str) else str(site.path)


def _run(envoy: "Envoy", rows: Rows, job: Job, shards: Shards, batch_size: int, shard_bytes: int) -> None:
    done = shards.progress
    start, first = done.get("rows", 0), done.get("first", "")
    left = rows.starting(start, first, done.get("last", ""))
    runner = Runner(envoy, job, min(batch_size, done.get("batch_size", batch_size)))
    ahead = next(left, None)
    if ahead is None:
        if start == 0:
            raise InputError("The dataset has no rows.")
        done["complete"] = True
        shards.save()
        return
    if "arrays" not in done:
        if job.every:
            runner.choose(ahead)
        done["arrays"], done["first"] = runner.probe(ahead), ahead.digest
    else:
        known = done["arrays"].items()
        runner.shapes = {name: tuple(about["shape"]) for name, about in known if name not in COORDINATES}
        runner.names = frozenset(runner.shapes) if job.every else None
    one = sum(_bytes(about) for about in done["arrays"].values())
    with tqdm(
        total=rows.count, initial=start, unit="row", desc=f"recording {shards.folder.name}", delay=1,
        disable=not config.progress,
    ) as bar:  # fmt: skip

        def tell(part: list[Row]) -> None:
            bar.set_postfix(batch=runner.size, refresh=False)
            bar.update(len(part))

        for held in files(_with(ahead, left), lambda row: one * runner.items(row), shard_bytes, batch_size):
            tensors = runner.file(held, tell)
            done["rows"], done["last"] = held[-1].number + 1, held[-1].digest
            done["batch_size"], done["complete"] = runner.size, done["rows"] == rows.count
            about = {"first_row": held[0].number, "rows": len(held), "items": len(tensors["row"])}
            shards.add(tensors, {}, about)
    if not done["complete"]:  # a dataset that does not tell how long it is
        done["complete"] = True
        shards.save()


def _with(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest


def _bytes(about: dict[str, Any]) -> int:
    """Bytes of one token or row of an array."""
    size: int = getattr(torch, about["dtype"]).itemsize
    for axis in about["shape"]:
        size *= axis
    return size

"""How many rows a second a dataset is recorded at, against a loop that one writes by hand.

The loop has hooks on the same blocks, batches of the same rows (sorted by length, padded on the left, the padding
left out), and writes files of the same size; it cannot go on where it was when it is killed. Both go through the
same rows in turns.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import interlace as il
from benchmarks.aims import RECORD_RATIO, Aim
from benchmarks.models import Subject, gpt2, tokenizer

BATCH = 16
SHARD_BYTES = 24 << 20  # as many tokens in a file as GPT-2 of real size has in one of the default size
SITES = "transformer.h.*"


def dataset(rows: int, vocabulary: int) -> list[list[int]]:
    """Token ids of lengths between 16 and 64."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(16, 65, (rows,), generator=random).tolist()
    return [torch.randint(1, vocabulary, (length,), generator=random).tolist() for length in lengths]


class Loop:
    """What a careful user writes by hand."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.net, self.folder = subject.copy(), folder
        self.blocks = list(self.net.get_submodule(subject.stack))
        self.kept: dict[int, Tensor] = {}

    @contextmanager
    def hooked(self) -> Iterator[None]:
        def keeping(at: int) -> Any:
            def keep(module: object, args: object, output: Any) -> None:
                self.kept[at] = output[0] if isinstance(output, tuple) else output

            return keep

        hooks = [block.register_forward_hook(keeping(at)) for at, block in enumerate(self.blocks)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def __call__(self, rows: list[list[int]]) -> None:
        ordered = sorted(range(len(rows)), key=lambda at: -len(rows[at]))
        waiting: list[dict[str, Tensor]] = []
        size = files = 0
        with torch.no_grad(), self.hooked():
            for at in range(0, len(rows), BATCH):
                chosen = ordered[at : at + BATCH]
                ids, mask = self.padded([rows[n] for n in chosen])
                positions = torch.clamp(mask.cumsum(-1) - 1, min=0)
                self.net.base_model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False
                )
                real = mask.bool()
                part = {str(at): value[real] for at, value in self.kept.items()}
                part["row"] = torch.tensor(chosen).repeat_interleave(mask.sum(-1))
                waiting.append(part)
                size += sum(value.nbytes for value in part.values())
                if size >= SHARD_BYTES:
                    self.write(waiting, files)
                    waiting, size, files = [], 0, files + 1
        if waiting:
            self.write(waiting, files)

    def padded(self, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids, mask

    def write(self, parts: list[dict[str, Tensor]], number: int) -> None:
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        save_file(whole, self.folder / f"{number:05d}.safetensors")


class Recorded:
    """`model.record(...)`."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        net = subject.copy()
        self.model = il.LanguageModel(net, tokenizer=tokenizer(net.config.vocab_size))
        self.folder, self.runs = folder, 0

    def __call__(self, rows: list[list[int]]) -> il.Recording:
        self.runs += 1
        folder = self.folder / str(self.runs)
        return self.model.record(rows, SITES, folder, batch_size=BATCH, shard_bytes=SHARD_BYTES)


def rates(subject: Subject, rows: int, turns: int) -> tuple[list[float], list[float]]:
    """Rows a second of the loop and of ours, in turns.

    Raises:
        AssertionError: They recorded other values.
    """
    given = dataset(rows, subject.net.config.vocab_size)  # type: ignore[union-attr, arg-type]
    progress, il.config.progress = il.config.progress, False
    try:
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            loop, recorded = Loop(subject, Path(one)), Recorded(subject, Path(other))
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(turns):
                times[0].append(rows / _seconds(lambda: loop(given)))
                times[1].append(rows / _seconds(lambda: recorded(given)))
            _compare(Path(one), recorded(given))
    finally:
        il.config.progress = progress
    return times


def _seconds(call: Callable[[], object]) -> float:
    start = perf_counter()  # not the thread's own time: writing is waiting for the disk
    call()
    return perf_counter() - start


def _compare(loop: Path, recording: il.Recording) -> None:
    from safetensors.torch import load_file

    files = [load_file(file) for file in sorted(loop.glob("*.safetensors"))]
    rows = torch.cat([file["row"] for file in files])
    order = torch.sort(rows, stable=True).indices
    assert torch.equal(rows[order], recording["row"][:])
    for at, name in enumerate(recording):
        values = torch.cat([file[str(at)] for file in files])[order]
        assert torch.allclose(values, recording[name][:], atol=1e-4), f"{name} differs"


def line(rows: int, turns: int) -> tuple[list[str], list[str]]:
    """The head and the line of a table."""
    subject = gpt2("GPT-2, 12 layers of width 64", layers=12, width=64, heads=4, vocabulary=1000)
    loop, ours = rates(subject, rows, turns)
    ratios = [a / b for a, b in zip(loop, ours, strict=True)]
    middle = statistics.median(ratios)
    aim = Aim(f"{RECORD_RATIO} times the loop's time", RECORD_RATIO, middle)
    head = ["recording", "loop rows/s", "interlace rows/s", "times the loop's time", "aim", ""]
    said = [f"{statistics.median(one):,.0f}" for one in (loop, ours)]
    return head, [f"{subject.name}, every block", *said, f"{middle:.2f}", aim.text, aim.verdict]

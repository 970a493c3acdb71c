"""What is still there after thousands of traces, by the operating system's count and by Python's.

The cyclic garbage collector is off while this runs: reference counting alone has to free everything.
"""

import gc
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import interlace as il
from benchmarks.adapters import Tool, hooks, interlace
from benchmarks.models import Subject

GROWTH_KIB = 256  # what an allocator may gain or lose by itself


class _OnPurposeError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Growth:
    """What `runs` of something left behind: tensors alive, and KiB of resident memory, where it is known."""

    name: str
    runs: int
    tensors: int
    resident: float | None

    @property
    def verdict(self) -> str:
        return "met" if self.tensors == 0 and (self.resident or 0.0) < GROWTH_KIB else "**not met**"


def tensors() -> int:
    """How many tensors live in this process."""
    return sum(1 for thing in gc.get_objects() if issubclass(type(thing), Tensor))


def resident() -> float | None:
    """KiB of this process in memory, where the system says so."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return None
    return int(statm.read_text().split()[1]) * mmap.PAGESIZE / 1024


def growth(name: str, run: Callable[[], object], runs: int) -> Growth:
    """What is left of so many runs, after some that fill caches."""
    for _ in range(max(1, runs // 10)):
        run()
    gc.collect()
    with _uncollected():
        tensors_before, before = tensors(), resident()
        for _ in range(runs):
            run()
        after, tensors_after = resident(), tensors()
    gained = None if before is None or after is None else after - before
    return Growth(name, runs, tensors_after - tensors_before, gained)


def growths(subject: Subject, runs: int) -> Iterator[Growth]:
    """Everything that can happen to a trace, so many times each; the hooks' reading for comparison."""
    by_hand: Tool = hooks.Tool(subject)
    tool = interlace.Tool(subject)
    model, first = tool.model, tool.blocks[0]

    def failing() -> None:
        with suppress(_OnPurposeError), model.trace(*subject.args, **subject.kwargs):
            first.output.sum()
            raise _OnPurposeError

    def returning() -> Tensor:
        with model.trace(*subject.args, **subject.kwargs):
            return torch.as_tensor(first.output)

    def wrapping() -> None:
        with il.Model(subject.net).trace(*subject.args, **subject.kwargs):
            pass

    yield growth("hooks: read every block", by_hand.read_all, runs)
    yield growth("read every block", tool.read_all, runs)
    yield growth("replace every block", tool.replace_all, runs)
    yield growth("an error in the block", failing, runs)
    yield growth("`return` out of the block", returning, runs)
    yield growth("wrap and trace", wrapping, runs)
    if subject.prompt is not None:
        yield growth("generate 3 tokens, read and edit", lambda: tool.generate(3), runs // 10)


def kept(subject: Subject) -> tuple[int, int]:
    """Tensors alive right after a trace that read every block and kept one of them: asked for, and there."""
    tool = interlace.Tool(subject)

    def one() -> Tensor:
        return tool.read_all()[0]

    one()
    gc.collect()
    with _uncollected():
        before = tensors()
        keep = one()
        after = tensors()
    assert keep is not None
    return 1, after - before


@contextmanager
def _uncollected() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

"""What is done with each model, by every tool in its own way, and the proof that all of them did the same."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.adapters import OURS, Tool, tools
from benchmarks.measure import Contender, Cost, interleaved
from benchmarks.models import Subject

STEPS = 20


@dataclass(frozen=True, slots=True)
class Workload:
    """One thing to do. Its cost is told per `unit` too; `ours` is the tool that stands for interlace in it.

    Hooks have nothing to do where `idle`: they are a second copy of the model, called the same way, and show
    how far apart two measurements of one thing come out.
    """

    name: str
    run: Callable[[Tool], list[Tensor]]
    unit: str
    ours: str = "interlace"
    idle: bool = False
    generates: bool = False

    def units(self, subject: Subject) -> int:
        return {
            "module": subject.modules,
            "block": subject.blocks,
            "trace": subject.blocks,
            "step": STEPS,
        }.get(self.unit, 1)


UNTRACED = Workload("wrapped, not traced", lambda tool: tool.untraced(), "module", idle=True)
EMPTY = Workload("empty trace", lambda tool: tool.empty(), "module", idle=True)
READ_ONE = Workload("read one block", lambda tool: tool.read_one(), "read")
READ_ALL = Workload("read every block", lambda tool: tool.read_all(), "block")
CACHE_ALL = Workload("cache of every module", lambda tool: tool.cache_all(), "module")
REPLACE_ONE = Workload("replace one block", lambda tool: tool.replace_one(), "replacement")
REPLACE_ALL = Workload("replace every block", lambda tool: tool.replace_all(), "block")
UNCHECKED = Workload(
    "replace every block, checks off", lambda tool: tool.replace_all(), "block", ours="interlace_unchecked"
)
SWEEP = Workload("sweep: replace each block in its own run", lambda tool: tool.sweep(), "trace")
GENERATE = Workload(
    f"generate {STEPS} tokens, read and edit", lambda tool: tool.generate(STEPS), "step", generates=True
)
WORKLOADS = [
    UNTRACED,
    EMPTY,
    READ_ONE,
    READ_ALL,
    CACHE_ALL,
    REPLACE_ONE,
    REPLACE_ALL,
    UNCHECKED,
    SWEEP,
    GENERATE,
]


@dataclass(frozen=True, slots=True)
class Row:
    """The cost of one workload on one subject, by tool."""

    subject: Subject
    workload: Workload
    costs: dict[str, Cost]

    @property
    def bare(self) -> Cost:
        return self.costs["bare"]

    @property
    def hooks(self) -> Cost:
        return self.costs["hooks"]

    @property
    def ours(self) -> Cost:
        return self.costs[self.workload.ours]

    @property
    def per_unit(self) -> float:
        return self.ours.extra / self.workload.units(self.subject)


def workloads_of(subject: Subject) -> list[Workload]:
    return [workload for workload in WORKLOADS if subject.prompt is not None or not workload.generates]


def ready(subject: Subject) -> dict[str, Tool]:
    """Every tool on its own copy of the subject. Other tools than ours take part where they can."""
    made: dict[str, Tool] = {}
    for name, tool in tools().items():
        if name in OURS:
            made[name] = tool(subject)
        else:
            with suppress(Exception):
                made[name] = tool(subject)
    return made


def values(tool: Tool, workload: Workload) -> list[Tensor]:
    with tool.settings():
        return workload.run(tool)


def differing(made: dict[str, Tool], workload: Workload) -> Iterator[str]:
    """The tools whose values are not those of the hooks, or of the bare call where nothing is asked."""
    expected = values(made["bare" if workload.idle else "hooks"], workload)
    for name, tool in made.items():
        if name == "bare" and not workload.idle:
            continue
        try:
            got = values(tool, workload)
        except Exception:
            if name in OURS:
                raise
            yield name
            continue
        if not _equal(got, expected):
            yield name


def _equal(some: Sequence[object], others: Sequence[Tensor]) -> bool:
    return len(some) == len(others) and all(map(_same, some, others))


def _same(one: object, other: Tensor) -> bool:
    return isinstance(one, Tensor) and torch.equal(one, other)


def measured(subject: Subject, seconds: float, done: Callable[[Workload], None]) -> Iterator[Row]:
    """Time every workload on a subject, each for about so many seconds; `done` hears of each.

    Another tool that fails at a workload, or gives other values, is left out of it.

    Raises:
        AssertionError: One of ours gives other values than the hooks.
    """
    made = ready(subject)
    for workload in workloads_of(subject):
        wrong = set(differing(made, workload))
        assert not wrong & set(OURS), f"{subject.name}, {workload.name}: {wrong} gave other values"
        absent = wrong | {name for name in OURS[2:] if name != workload.ours}
        contenders = {
            name: Contender(_bound(workload, tool), tool.settings)
            for name, tool in made.items()
            if name not in absent
        }
        yield Row(subject, workload, interleaved(contenders, seconds))
        done(workload)


def _bound(workload: Workload, tool: Tool) -> Callable[[], object]:
    run = workload.run
    return lambda: run(tool)

"""Where the time of an empty trace, of a read and of a replacement goes.

First a stopwatch, which sees only what a user's block can see and costs nothing; then the profiler, which
sees the functions but makes small ones look dearer than they are.
"""

import cProfile
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import perf_counter_ns
from types import CodeType

from benchmarks import models, report
from benchmarks.adapters import bare, interlace
from benchmarks.models import Subject

TIMES = 2_000
SHOWN = 14  # functions


def text() -> str:
    """Both, on an overhead net."""
    subject = models.overhead(32)
    tool = interlace.Tool(subject)
    parts = [f"## Where the time goes ({subject.name}, {subject.modules} modules)", stopwatch(subject, tool)]
    profiled: list[tuple[str, Callable[[], object]]] = [
        ("An empty trace", tool.empty),
        ("A trace that reads every block", tool.read_all),
        ("A trace that replaces every block", tool.replace_all),
    ]
    parts += [f"### {name}\n\n{functions(run)}" for name, run in profiled]
    return "\n\n".join(parts)


def stopwatch(subject: Subject, tool: interlace.Tool) -> str:
    """Medians of what passes between the lines of a block."""
    call, args = bare.Tool(subject).net, subject.args
    first, *middle = tool.blocks
    clock, model, replacement = perf_counter_ns, tool.model, subject.replacement

    def nothing() -> list[int]:
        return [clock(), clock()]

    def plain() -> list[int]:
        start = clock()
        call(*args)
        return [start, clock()]

    def empty() -> list[int]:
        start = clock()
        with model.trace(*args):
            opened = clock()
        return [start, opened, clock()]

    def reads() -> list[int]:
        with model.trace(*args):
            first.output  # noqa: B018
            start = clock()
            for block in middle:
                block.output  # noqa: B018
            return [start, clock()]

    def replacements() -> list[int]:
        with model.trace(*args):
            first.output  # noqa: B018
            start = clock()
            for block in middle:
                block.output = replacement
            return [start, clock()]

    floor = _medians(nothing)[0]
    bare_call = _medians(plain)[0] - floor
    opening, leaving = (time - floor for time in _medians(empty))
    read, replaced = ((_medians(run)[0] - floor) / len(middle) for run in (reads, replacements))
    run = leaving - bare_call
    each = bare_call / len(middle)
    lines = [
        ("the bare call", bare_call, ""),
        ("`with model.trace(x):` up to its block", opening, ""),
        ("from the block's end to the line after it", leaving, "the bare call is in it"),
        (
            "... without the bare call",
            run,
            f"{run / subject.modules:.2f} for each module, if it is all theirs",
        ),
        ("from one read of a block to the next", read, f"a block's own call, {each:.2f}, is in it"),
        ("from one replacement of a block to the next", replaced, "likewise"),
    ]
    return report.table(
        ["what passes", "µs", ""], [[what, f"{time:.2f}", note] for what, time, note in lines]
    )


def _medians(run: Callable[[], list[int]]) -> list[float]:
    """Microseconds between the moments that a run tells, each the median over many runs."""
    runs = [[after - before for before, after in pairwise(run())] for _ in range(TIMES)]
    return [statistics.median(column) / 1000 for column in zip(*runs, strict=True)]


def functions(run: Callable[[], object]) -> str:
    """The functions that a profiler finds the most time in, of their own, for one call of `run`."""
    for _ in range(TIMES // 10):
        run()
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(TIMES):
        run()
    profiler.disable()
    stats = sorted(profiler.getstats(), key=lambda entry: entry.inlinetime, reverse=True)
    total = sum(entry.inlinetime for entry in stats)
    rows = [
        [
            f"`{_place(entry.code)}`",
            f"{entry.callcount / TIMES:.1f}",
            f"{entry.inlinetime / TIMES * 1e6:.2f}",
            f"{entry.inlinetime / total:.0%}",
        ]
        for entry in stats[:SHOWN]
    ]
    return report.table(["function", "calls", "own µs, profiled", "share"], rows)


def _place(code: CodeType | str) -> str:
    if isinstance(code, str):
        return code
    path = Path(code.co_filename)
    return f"{path.parent.name}/{path.name}:{code.co_firstlineno} {code.co_name}"

"""Times several ways to do one thing against each other, on a machine that is not quiet.

All contenders take turns within a round, and a contender's extra cost is the median over the rounds of its
time minus the baseline's of the same round: what slows the machine for longer than a round cancels out. Each
calls once before it is timed, or the first call would pay for bringing back to the processor's caches the model
that the others have driven out of them. Time is the thread's own on a processor, so that waiting for one is not
counted; there is one thread.
"""

import statistics
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import count
from time import perf_counter, thread_time_ns

import torch

SAMPLE_NS = 400_000  # short calls are repeated until a sample takes about this long
FEWEST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Contender:
    """A call to time; `settings` are in force around each sample and are not timed themselves."""

    call: Callable[[], object]
    settings: Callable[[], AbstractContextManager[None]] = nullcontext


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds a call takes, how many of them the baseline does not, and the standard error of those."""

    total: float
    extra: float
    error: float


def sample(contender: Contender, repeats: int) -> float:
    """Microseconds per call, over `repeats` calls, after one that is not timed."""
    call = contender.call
    turns = range(repeats)
    with contender.settings():
        call()
        _wait_for_device()
        start = thread_time_ns()
        for _ in turns:
            call()
        _wait_for_device()
        end = thread_time_ns()
    return (end - start) / repeats / 1000


def _wait_for_device() -> None:
    """Let a GPU in use finish; the processor spins for it, so that its time counts."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def interleaved(contenders: Mapping[str, Contender], seconds: float) -> dict[str, Cost]:
    """Measure for about `seconds`; the first contender is the baseline of the others."""
    slowest = max(sample(contender, 1) for contender in contenders.values())
    if slowest < SAMPLE_NS / 1000:  # one call of a quick one says little
        slowest = max(sample(contender, 5) for contender in contenders.values())
    repeats = max(1, int(SAMPLE_NS / 1000 / slowest))

    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    deadline = perf_counter() + seconds
    for turn in count():
        if turn >= FEWEST_ROUNDS and perf_counter() > deadline:
            break
        first = turn % len(names)  # nobody always runs after the same one
        for name in names[first:] + names[:first]:
            times[name].append(sample(contenders[name], repeats))
    base = times[names[0]]
    return {name: _cost(times[name], base) for name in names}


def _cost(times: list[float], base: list[float]) -> Cost:
    extra = [mine - bare for mine, bare in zip(times, base, strict=True)]
    middle = statistics.median(extra)
    deviation = 1.4826 * statistics.median(abs(one - middle) for one in extra)  # robust standard deviation
    error = 1.2533 * deviation / len(extra) ** 0.5  # of a median
    return Cost(statistics.median(times), middle, error)

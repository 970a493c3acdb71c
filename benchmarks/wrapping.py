"""What it costs to wrap a model that nobody has wrapped before, and to get a first value out of it."""

import statistics
from dataclasses import dataclass
from time import thread_time_ns

import torch
from torch import Tensor, nn

import interlace as il

GROUP = 20  # modules in each: itself, and what it holds
SIZES = [400, 5000]


class Nested(nn.Module):
    """About `modules` modules in groups; calling it runs none of them but the last."""

    def __init__(self, modules: int) -> None:
        super().__init__()
        groups = modules // GROUP
        self.groups = nn.ModuleList(
            nn.Sequential(*(nn.Identity() for _ in range(GROUP - 1))) for _ in range(groups)
        )
        self.last = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(x)
        return result


@dataclass(frozen=True, slots=True)
class Wrapping:
    """Microseconds, medians over fresh models; `first_value` is the way from a bare model to a value read."""

    modules: int
    wrap: float
    again: float
    empty: float
    first_value: float


def wrapping(modules: int, fresh: int) -> Wrapping:
    """Measure on so many fresh models of about so many modules."""
    x = torch.zeros(1, 4)
    times: list[tuple[float, float, float, float]] = []
    for _ in range(fresh + 1):
        net = Nested(modules)
        start = thread_time_ns()
        model = il.Model(net)
        wrapped = thread_time_ns()
        with model.trace(x):
            value = model.last.output
        read = thread_time_ns()
        assert torch.equal(value, x)
        il.Model(net)
        again = thread_time_ns()
        with model.trace(x):
            pass
        empty = thread_time_ns()
        times.append((wrapped - start, again - read, empty - again, read - start))
        del model  # or the next round would take this model apart while it is timed
    medians = [statistics.median(column) / 1000 for column in zip(*times[1:], strict=True)]
    return Wrapping(sum(1 for _ in net.modules()), *medians)

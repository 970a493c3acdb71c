"""What interlace wants to cost, and whether a measurement says that it does."""

from dataclasses import dataclass

from benchmarks import workloads
from benchmarks.workloads import Row

PER_TRACE, PER_MODULE = 12.0, 0.3  # microseconds
PER_STEP = 10.0
READ_RATIO, CHECKED_RATIO, UNCHECKED_RATIO = 1.1, 1.4, 1.0
CACHE_RATIO = 1.0
RECORD_RATIO = 1.1  # of the rows a second of a hand-written loop
UNMEASURABLE = 0.01  # of the bare call
WRAP_400 = 100.0  # microseconds
SURE = 2.0  # standard errors


@dataclass(frozen=True, slots=True)
class Aim:
    """A limit on a figure as `text` says it, the figure, and its standard error, all in one unit."""

    text: str
    limit: float
    figure: float
    error: float = 0.0

    @property
    def verdict(self) -> str:
        """Met or not, unless the noise is larger than the distance to the limit."""
        if abs(self.figure - self.limit) < SURE * self.error:
            return "too noisy to say"
        return "met" if self.figure <= self.limit else "**not met**"


def aim_of(row: Row) -> Aim | None:
    """The aim that the project has set itself for this row, if it has."""
    modules, ours = row.subject.modules, row.ours
    match row.workload:
        case workloads.UNTRACED:
            floor = max(UNMEASURABLE * row.bare.total, abs(row.hooks.extra) + SURE * row.hooks.error)
            return Aim("nothing", floor, ours.extra, ours.error)
        case workloads.EMPTY:
            limit = PER_TRACE + PER_MODULE * modules
            return Aim(f"{limit:.0f} µs", limit, ours.extra, ours.error)
        case workloads.READ_ALL:
            return _ratio(row, READ_RATIO)
        case workloads.CACHE_ALL:
            return _ratio(row, CACHE_RATIO)
        case workloads.REPLACE_ALL:
            return _ratio(row, CHECKED_RATIO)
        case workloads.UNCHECKED:
            return _ratio(row, UNCHECKED_RATIO)
        case workloads.GENERATE:
            limit = PER_STEP + PER_MODULE * modules
            steps = workloads.STEPS
            return Aim(f"{limit:.0f} µs a step", limit, ours.extra / steps, ours.error / steps)
        case _:
            return None


def ratio(row: Row) -> float | None:
    """How many times what the hooks cost; none where hooks have nothing to do, or noise drowns their cost."""
    if row.workload.idle or row.hooks.extra < SURE * row.hooks.error:
        return None
    return row.ours.extra / row.hooks.extra


def _ratio(row: Row, limit: float) -> Aim:
    """Compared as microseconds, which stay meaningful when the hooks' own cost drowns in noise."""
    error = (row.ours.error**2 + (limit * row.hooks.error) ** 2) ** 0.5
    return Aim(f"{limit} times", limit * row.hooks.extra, row.ours.extra, error)

"""Which visit a request means: the first of the run, or the first within the current step of a loop.

A step spans two successive starts of the pacemaker: the traced module when a method such as `generate` is
traced, else the first site that the loop's body asks for. Its first turn is begun before that is known. A
loop inside another one has the same pacemaker.
"""

import sys
import warnings
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from math import inf
from types import TracebackType
from typing import Any

from interlace.capture import Body, Family, capture
from interlace.errors import OrderError, TraceError
from interlace.passing import Trail
from interlace.run import Run
from interlace.site import Port, Site

Which = int | slice | Sequence[int]


@dataclass(slots=True)
class Step:
    """One turn: how often each site had been entered and left when it began.

    `waiting` is true until the loop's body has asked for something, when nothing else sets the pace. The step is then
    the first of that site that is not yet over, if that lies before `stop`; else `index` says which.
    """

    index: int
    starts: MutableMapping[Any, int]
    ends: MutableMapping[Any, int]
    waiting: bool = False
    stop: float = 0


class Steps:
    """The position of one trace in its steps."""

    __slots__ = ("current", "depth", "inside", "last", "paced", "pacemaker", "run", "trail")

    def __init__(self, run: Run, pacemaker: Site | None) -> None:
        self.run = run
        self.paced = pacemaker is not None  # else each loop finds its own
        self.pacemaker = pacemaker
        self.last: Site | None = None  # the pacemaker of the loop before
        self.current: Step | None = None
        self.depth = 0
        self.inside = False  # whether the loop that advances is inside another
        self.trail: Trail | None = None  # where it is in what was passed, when a loop has seen the model end

    def number(self, site: Site, port: Port) -> int:
        """The visit that a request made now means."""
        step = self.current
        if step is None:
            return 0
        if step.waiting:
            if self.run.side is not None and self.run.side.key == site.key:
                return 0  # what the block has called itself sets no pace
            step = self._set_pace(site, step)
        return (step.starts if port == "input" else step.ends).get(site.key, 0)

    def joined(self, keys: Iterable[Any], like: Any) -> None:
        """Count further sites from now on: in the current step they begin as `like` did."""
        for counts in (self.current.starts, self.current.ends) if self.current is not None else ():
            number = counts.get(like, 0)
            for key in keys:
                counts[key] = number

    def _set_pace(self, site: Site, step: Step) -> Step:
        self.pacemaker = site
        first, live = self._first(site.key), self.run.live
        index = first if first < step.stop else step.index
        if index == 0 and self._in_first(site.key) and (live is None or live.key != site.key):
            self.current = Step(0, {}, {})
        else:
            self._begin(index, self.run.ask(site, "input", index).number)
        assert self.current is not None
        return self.current

    def _begin(self, index: int, number: int) -> None:
        site, trail, run = self.pacemaker, self.trail, self.run
        assert site is not None
        if trail is not None and run.passing is not None:
            if trail.starts.get(site.key, 0) > number:
                raise OrderError(
                    f"{site.at('input', number)} has passed: an earlier loop went on from it.\n"
                    "A trace runs forward only: loop over steps in the order in which the model makes them."
                )
            trail.follow(run.passing, site.key, number)
        starts, ends = (trail or run).passed_by_now()
        starts[site.key] = number
        self.current = Step(index, starts, ends)

    def _in_first(self, key: Any) -> bool:
        """Whether the model is inside the first call of a site."""
        here = self.trail or self.run
        return here.starts.get(key, 0) == 1 and here.ends.get(key, 0) == 0

    def _first(self, key: Any) -> int:
        """The first step of a site that is not yet over."""
        return 0 if self.depth < 2 and self._in_first(key) else (self.trail or self.run).starts.get(key, 0)

    def advance(self, index: int) -> bool:
        """Run to the beginning of a step; False when the model ended first."""
        site, run = self.pacemaker, self.run
        if site is None:
            self.current = Step(index, {}, {}, waiting=True)
            return True
        if index == 0 and self._in_first(site.key):
            self.current = Step(0, {}, {})
            return True
        if self.paced:
            found = run.ahead(site, "input", index, "all" if self.inside else "first")
        else:
            trail = self.trail or Trail(run.starts, run.ends, run.passing)
            found = run.ahead(site, "input", index, "order")
            self.trail = trail if run.done else None
        if found:
            self._begin(index, index)
        return found

    def loop(self, which: Which) -> Iterator[int]:
        """Each step in turn, until the last one that was asked for or until the model ends."""
        before, inside, pacemaker = self.current, self.inside, self.pacemaker
        self.depth += 1
        if self.depth == 1 and not self.paced:
            self.pacemaker = None
        try:
            for index in self._indices(which):
                self.inside = before is not None
                if not self.advance(index):
                    break
                if self.current is not None and self.current.waiting:
                    self.current.stop = _open_to(which)
                yield index
                if self.current is not None and self.current.waiting:
                    raise TraceError(
                        "The body of this step loop asked for nothing, so nothing says where a step ends.\n"
                        "Ask for a value in it, or trace a method such as `generate`."
                    )
        finally:
            self.depth -= 1
            self.current, self.inside = before, inside
            self.last = self.pacemaker or self.last
            if self.depth == 0:
                self.pacemaker = pacemaker

    def _indices(self, which: Which) -> Iterator[int]:
        if isinstance(which, slice):
            return self._slice(which)
        chosen: list[Any] = [which] if isinstance(which, int) else list(which)
        if any(not isinstance(n, int) or n < 0 for n in chosen) or chosen != sorted(set(chosen)):
            raise TraceError(
                f"Steps are counted from 0 and come in order, each once; {which!r} cannot be run."
            )
        return iter(chosen)

    def _slice(self, which: slice) -> Iterator[int]:
        stride = 1 if which.step is None else which.step
        if stride < 1 or (which.start or 0) < 0 or (which.stop is not None and which.stop < 0):
            raise TraceError(
                f"tracer.iter[{which.start}:{which.stop}:{which.step}] counts from the end, which nobody "
                "knows while the model runs.\nUse steps from 0 upward."
            )
        index = which.start if which.start is not None else self._next(_open_to(which))
        while which.stop is None or index < which.stop:
            yield index
            done = self.current.index if self.current is not None else index
            # The number was too high where another site sets the pace than in the loop before.
            index = min(index, done)
            index += stride * max(1, -((index - done - 1) // stride))  # past where `next` has led

    def _next(self, stop: float) -> int:
        """The first step that is not yet over; where nobody knows of which site, it may go on from the loop before."""
        if self.pacemaker is not None:
            return self._first(self.pacemaker.key)
        key = None if self.last is None else self.last.key
        first = self._first(key)
        none_left = self.run.done and first >= self.run.starts[key]
        return 0 if none_left or first >= stop else first

    def next(self, step: int = 1) -> None:
        """Go on to a later step, outside of a loop or inside one."""
        if step < 1:
            raise TraceError(f"next({step}) would go back; a trace runs forward only.")
        index = (self.current.index if self.current is not None else 0) + step
        if not self.advance(index):
            assert self.pacemaker is not None
            self.run.ask(self.pacemaker, "input", index)


def _open_to(which: Which) -> float:
    """Where a loop ends that begins where the model is; 0 for one that says where it begins."""
    if not isinstance(which, slice) or which.start is not None:
        return 0
    return inf if which.stop is None else which.stop


class Loop(Iterator[int]):
    """Some steps of a run, for a `for` loop; under a `with`, the older form, its block runs once a step."""

    __slots__ = ("_body", "_steps")

    old: str | None = (
        "`with tracer.iter[...] as step:` is an old form; write `for step in tracer.iter[...]:`."
    )
    """What is said of the form with `with`."""

    def __init__(self, steps: Iterator[int]) -> None:
        self._steps = steps
        self._body: Body | None = None

    def __iter__(self) -> Iterator[int]:
        return self._steps

    def __next__(self) -> int:
        return next(self._steps)

    def __enter__(self) -> int:
        frame = sys._getframe(1)
        if self.old is not None:
            warnings.warn(self.old, DeprecationWarning, stacklevel=2)
        self._body = capture(frame, "Write `for step in tracer.iter[...]:` instead: that needs no source.")
        self._body.skip()
        return -1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        body, self._body = self._body, None
        if body is None or not body.left(error, None):
            return False
        family = Family()
        scope = body.scope(rebinds=True)
        family.add(scope)
        try:
            for step in self._steps:
                if body.template.bound_as is not None:
                    scope._il_set_(body.template.bound_as, step)
                body.run(scope)
        finally:
            family.close(body.frame)
        return True


class Iter:
    """`tracer.iter`: the steps of a repeated run, chosen as one chooses from a list."""

    __slots__ = ("_steps",)

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def __getitem__(self, which: Which) -> "Loop":
        return Loop(self._steps.loop(which))

    def __iter__(self) -> Iterator[int]:
        return self._steps.loop(slice(None))

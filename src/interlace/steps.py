"""Which visit a request means: the first of the run, or the first within the current step of a loop.

A step spans two successive starts of the pacemaker: the traced module when a method such as `generate` is
traced, else the first site that the loop's body asked for.
"""

import sys
import warnings
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from interlace.capture import Body, Family, capture
from interlace.errors import TraceError
from interlace.run import Run
from interlace.site import Port, Site

Which = int | slice | Sequence[int]


@dataclass(slots=True)
class Step:
    """One turn: how often each site had been entered and left when it began.

    `waiting` is true until the loop's body has asked for something, when nothing else sets the pace.
    """

    index: int
    starts: MutableMapping[Any, int]
    ends: MutableMapping[Any, int]
    waiting: bool = False
    open: bool = False


class Steps:
    """The position of one trace in its steps."""

    __slots__ = ("current", "inside", "pacemaker", "run")

    def __init__(self, run: Run, pacemaker: Site | None) -> None:
        self.run = run
        self.pacemaker = pacemaker
        self.current: Step | None = None
        self.inside = False  # whether the loop that advances is inside another

    def number(self, site: Site, port: Port) -> int:
        """The visit that a request made now means."""
        step = self.current
        if step is None:
            return 0
        if step.waiting:
            step = self._set_pace(site, step)
        return (step.starts if port == "input" else step.ends).get(site.key, 0)

    def joined(self, keys: Iterable[Any], like: Any) -> None:
        """Count further sites from now on: in the current step they begin as `like` did."""
        for counts in (self.current.starts, self.current.ends) if self.current is not None else ():
            counts.update(dict.fromkeys(keys, counts.get(like, 0)))

    def _set_pace(self, site: Site, step: Step) -> Step:
        self.pacemaker = site
        index = self.run.starts[site.key] if step.open else step.index
        self._begin(index, self.run.ask(site, "input", index).number)
        assert self.current is not None
        return self.current

    def _begin(self, index: int, number: int) -> None:
        assert self.pacemaker is not None
        starts = dict(self.run.starts)
        starts[self.pacemaker.key] = number
        self.current = Step(index, starts, dict(self.run.ends))

    def advance(self, index: int) -> bool:
        """Run to the beginning of a step; False when the model ended first."""
        site, run = self.pacemaker, self.run
        if site is None:
            self.current = Step(index, {}, {}, waiting=True)
            return True
        if index == 0 and run.starts[site.key] == 1 and run.ends[site.key] == 0:
            self.current = Step(0, {}, {})
            return True
        if not run.ahead(site, "input", index, self.inside):
            return False
        self._begin(index, index)
        return True

    def loop(self, which: Which) -> Iterator[int]:
        """Each step in turn, until the last one that was asked for or until the model ends."""
        before, inside = self.current, self.inside
        try:
            for index in self._indices(which):
                self.inside = before is not None
                if not self.advance(index):
                    break
                if self.current is not None and self.current.waiting:
                    self.current.open = isinstance(which, slice) and which.start is None
                yield index
                if self.current is not None and self.current.waiting:
                    raise TraceError(
                        "The body of this step loop asked for nothing, so nothing says where a step ends.\n"
                        "Ask for a value in it, or trace a method such as `generate`."
                    )
        finally:
            self.current, self.inside = before, inside

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
        index = which.start if which.start is not None else self._next()
        while which.stop is None or index < which.stop:
            yield index
            done = self.current.index if self.current is not None else index
            index += stride * max(1, -((index - done - 1) // stride))  # past where `next` has led

    def _next(self) -> int:
        """The first step that is not yet over."""
        if self.pacemaker is None:
            return 0
        seen = self.run.starts[self.pacemaker.key]
        return 0 if seen == 1 and self.run.ends[self.pacemaker.key] == 0 and self.current is None else seen

    def next(self, step: int = 1) -> None:
        """Go on to a later step, outside of a loop or inside one."""
        if step < 1:
            raise TraceError(f"next({step}) would go back; a trace runs forward only.")
        index = (self.current.index if self.current is not None else 0) + step
        if not self.advance(index):
            assert self.pacemaker is not None
            self.run.ask(self.pacemaker, "input", index)


class Loop(Iterator[int]):
    """Some steps of a run, for a `for` loop; under a `with`, the older form, its block runs once a step."""

    __slots__ = ("_body", "_steps")

    def __init__(self, steps: Iterator[int]) -> None:
        self._steps = steps
        self._body: Body | None = None

    def __iter__(self) -> Iterator[int]:
        return self._steps

    def __next__(self) -> int:
        return next(self._steps)

    def __enter__(self) -> int:
        frame = sys._getframe(1)
        warnings.warn(
            "`with tracer.iter[...] as step:` is an old form; write `for step in tracer.iter[...]:`.",
            DeprecationWarning,
            stacklevel=2,
        )
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

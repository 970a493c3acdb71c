"""One block beside others in a run, on a stack of its own.

The model never pauses for a `Worker`: at a visit that it waits for, its stack is resumed from the model's
own. To a block its worker looks like the `Run` of a trace that is its alone. Who goes on when is for the
`Schedule` to say.
"""

import sys
import threading
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from interlace.errors import NotReachedError, OrderError, TraceError
from interlace.frames import Owner
from interlace.passing import Keep, Passing
from interlace.pieces import RowVisit, join
from interlace.recall import Key, weakly
from interlace.rows import Rows
from interlace.run import Run, remember, settle
from interlace.site import Past, Port, Site, Visit
from interlace.switch import Switch, in_operator

if TYPE_CHECKING:
    from interlace.schedule import Schedule
    from interlace.trace import Trace
    from interlace.tree import Tree


class Worker:
    """One block beside others in a run.

    Args:
        trace: The trace that the block is a part of; all parts of it may take turns in any order.
        body: Runs the block.
        rows: The rows that are its own; None for all.
        name: What errors call it.
        trees: Whose envoys the block asks.
        keep: Told what the block returns.

    Attributes:
        place: Where it stands among the others.
        want: The visit that it waits for.
        until: What it waits for otherwise; called to see whether that has come.
        waits: The same in words.
        pending: Called before the model goes on.
        side: A visit that the block made itself (`envoy(..., hook=True)`), until its next request.
        tells: A visit that it has paused for, so that it is told of.
        trace: The part of the trace that runs the block.
        pause: Hands the turn back.
    """

    __slots__ = (
        "_body", "_coverage", "_ended", "_keep", "_looked", "_schedule", "_trees", "_view", "name", "pause", "pending",
        "place", "reads", "rows", "side", "switch", "tells", "trace", "until", "waits", "want",
    )  # fmt: skip

    frames: Mapping[int, Any] = {}
    """No forward runs here for the run: what the block calls itself is nobody's operation."""

    def __init__(
        self,
        trace: "Trace",
        body: Callable[[], Any],
        rows: Rows | None,
        name: str,
        trees: "tuple[Tree, ...]",
        keep: Callable[[Any], None] | None,
    ) -> None:
        self.name = name
        self.rows = rows
        self.place = 0
        self.side: Any = None
        self.reads: dict[Key, Any] = {}
        self.want: tuple[Any, int, Port] | None = None
        self.until: Callable[[], bool] | None = None
        self.waits: Callable[[], str] | None = None
        self.pending: list[Callable[[], None]] = []
        self.tells: tuple[Visit, Port] | None = None
        self.trace: Trace | None = trace._part()
        self._body: Callable[[], Any] | None = body
        self._trees = trees
        self._keep = keep
        self._view: RowVisit | None = None
        self._schedule: Schedule | None = None
        tracer = sys.gettrace()
        self._coverage = None if tracer is None else _coverage(tracer)
        self._looked = False
        self._ended: dict[Any, int] = {}  # visits of each site when these rows of a generation had ended
        alone = self._coverage is None
        self.switch = Switch(self._serve if alone else self._serve_measured, self, trace._owner)
        self.pause = self.switch.pause if alone else self._pause

    def note(self, live: Visit) -> None:
        """Note, without keeping it alive, what the block has read at a visit and what it has made of it."""
        if self.rows is None:
            remember(self.reads, live, live.port)
            return
        view = self._view
        if view is None or view.visit is not live:
            return
        if "result" in view.pieces:
            self.reads[live.key, live.number, "output"] = weakly(view.result)
        args = view.args if "args" in view.pieces else ()
        kwargs = view.kwargs if "kwargs" in view.pieces else {}
        if args or kwargs:
            first = args[0] if args else next(iter(kwargs.values()))
            self.reads[live.key, live.number, "input"] = weakly(first)

    def _serve(self) -> None:
        """Run the block, while requests of this stack go to its part of the trace."""
        body, part = self._body, self.trace
        assert body is not None
        assert part is not None
        self._body, owner = None, Owner(sys._getframe())
        part._run, part._owner = self, owner  # type: ignore[assignment]
        try:
            try:
                for tree in self._trees:
                    tree.opened(owner, part)
                result = body()
                if self.pending:  # edits in place that go back when the model goes on
                    self.settle()
                    self.pending.clear()
                if self._keep is not None:
                    self._keep(result)
            finally:
                self._over(part, owner)
        except BaseException:
            self._over(part, owner)  # again: an interrupt may have fallen into it
            raise

    def _over(self, part: "Trace", owner: Owner) -> None:
        """Nothing on this stack asks any more."""
        for tree in self._trees:
            tree.closed(owner, part)
        if self.reads:
            part._tree.remember(self.reads)
            self.reads = {}
        part._run = part._steps = part._outer = self.trace = None

    def _serve_measured(self) -> None:
        sys.settrace(self._coverage)
        try:
            self._serve()
        finally:
            own = getattr(sys.gettrace(), "__self__", None)
            sys.settrace(None)
            if own is not None:
                own.warn = None  # the slow tracer of coverage would find itself off, and say so

    # -- what a block's trace asks of its run ---------------------------------------------------------------------

    @property
    def schedule(self) -> "Schedule":
        """The blocks that this one stands beside."""
        if self._schedule is None:
            raise TraceError("This block is over.")
        return self._schedule

    @property
    def run(self) -> Run:
        """The run of the model."""
        return self.schedule.run

    @property
    def starts(self) -> Any:
        """How often each site has been entered."""
        return self.run.starts

    @property
    def ends(self) -> Any:
        """How often each site has been left."""
        return self.run.ends

    def passed_by_now(self) -> tuple[dict[Any, int], dict[Any, int]]:
        """How often each site has been entered, and left."""
        return self.run.passed_by_now()

    @property
    def passing(self) -> Passing | None:
        """What is passed in search of a step."""
        return self.run.passing

    @property
    def kinds(self) -> Any:
        """The type of each site's output."""
        return self.run.kinds

    @property
    def done(self) -> bool:
        """Whether the model's run is over."""
        return self.schedule.over

    @property
    def stopped(self) -> bool:
        """Whether a block ended the run."""
        return self.run.stopped

    @property
    def failed(self) -> BaseException | None:
        """What the model raised."""
        return self.run.failed

    @property
    def live(self) -> Any:
        """The visit at which the model is, with this block's rows."""
        live = self.schedule.live
        return live if live is None or self.rows is None else self._own(live)

    def where(self) -> str:
        """Where the model is now, in words."""
        return self.run.where()

    def watch(self, key: Any, port: Port, watcher: Callable[[Any], None]) -> None:
        """Have `watcher` called at every visit of a site from now on."""
        rows = self.rows
        if rows is None:
            self.run.watch(key, port, watcher)
            return

        def narrowed(visit: Visit) -> None:
            own = RowVisit(visit, rows)
            watcher(own)
            join(visit, [own])

        self.run.watch(key, port, narrowed)

    def record(self, keys: Collection[Any], port: Port, recorder: Callable[[Any], None]) -> None:
        """Have `recorder` called at every visit of these sites, with this block's rows. See `Run.record`."""
        rows = self.rows
        if rows is not None:
            whole = recorder

            def recorder(visit: Visit) -> None:
                whole(RowVisit(visit, rows))

        self.run.record(keys, port, recorder)

    def ask(self, site: Site, port: Port, number: int) -> Any:
        """Wait until the model reaches a visit. See `Run.ask`."""
        if self.side is not None:
            if self.side.key == site.key:
                return self.side
            self.side = None
        schedule = self._schedule or self.schedule
        key, live, rows = site.key, schedule.live, self.rows
        if self._ended and 0 < self._ended.get(key, 0) <= number:
            raise NotReachedError(
                f"{site.at(port, number)} was not reached: this prompt ended before, while others went on."
            )
        if (
            live is not None
            and live.key == key
            and live.number == number
            and (live.port == port or port == "input")
        ):
            return live if rows is None else self._own(live)
        run = schedule.run
        if run.seen(key, port) > number:
            return self._past(site, port, number)
        if self.pending:
            self.settle()
            self.pending.clear()
        if schedule.over or run.stopped:
            raise NotReachedError(run._missed(site, port, number))
        self.want = want = (key, number, port)
        schedule.expect(self, want)
        self.pause()
        live = schedule.live
        if self.want is not None or live is None:
            self._unmet(run, site, port, number)
        assert live is not None
        run._site = site
        if port == "output":
            run.kinds[key] = live.result.__class__
        return live if rows is None else self._own(live)

    def _unmet(self, run: Run, site: Site, port: Port, number: int) -> NoReturn:
        """The visit has not come."""
        self.want = None
        raise NotReachedError(run._missed(site, port, number))

    def _past(self, site: Site, port: Port, number: int) -> Any:
        """What came after the last step of a loop that saw the model end can still be read."""
        schedule = self.schedule
        visit = schedule.passed(site.key, number) if self._looked else None
        if visit is None:
            raise OrderError(schedule.run._passed(site, port, number) + schedule.why(self))
        own: Any = visit if self.rows is None else RowVisit(visit, self.rows)
        return Past(own, site.at(port, number))

    def ahead(self, site: Site, port: Port, number: int, keep: Keep = "first") -> bool:
        """Wait like `ask`, and tell whether the visit came before the model ended."""
        schedule = self.schedule
        _outside_operators()
        self.side = None  # what the block calls itself is no step of the model
        schedule.look_ahead(self, keep)
        self._looked = True
        try:
            self.ask(site, port, number)
        except NotReachedError:
            return False
        except OrderError:
            if not schedule.over:
                self._looked = False
                schedule.looked(self)
            raise
        if not schedule.over:  # else it came in what had been passed
            self._looked = False
            schedule.looked(self)
        if self._steps() is None:
            return True
        self._ended = {**self.starts, site.key: number}
        return False

    def _steps(self) -> int | None:
        """After how many generated tokens these rows ended, None if they have not."""
        finished = self.schedule.finished
        return None if finished is None or self.rows is None else finished.steps(self.rows)

    def unpadded(self, value: Any, dims: tuple[int, ...]) -> Any:
        """A value of these rows without what other prompts brought."""
        return value if self.rows is None else self.rows.unpadded(value, dims, self._steps())

    def finish(self) -> Any:
        """Wait for the end of the model's run; this block's rows of what it returned."""
        schedule = self.schedule
        self.settle()
        self.pending.clear()
        if not schedule.over:
            self.wait(lambda: schedule.over, lambda: "the end of the run")
        return schedule.result if self.rows is None else self.rows.narrow(schedule.result)

    def settle(self) -> None:
        """Let what waits for the model to go on have its effect now."""
        settle(self.pending)

    def stop(self) -> None:
        """End the model's run for all blocks."""
        self.run.stopped = True

    def skip(self, site: Site, visit: Any, value: Any) -> None:
        """Let `value` stand for this block's rows of a call."""
        if self.rows is None:
            self.run.skip(site, visit, value)
        else:
            self.schedule.skip(site, self.rows, value)

    def beside(
        self, site: Site, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Make a call on the block's side that counts as the next visit of a site."""
        self.side = self.run.called(site, call, args, kwargs, self._tell)
        return self.side.result

    def _tell(self, visit: Visit, port: Port) -> None:
        """Let everybody else see a visit that this block makes itself: the model tells of it, on its own stack."""
        _outside_operators()
        self.tells = visit, port
        self.pause()

    # -- turns ----------------------------------------------------------------------------------------------------

    def wait(self, until: Callable[[], bool], waits: Callable[[], str]) -> None:
        """Wait for something else than the model.

        Raises:
            TraceError: It will never come.
        """
        _outside_operators()
        self.until, self.waits = until, waits
        self.schedule.hold(self)
        self.pause()
        if self.until is not None:
            self.until = None
            raise TraceError(self.schedule.stuck(self))

    def _pause(self) -> None:
        """Hand the turn back, and with it the place of the tracer."""
        own = sys.gettrace()
        sys.settrace(None)
        try:
            self.switch.pause()
        finally:
            sys.settrace(own)

    def _own(self, visit: Visit) -> RowVisit:
        schedule = self._schedule or self.schedule
        view, views, rows = self._view, schedule.views, self.rows
        if view is None or view.visit is not visit or view not in views:  # at the output it has new pieces
            assert rows is not None
            view = self._view = RowVisit(visit, rows)
            views.append(view)
        return view

    def leave(self) -> None:
        """Unwind it where it waits."""
        if not self.switch.done:
            self.switch.end()
        self.switch.carries = None  # it carries this worker, which holds it
        self.pause = self.switch.pause  # a bound method of its own would hold it
        self._schedule = self._body = self._view = self.trace = None
        self.pending.clear()


def _outside_operators() -> None:
    """Blocks that take turns in any order cannot leave operators in the order in which torch needs it."""
    if in_operator(sys._getframe(2), None):
        raise TraceError(
            "A block beside others cannot wait inside a torch operator written in Python.\n"
            "Wait before the operator is called."
        )


def _coverage(tracer: Any) -> Any:
    """A tracer of its own for a worker's stack, where coverage is attached to the thread.

    Coverage keeps one stack of frames in a tracer, which two interleaved stacks would unbalance.
    """
    if type(getattr(tracer, "__self__", tracer)).__module__.partition(".")[0] != "coverage":
        return None
    return threading.gettrace()

"""Several blocks served by one run of a model, in the order in which the model passes what they ask for.

Each block runs on a stack of its own, a `Worker`. The model never pauses for them: at a visit that workers
wait for, their stacks are resumed from the model's own, one after the other, stored edits first. To a block
its worker looks like the `Run` of a trace that is its alone.
"""

from collections.abc import Callable, Collection
from typing import Any

from interlace.errors import NotReachedError, OrderError, RunEnded, TraceError
from interlace.rows import Rows, RowVisit
from interlace.run import Run
from interlace.site import Port, Site, Visit, spell
from interlace.switch import Switch

_END = object()


class Worker:
    """One block beside others in a run.

    Args:
        body: Runs the block.
        rows: The rows that are its own; None for all.
        name: What errors call it.

    Attributes:
        want: The visit it waits for.
        until: What it waits for otherwise; called to see whether that has come.
        waits: The same in words.
    """

    def __init__(self, body: Callable[["Worker"], Any], rows: Rows | None, name: str) -> None:
        self.name = name
        self.rows = rows
        self.side: Any = None
        self.want: tuple[Any, int, Port] | None = None
        self.until: Callable[[], bool] | None = None
        self.waits = ""
        self.trace: Any = None
        self._body: Callable[[Worker], Any] | None = body
        self._view: Any = None
        self._seen: Visit | None = None
        self._schedule: Schedule | None = None
        self.switch = Switch(self._start, self)

    def _start(self) -> Any:
        body, self._body = self._body, None
        assert body is not None
        return body(self)

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

    @property
    def kinds(self) -> Any:
        """The type of each site's output, where it was seen."""
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
        return None if live is None else self._own(live)

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
            own.join()

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
        schedule, run = self.schedule, self.run
        live = schedule.live
        here = live is not None and live.key == site.key and live.number == number
        if live is not None and here and (live.port == port or port == "input"):
            return self._own(live)
        if (run.starts if port == "input" else run.ends)[site.key] > number:
            raise OrderError(run._passed(site, port, number) + schedule.why(self))
        if not schedule.over and not run.stopped:
            self.want = (site.key, number, port)
            schedule.expect(site.key, port)
            self.switch.pause()
        if self.want is not None or schedule.live is None:
            self.want = None
            raise NotReachedError(run._missed(site, port, number))
        run._site = site
        return self._own(schedule.live)

    def ahead(self, site: Site, port: Port, number: int, inside: bool = False) -> bool:  # noqa: ARG002
        """Wait like `ask`, and tell whether the visit came before the model ended."""
        try:
            self.ask(site, port, number)
        except NotReachedError:
            return False
        return True

    def finish(self) -> Any:
        """Wait for the end of the model's run; this block's rows of what it returned."""
        schedule = self.schedule
        if not schedule.over:
            self.wait(lambda: schedule.over, "the end of the run")
        return schedule.result if self.rows is None else self.rows.narrow(schedule.result)

    def stop(self) -> None:
        """End the model's run for all blocks."""
        self.run.stopped = True

    def skip(self, site: Site, visit: Any, value: Any) -> None:
        """Let `value` stand for this block's rows of a call."""
        if self.rows is None:
            self.run.skip(site, visit, value)
        else:
            self.schedule.skip(site, self.rows, value)

    # -- turns ----------------------------------------------------------------------------------------------------

    def wait(self, until: Callable[[], bool], waits: str) -> None:
        """Wait for something else than the model.

        Raises:
            TraceError: It will never come.
        """
        self.until, self.waits = until, waits
        self.switch.pause()
        if self.until is not None:
            self.until = None
            raise TraceError(self.schedule.stuck(self))

    def _own(self, visit: Visit) -> Any:
        if self.rows is None:
            return visit
        if self._seen is not visit:
            self._seen, self._view = visit, RowVisit(visit, self.rows)
        return self._view

    def ready(self, live: Visit | None) -> bool:
        """Whether what it waits for has come."""
        if self.until is not None:
            if not self.until():
                return False
            self.until = None
            return True
        if self.want is None:
            return True
        return live is not None and self.want == (live.key, live.number, live.port)

    def go_on(self) -> None:
        """Run to the next thing that it waits for."""
        self.switch.resume()
        if self._view is not None:
            self._view.join()
            self._view = self._seen = None

    def leave(self) -> None:
        """Unwind it where it waits."""
        self.switch.end()
        self.switch.carries = None  # it carries this worker, which holds it
        self._schedule = self._body = self._view = self._seen = None


class Served(Run):
    """A run whose workers are started before its model is."""

    __slots__ = ("begun", "schedule")
    begun: bool
    schedule: "Schedule | None"

    def ask(self, site: Site, port: Port, number: int) -> Visit:
        """Run the model until it reaches a visit. See `Run.ask`."""
        self._first()
        return super().ask(site, port, number)

    def finish(self) -> Any:
        """Let the model run to its end and return what it returned."""
        self._first()
        return super().finish()

    def where(self) -> str:
        """Where the model is now, in words: it does not pause for workers."""
        over = self.failed is not None or self.stopped or self.switch.done
        if over or self.live is not None or self._site is None:
            return super().where()
        return f"the model has reached `{spell(self._site.path)}`"

    def _first(self) -> None:
        schedule = self.schedule
        if self.begun or schedule is None:
            return
        self.begun = True
        try:
            schedule.first_turns()
        except BaseException as error:
            self.failed = error
            self.switch.end()
            self._release()
            raise
        if self.stopped:
            self.switch.end()
            self._release()

    def end(self) -> None:
        """Unwind the model, and the blocks that it does not unwind because it was never started."""
        schedule = self.schedule
        if schedule is not None and not self.switch.started:
            schedule._close()
        super().end()
        if schedule is not None and self.switch.done:
            schedule._close()  # for an interrupt that fell into it before
            self.schedule = None


class Schedule:
    """The workers of one run, in the order in which they take their turns."""

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers
        self.live: Visit | None = None
        self.over = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._run: Run | None = None
        self._expected: set[tuple[Any, Port]] = set()
        self._skips: dict[tuple[Any, int], list[tuple[Rows, Any]]] = {}
        for worker in workers:
            worker._schedule = self

    @property
    def run(self) -> Run:
        """The run that they share."""
        assert self._run is not None
        return self._run

    def around(self, call: Callable[[], Any]) -> Run:
        """The run of a model's call with the workers served."""

        def serve() -> Any:
            try:
                self.result = call()
                self.over = True
                self._last_turns()
            except RunEnded:
                self.over = True
                if self.error is None and self.run.stopped:
                    self._last_turns()
                if self.error is None:
                    raise
            finally:
                self._close()
            if self.error is not None:
                error, self.error = self.error, None
                raise error
            return self.result

        run = self._run = Served(serve)
        run.schedule, run.begun = self, False
        return run

    def first_turns(self) -> None:
        """Before the model starts, on the block's side: run every block to the first thing that it asks for.

        Stacks are started here and not from the model's, so that they stand no deeper than the block itself.
        """
        try:
            self._turns()
        except RunEnded:
            error, self.error = self.error, None
            self._close()
            if error is not None:
                raise error from None

    def _close(self) -> None:
        self.over = True
        for worker in self.workers:
            worker.leave()
        self.workers = []
        self._run = self.live = None
        self._skips.clear()

    # -- on the model's side --------------------------------------------------------------------------------------

    def expect(self, key: Any, port: Port) -> None:
        """Have a site report, since a worker waits for it."""
        if (key, port) not in self._expected:
            self._expected.add((key, port))
            self.run.watch(key, port, self._reached)

    def _reached(self, visit: Visit) -> None:
        if visit.port == "output" and (visit.key, visit.number) in self._skips:
            for rows, value in self._skips.pop((visit.key, visit.number)):
                visit.result = rows.splice(visit.result, value)
        wanted = (visit.key, visit.number, visit.port)
        if not any(worker.want == wanted for worker in self.workers):
            return
        outer, self.live = self.live, visit
        try:
            self._turns()
        finally:
            self.live = outer
        if visit.port == "input" and (visit.key, visit.number) in self._skips:
            self._skip_all(visit)

    def _turns(self) -> None:
        """Resume every worker that can go on, until none can; earlier ones first."""
        while worker := next((w for w in self.workers if not w.switch.done and w.ready(self.live)), None):
            worker.want = None
            worker.go_on()
            if worker.switch.error is not None:
                self.error, worker.switch.error = worker.switch.error, None
                raise RunEnded
        if self.run.stopped and not self.over:
            raise RunEnded

    def _last_turns(self) -> None:
        """After the model: what is not reached any more is an error at the line that waits for it."""
        self._turns()
        while worker := next((w for w in self.workers if not w.switch.done), None):
            late = next((w for w in self.workers if not w.switch.done and w.want is not None), worker)
            late.go_on()
            if late.switch.error is not None:
                self.error, late.switch.error = late.switch.error, None
                raise RunEnded
            self._turns()

    def skip(self, site: Site, rows: Rows, value: Any) -> None:
        """Note that one block skips its rows of the call at whose input the model is."""
        live = self.live
        assert live is not None
        self._skips.setdefault((live.key, live.number), []).append((rows, value))
        self.expect(live.key, "output")
        if sum(rows.size for rows, _ in self._skips[live.key, live.number]) == rows.total:
            self.run.skipped.append(site)

    def _skip_all(self, visit: Visit) -> None:
        """Where every row is skipped the call does not run; else it runs, and its rows are replaced after it."""
        skips = self._skips[visit.key, visit.number]
        if sum(rows.size for rows, _ in skips) == skips[0][0].total:
            ordered = [value for _, value in sorted(skips, key=lambda skip: skip[0].start)]
            visit.skipped, visit.result = True, join(ordered)
            del self._skips[visit.key, visit.number]

    # -- what an error says ---------------------------------------------------------------------------------------

    def why(self, worker: Worker) -> str:
        """What held a worker up, as the end of a message."""
        return f"\n{worker.name} waited for {worker.waits} before it asked." if worker.waits else ""

    def stuck(self, worker: Worker) -> str:
        """Who waits for what, when nobody can go on."""
        others = [f"{w.name} for {w.waits}" for w in self.workers if w.until is not None and w is not worker]
        also = f" So do others: {'; '.join(others)}." if others else ""
        return f"{worker.name} waits for {worker.waits}, which never came: the run is over.{also}"


def join(values: list[Any]) -> Any:
    """Nested values of several prompts as one, their tensors one below the other."""
    import torch

    from interlace import trees

    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values) if first.dim() else first
    inside = trees.children(first)
    if inside is None:
        return first
    parts = [join([trees.children(value)[at][1] for value in values]) for at in range(len(inside))]  # type: ignore[index]
    return trees.rebuild(first, parts)

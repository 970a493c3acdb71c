"""Several blocks served by one run of a model, in the order in which the model passes what they ask for.

At a visit that workers wait for, their stacks are resumed from the model's own, one after the other: stored
edits first, then the blocks in the order in which they are written.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from interlace.errors import RunEnded
from interlace.passing import Keep, Passing
from interlace.pieces import RowVisit, join, splice, stack
from interlace.rows import Rows
from interlace.run import Run
from interlace.served import Finished, Served
from interlace.site import Port, Site, Visit
from interlace.workers import Worker

_grad = torch.is_grad_enabled
Want = tuple[Any, int, Port]


class Schedule:
    """The workers of one run, in the order in which they take their turns.

    Attributes:
        live: The visit at which the model is.
        views: What blocks have of its rows.
        over: Whether the model has ended.
        result: What the model returned.
        error: What a block raised.
        run: The run that they share, until it is over.
    """

    __slots__ = (
        "_ahead", "_held", "_skips", "_waiting", "error", "live", "over", "result", "run", "views",
        "workers",
    )  # fmt: skip

    def __init__(self, workers: list[Worker]) -> None:
        self.workers = workers
        self.live: Visit | None = None
        self.views: list[RowVisit] = []
        self.over = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.run: Served = None  # type: ignore[assignment]
        self._waiting: dict[Want, list[Worker]] = {}
        self._held: list[Worker] = []
        self._skips: dict[tuple[Any, int], list[tuple[Rows, Any]]] = {}
        self._ahead: set[Worker | Run] = set()
        for place, worker in enumerate(workers):
            worker.place, worker._schedule = place, self

    def around(self, call: Callable[[], Any]) -> Run:
        """The run of a model's call with the workers served."""

        def serve() -> Any:
            run = self.run
            try:
                if run.stopped:  # before it has begun
                    raise RunEnded
                self.result = call()
                self.over = True
                self._last_turns()
            except RunEnded:
                self.over = True
                if self.error is None and self.run.stopped:
                    with suppress(RunEnded):  # of a block whose request was waiting
                        self._last_turns()
                if self.error is None:
                    raise
            finally:
                self._close()
            if self.error is not None:
                run._failing = self.error
                self._raise()
            return self.result

        self.run = Served(serve, self)
        return self.run

    @property
    def finished(self) -> Finished | None:
        """Which rows of a generation have ended."""
        return self.run.finished

    def first_turns(self) -> None:
        """Before the model starts, on the block's side: run every block to the first thing that it asks for.

        Stacks are started here and not from the model's, so that they stand no deeper than the block itself.
        """
        try:
            self._turns(list(self.workers))
        except RunEnded:
            self._close()
        if self.error is not None:
            self._raise()

    def _raise(self) -> None:
        """Raise a block's error as if nothing had caught it."""
        error, self.error = self.error, None
        assert error is not None
        try:
            raise error
        finally:
            del error  # else the error and this frame hold each other

    def _close(self) -> None:
        self.over = True
        for worker in self.workers:
            worker.leave()
        self.workers = []
        if self.run is not None:
            self.run.schedule = None
        self.run = self.live = None  # type: ignore[assignment]
        self.views = []
        for kept in (self._waiting, self._held, self._skips, self._ahead):
            kept.clear()

    # -- what a worker waits for ----------------------------------------------------------------------------------

    def expect(self, worker: Worker, want: Want) -> None:
        """Note that a worker waits for a visit, and have its site report."""
        waiting = self._waiting
        if want in waiting:
            waiting[want].append(worker)
            return
        waiting[want] = [worker]
        key, _, port = want
        self.run.report_at(key, port)

    def hold(self, worker: Worker) -> None:
        """Note that a worker waits for something else than the model."""
        self._held.append(worker)

    def look_ahead(self, block: Worker | Run, keep: Keep) -> None:
        """Keep what passes from now on: a block looks for a step that may never come.

        All of it is kept, for other blocks may ask for more meanwhile.
        """
        if not self.over:
            run = self.run
            self._ahead.add(block)
            if run.passing is None:
                run.passing = Passing()
                run.report("all" if keep == "first" else keep)

    def looked(self, block: Worker | Run) -> None:
        """The step has come, or will never be looked for again."""
        if not self.over:
            self._ahead.discard(block)
            if not self._ahead:
                self.run.nobody_looks()

    def passed(self, key: Any, number: int) -> Visit | None:
        """A visit that passed while somebody looked ahead."""
        passing = self.run.passing
        return None if passing is None else passing.visits.get((key, number))

    # -- on the model's side --------------------------------------------------------------------------------------

    def reached(self, visit: Visit) -> None:
        """Resume those who wait for a visit, and hand back to the model what they have made of it."""
        if self._skips and visit.port == "output":
            for rows, value in self._skips.pop((visit.key, visit.number), ()):
                visit.result = splice(rows, visit.result, value)
        ready = self._waiting.pop((visit.key, visit.number, visit.port), None)
        if ready is None:
            return
        outer, self.live = self.live, visit
        views, self.views = self.views, []
        try:
            self._turns(ready)
            if self.views:
                join(visit, self.views)
        finally:
            self.live, self.views = outer, views
        if self._skips:
            self._skip_all(visit)

    def _turns(self, ready: list[Worker]) -> None:
        """Resume workers that can go on, until none can; earlier ones first."""
        if len(ready) > 1:
            ready.sort(key=_place)
        live = self.live
        while ready:
            worker = ready.pop(0)
            worker.want = None
            if self.views and (worker.rows is None or any(map(RowVisit.shares, self.views))):
                assert live is not None  # the worker sees what those before it wrote
                join(live, self.views, again=True)
            switch = worker.switch
            switch.resume()
            if worker.tells is not None:
                self._tell(worker)
            if live is not None and _grad():
                worker.note(live)
            if switch.error is not None:
                self.error, switch.error = switch.error, None
                raise RunEnded
            if self._held:
                self._release(ready)
        if not self.over and self.run.stopped:
            raise RunEnded

    def _tell(self, worker: Worker) -> None:
        """Tell of the calls that a worker makes itself: the block of the trace may wait for them as well."""
        run = self.run
        while worker.tells is not None:
            (visit, port), worker.tells = worker.tells, None
            if run.switch.started:
                run._arrive(visit, port)
            else:
                run.passed_by(visit, port)
            worker.switch.resume()

    def _release(self, ready: list[Worker]) -> None:
        """Workers whose wait for something else has come are ready too."""
        came = [worker for worker in self._held if worker.until is not None and worker.until()]
        for worker in came:
            self._held.remove(worker)
            worker.until = None
        if came:
            ready += came
            ready.sort(key=_place)

    def _last_turns(self) -> None:
        """After the model: what is not reached any more is an error at the line that waits for it."""
        ready: list[Worker] = []
        if self._held:
            self._release(ready)
            self._turns(ready)
        while late := self._late():
            self._waiting.clear()
            if late in self._held:
                self._held.remove(late)
            late.switch.resume()
            if late.tells is not None:
                self._tell(late)
            if late.switch.error is not None:
                self.error, late.switch.error = late.switch.error, None
                raise RunEnded
            self._release(ready)
            self._turns(ready)

    def _late(self) -> Worker | None:
        """The first worker that waits for the model, else the first that waits for anything."""
        late: Worker | None = None
        for worker in self.workers:
            if not worker.switch.done:
                if worker.want is not None:
                    return worker
                late = late or worker
        return late

    def skip(self, site: Site, rows: Rows, value: Any) -> None:
        """Note that one block skips its rows of the call at whose input the model is."""
        live = self.live
        assert live is not None
        self._skips.setdefault((live.key, live.number), []).append((rows, value))
        self.run.report_at(live.key, "output")
        if sum(rows.size for rows, _ in self._skips[live.key, live.number]) == rows.total:
            self.run.skipped.append(site)

    def _skip_all(self, visit: Visit) -> None:
        """Where every row is skipped the call does not run; else it runs, and its rows are replaced after it."""
        skips = self._skips.get((visit.key, visit.number))
        if (
            skips is not None
            and visit.port == "input"
            and sum(rows.size for rows, _ in skips) == skips[0][0].total
        ):
            ordered = [value for _, value in sorted(skips, key=lambda skip: skip[0].start)]
            visit.skipped, visit.result = True, stack(ordered)
            del self._skips[visit.key, visit.number]

    # -- what an error says ---------------------------------------------------------------------------------------

    def why(self, worker: Worker) -> str:
        """What held a worker up, as the end of a message."""
        if worker.waits is None:
            return ""
        name = worker.name[0].upper() + worker.name[1:]
        return f"\n{name} asked for it only after it had waited for {worker.waits()}."

    def stuck(self, worker: Worker) -> str:
        """Who waits for what, when nobody can go on."""
        name = worker.name[0].upper() + worker.name[1:]
        said = f"{name} waits for {_waits(worker)}, which never came: the run is over."
        for other in self.workers:
            if other.until is not None and other is not worker:
                said += f"\nSo does {other.name} for {_waits(other)}."
        return said


def _waits(worker: Worker) -> str:
    return "" if worker.waits is None else worker.waits()


def _place(worker: Worker) -> int:
    return worker.place

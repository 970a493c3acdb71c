"""A run whose blocks are served from the model's side: its first turns, its place in words, its early ends."""

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

from interlace.passing import Keep
from interlace.rows import Rows
from interlace.run import Run
from interlace.site import Port, Site, Visit, spell

if TYPE_CHECKING:
    from interlace.schedule import Schedule


class Served(Run):
    """A run whose workers are started before its model is.

    Attributes:
        begun: Whether they have had their first turn.
        finished: The rows of a generation that have ended.
        raised: What a block raised while another one stopped the run; raised when the trace ends.
    """

    __slots__ = ("_failing", "begun", "finished", "raised")

    def __init__(self, call: Callable[[], Any], schedule: "Schedule") -> None:
        super().__init__(call)
        self.begun = False
        self.finished: Finished | None = None
        self.raised: BaseException | None = None
        self._failing: BaseException | None = None  # a block's, while it is on its way
        self.schedule = schedule

    def ask(self, site: Site, port: Port, number: int) -> Visit:
        """Run the model until it reaches a visit. See `Run.ask`."""
        if not self.begun:
            self._begin()
        return super().ask(site, port, number)

    def finish(self) -> Any:
        """Let the model run to its end and return what it returned."""
        if not self.begun:
            self._begin()
        result = super().finish()
        error, self.raised = self.raised, None
        if error is not None:
            try:
                raise error
            finally:
                del error  # else the error and this frame hold each other
        return result

    def _begin(self) -> None:
        self.begun = True
        assert self.schedule is not None
        try:
            self.schedule.first_turns()
        except BaseException as error:
            self.failed = error
            self.switch.end()
            self._release()
            raise
        if self.stopped:
            self.switch.end()
            self._release()

    def stop(self) -> None:
        """End the model's run where it is, and tell the blocks that wait for it. See `Run.stop`."""
        if not self.begun:
            self._begin()
        if self.switch.started or self.switch.done:
            super().stop()
            return
        self.stopped = True
        self.switch.resume()
        error, self.switch.error = self.switch.error, None  # its traceback holds the run
        kept = error is None or self._keeps(error)
        self._release()
        if error is not None and not kept:
            try:
                raise error  # Ctrl-C, say
            finally:
                del error  # else the error and this frame hold each other

    def _look(self, keep: Keep) -> None:
        if self.schedule is None:
            super()._look(keep)
        else:
            self.schedule.look_ahead(self, keep)

    def _looked(self) -> None:
        if self.schedule is None:
            super()._looked()
        else:
            self.schedule.looked(self)

    def nobody_looks(self) -> None:
        """No block looks ahead any more."""
        super()._looked()

    def end(self) -> None:
        """Unwind the model, and the blocks that it does not unwind because it was never started."""
        schedule = self.schedule
        if self.switch.done:
            self.raised = None  # the trace is over, by another error
            if schedule is None and not self.at_end:
                return
        if schedule is not None and not self.switch.started:
            schedule._close()
        super().end()
        if schedule is not None and self.switch.done:
            schedule._close()  # for an interrupt that fell into it before

    def _keeps(self, error: BaseException) -> bool:
        """Whether an error is to be raised when all is over. See `Run._keeps`."""
        if self._failing is not error or not isinstance(error, Exception):
            return False
        self.raised = error
        return True

    def _release(self) -> None:
        self._failing = None
        super()._release()

    def where(self) -> str:
        """Where the model is now, in words."""
        schedule = self.schedule
        live, site = (None, None) if schedule is None else (schedule.live, self._site)
        if self.stopped:
            return super().where()
        if live is not None and site is not None and site.key == live.key and self.failed is None:
            return f"the model is at {site.at(live.port, live.number)}"
        if schedule is not None and schedule.over and self.failed is None:
            return "the model has finished"
        if site is None or self.live is not None or self.failed is not None or self.done:
            return super().where()
        return f"the model has reached `{spell(site.path)}`"


class Finished:
    """Which rows of a generation have ended, and after how many tokens."""

    def __init__(self, ends: Container[int]) -> None:
        self._ends = ends
        self._length = 0
        self._steps: list[int | None] = []

    def saw(self, tokens: list[int]) -> None:
        """Take in the tokens of one step, one for each row."""
        self._length += 1
        self._steps = self._steps or [None] * len(tokens)
        for row, token in enumerate(tokens):
            if self._steps[row] is None and token in self._ends:
                self._steps[row] = self._length

    def steps(self, rows: Rows) -> int | None:
        """After how many tokens all rows of a prompt had ended; None while one goes on."""
        if len(self._steps) != rows.total:
            return None
        own = [0 if steps is None else steps for steps in self._steps[rows.start : rows.start + rows.size]]
        return max(own) if all(own) else None

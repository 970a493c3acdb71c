"""One call of a model in progress: ask for a visit, receive it, let the model go on, finish or end it.

The order rule lives here. A visit is one occurrence of one site, counted from the start of the run; one that
has passed cannot be had any more, and the error says what order works. A run knows sites and switches; it
does not know modules, and the tap of a module tells it only what happens (`reach`).
"""

import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable
from typing import TYPE_CHECKING, Any

import torch

from interlace import ambient
from interlace.compiled import quick
from interlace.errors import InterlaceWarning, NotReachedError, OrderError, RunEnded, TraceError
from interlace.passing import Keep, Passing
from interlace.recall import Key, weakly
from interlace.site import Past, Port, Site, Visit, spell
from interlace.switch import Switch
from interlace.switch import getcurrent as here

if TYPE_CHECKING:
    from interlace.schedule import Schedule

_Tensor = torch.Tensor
_weak = weakref.ref
_grad = torch.is_grad_enabled
_forward_grad: Any = torch._C._is_fwd_grad_enabled
_top_hooks = ambient.top_hooks

Watcher = Callable[[Visit], None]
"""Called on the model's side at a port of a visit; the model goes on with what it writes there."""


class Everything:
    """A set that has everything in it."""

    def __contains__(self, key: object) -> bool:
        return True


class EveryModule:
    """A set that has the key of every module in it: while a run is being ended, every tap must raise.

    Operations go on: they are what the `finally` block of a rewritten forward is made of.
    """

    def __contains__(self, key: object) -> bool:
        return isinstance(key, int)


NOBODY = object()
"""A stack that nothing executes on. It is not None, which compiled code finds where it asks on which stack it runs."""


class Tally:
    """What a tap looks at and writes to at every call of a module. It is small, and nothing in it is dear.

    A tap that nobody waits for notes a call by appending its key to a list; counting is left to whoever asks.

    Attributes:
        stack: The stack that the run executes on; nobody's before it has begun and when it is over.
        before: The keys at which a tap must report before the call.
        after: The keys at which it must report after the call.
        entered: The calls that have begun since they were last counted.
        left: The calls that have ended, with a result or without, since they were last counted.
    """

    __slots__ = ("after", "before", "entered", "left", "stack")

    def __init__(self) -> None:
        self.stack: Any = NOBODY
        self.before: Container[Any] = set()
        self.after: Container[Any] = set()
        self.entered: list[Any] = []
        self.left: list[Any] = []


FEW = 16
"""How many notes are counted sooner one by one than by the standard library, which takes a while to begin."""


class Counts(dict[Any, int]):
    """How often each key was noted; 0 for one that was not."""

    __slots__ = ()

    def __missing__(self, key: Any) -> int:
        return 0


def _counted(noted: list[Any], counts: Counts) -> Counts:
    """Count what has been noted."""
    if len(noted) < FEW:
        for key in noted:
            counts[key] = counts.get(key, 0) + 1
    else:
        Counter.update(counts, noted)  # type: ignore[call-overload]
    noted.clear()
    return counts


def _counted_by_now(noted: list[Any], counts: Counts) -> dict[Any, int]:
    """What has been counted by now, which later visits leave as it is."""
    return dict(_counted(noted, counts))


_count: Callable[[list[Any], Counts], Counts] = _counted if quick is None else quick.count
_by_now: Callable[[list[Any], Counts], dict[Any, int]] = _counted_by_now if quick is None else quick.by_now


class Run:
    """One call of a model in progress.

    Args:
        call: Runs the model and returns its result.

    Attributes:
        tally: What taps look at and write to.
        known: Tells the keys of the modules that report, until somebody has asked.
        live: The visit at which the model is paused.
        changes: Called before blocks get a visit inside a region that may be recomputed.
        kinds: What kind of value was last asked for at the output of each site, by key.
        frames: The operations that report to this run, by the key of the module whose forward they are in.
        schedule: What serves the blocks that stand beside this one's, until the run is over.
        passing: What is passed in search of a step that may never come.
        at_end: What to undo when the run has ended.
        pending: Called before the model goes on.
        reads: What was read with gradients, remembered weakly.
        side: A visit that the block made itself (`envoy(..., hook=True)`), until its next request.
    """

    __slots__ = (
        "__weakref__", "_asked", "_broken", "_call", "_ends", "_held_back", "_new", "_site", "_starts", "_wanted",
        "at_end", "changes", "failed", "frames", "kinds", "known", "live", "passing", "pending", "reads", "recorders",
        "schedule", "side", "skipped", "stopped", "switch", "tally", "watchers",
    )  # fmt: skip

    def __init__(self, call: Callable[[], Any]) -> None:
        self.tally = tally = Tally()
        self._starts = Counts()
        self._ends = Counts()
        self._asked: dict[Port, Any] = {"input": tally.before, "output": tally.after}
        self.watchers: dict[tuple[Any, Port], list[Watcher]] = {}
        self.recorders: list[tuple[Container[Any], Port, Watcher]] = []
        self.schedule: Schedule | None = None
        self.live: Visit | None = None
        self.side: Visit | None = None
        self.skipped: list[Site] = []
        self.kinds: dict[Any, type] = {}
        self.pending: list[Callable[[], None]] = []
        self.passing: Passing | None = None
        self.stopped = False
        self.failed: BaseException | None = None
        self._wanted: tuple[Any, int, Port] | None = None
        self._site: Site | None = None
        self._held_back = False
        self._broken: set[tuple[Any, int]] = set()
        self._new: set[Any] = set()
        self.known: Callable[[], Iterable[Any]] | None = None
        self.frames: dict[int, Any] = {}
        self.reads: dict[Key, Any] = {}
        self.changes: Callable[[Visit], Callable[[], None] | None] | None = None
        self.at_end: list[Callable[[], None]] = []
        self._call: Callable[[], Any] | None = call
        self.switch = Switch(self._model, self)

    @property
    def starts(self) -> Counts:
        """How often each site has been entered, by key."""
        return _count(self.tally.entered, self._starts)

    @property
    def ends(self) -> Counts:
        """How often each site has been left, by key."""
        return _count(self.tally.left, self._ends)

    def seen(self, key: Any, port: Port) -> int:
        """How often the model has passed a port of a site."""
        noted, counts = (
            (self.tally.left, self._ends) if port == "output" else (self.tally.entered, self._starts)
        )
        if noted:
            _count(noted, counts)
        return counts.get(key, 0)

    def passed_by_now(self) -> tuple[dict[Any, int], dict[Any, int]]:
        """How often each site has been entered, and left: what can be asked with `get`, and changed for a key."""
        return _by_now(self.tally.entered, self._starts), _by_now(self.tally.left, self._ends)

    def count(self) -> None:
        """Count what has been noted, for notes take memory."""
        self.starts, self.ends  # noqa: B018

    @property
    def done(self) -> bool:
        """Whether the model has returned, failed, or been ended."""
        return self.switch.done

    # -- the block's side ------------------------------------------------------------------------------------

    def ask(self, site: Site, port: Port, number: int) -> Visit:
        """Run the model until it reaches a visit, and pause it there.

        Args:
            site: Where.
            port: `input` before the call, `output` after it. The input of a visit can still be read at its
            output.
            number: Which occurrence since the start of the run, from 0.

        Raises:
            OrderError: That visit has passed.
            NotReachedError: The run ended without it.
        """
        key, live = site.key, self.live
        if self.side is not None:
            if self.side.key == key:
                return self.side
            self.side = None
        if live is not None and live.key == key and live.number == number and port in ("input", live.port):
            return live
        tally, switch = self.tally, self.switch
        noted, passed = (tally.left, self._ends) if port == "output" else (tally.entered, self._starts)
        if noted:
            _count(noted, passed)
        if passed.get(key, 0) > number:
            return self._past(site, port, number)
        if switch.done:
            raise NotReachedError(self._missed(site, port, number))
        if self.pending:
            self.settle()
            self.pending.clear()
        self._wanted = (key, number, port)
        self._asked[port].add(key)
        self.live = None
        try:
            switch.resume()
        except TraceError:  # it could not go on, and is where it was
            self.live, self._wanted = live, None
            raise
        live = self.live
        if live is None or switch.done:  # a pause that is refused has failed the model
            raise self.nothing_came(site, port, number)
        self._site = site
        if port == "output":
            self.kinds[key] = live.result.__class__
        return live

    def nothing_came(self, site: Site, port: Port, number: int) -> NotReachedError:
        """The error that says why the model has ended without a visit; the model's own, if it has failed, is raised."""
        self._close()
        return NotReachedError(self._missed(site, port, number))

    def _past(self, site: Site, port: Port, number: int) -> Visit:
        """A visit that has passed, where it can still be read; else the error that says why not."""
        if self.passing is not None and (site.key, number) in self.passing.visits:
            return Past(self.passing.visits[site.key, number], site.at(port, number))
        if port == "output" and (site.key, number) in self._broken:
            raise NotReachedError(self._missed(site, port, number))
        raise OrderError(self._passed(site, port, number))

    def ahead(self, site: Site, port: Port, number: int, keep: Keep = "first") -> bool:
        """Run until a visit like `ask`, and tell whether it came before the model ended.

        If it did not, visits on the way can still be read, for the block had no way to ask for them before.
        """
        self.side = None  # what the block calls itself is no step of the model
        if not self.switch.done:
            self._look(keep)
        try:
            self.ask(site, port, number)
        except NotReachedError:
            return False
        finally:
            if not self.switch.done and not self.switch.ending:
                self._looked()
        return True

    def _look(self, keep: Keep) -> None:
        """Keep what passes from now on."""
        self.passing = Passing()
        self.report(keep)

    def _looked(self) -> None:
        """Nobody looks ahead any more."""
        self.tally.before, self.tally.after = self._asked["input"], self._asked["output"]
        self.passing = None

    def report(self, keep: Keep) -> None:
        """Have what is to be kept report, until nobody looks ahead any more."""
        tally = self.tally
        tally.after = self._asked["output"] | self._unseen() if keep == "first" else Everything()
        if keep == "order":
            tally.before = Everything()

    def _unseen(self) -> set[Any]:
        """The keys of sites that have not been left yet."""
        new = self._new
        if self.known is not None:
            new.update(self.known())
            self.known = None
        seen = self.seen
        new.difference_update([key for key in new if seen(key, "output")])
        return new

    def learn(self, keys: Iterable[Any]) -> None:
        """Know of sites that were not there when the run began."""
        self._new.update(keys)

    def finish(self) -> Any:
        """Let the model run to its end and return what it returned; None if it failed or was stopped."""
        self._wanted = None
        if self.pending:
            try:
                self.settle()
            except BaseException:
                self.end()
                raise
            self.pending.clear()
        while not self.switch.done:
            live, self.live = self.live, None
            try:
                self.switch.resume()
            except TraceError:  # it could not go on, and is where it was
                self.live = live
                raise
            if self.switch.done:
                self._close()
        return self.switch.result

    def settle(self) -> None:
        """Let what waits for the model to go on have its effect now."""
        settle(self.pending)

    def stop(self) -> None:
        """End the model's run where it is. What was read stays; nothing more can be asked for."""
        self.stopped = True
        if self.live is not None:
            remember(self.reads, self.live, self.live.port)
        self.end()

    def end(self) -> None:
        """Unwind the model. Its `finally` blocks run; an error in them is reported as a warning."""
        if self.switch.done:
            if self.at_end:
                self._release()  # an interrupt fell into it before
            return
        self.tally.before = self.tally.after = EveryModule()
        self._wanted = None
        started = self.switch.started
        self.switch.end()
        error, self.switch.error = self.switch.error, None  # its traceback holds the run
        keeps = error is not None and self._keeps(error)
        self._release()
        if not self.switch.done or keeps:
            return  # its stack is left to be unwound later, by the thread that owns it; or the error is raised later
        if error is not None and not isinstance(error, Exception):
            try:
                raise error  # Ctrl-C, say: it must not end as a warning
            finally:
                del error  # else the error and this frame hold each other
        if started and (self._held_back or not self.switch.unwound):
            how = (
                f"raised {type(error).__name__}: {error}"
                if error is not None
                else "returned as if nothing were"
            )
            warnings.warn(
                f"The trace ended before the model did, and the model {how}. A bare `except:` in its code "
                "may hold back the end of a run.",
                InterlaceWarning,
                stacklevel=2,
            )

    def _keeps(self, error: BaseException) -> bool:  # noqa: ARG002
        """Whether what ended with an error was a block beside this one, whose error is raised when all is over."""
        return False

    def _close(self) -> None:
        """The model has ended; an error of it is raised here."""
        error, self.switch.error = self.switch.error, None
        self._release()
        if error is not None:
            self.failed = error
            self._note_skips(error)
            try:
                raise error
            finally:
                del error  # else the error and this frame hold each other

    def _note_skips(self, error: BaseException) -> None:
        """A replacement of a structure that nothing told may be what the model stumbled over."""
        if self.skipped:
            where = ", ".join(f"`{spell(site.path)}`" for site in self.skipped[:3])
            note = f"In this run {where} was skipped: is the replacement what the module would have returned?"
            error.__dict__.setdefault("__notes__", []).append(note)  # `add_note`, from Python 3.11

    def _release(self) -> None:
        self.live = self.side = None
        self.pending.clear()
        self.watchers.clear()
        self.recorders.clear()
        self.frames.clear()
        while self.at_end:
            self.at_end[-1]()
            self.at_end.pop()

    # -- the model's side ------------------------------------------------------------------------------------

    def _model(self) -> Any:
        """The model's call, on its own stack."""
        tally, call, self._call = self.tally, self._call, None
        assert call is not None
        tally.stack = here()
        try:
            return call()
        finally:
            tally.stack = NOBODY

    def watch(self, key: Any, port: Port, watcher: Watcher) -> None:
        """Have `watcher` called at every visit of a site from now on, before the block sees it."""
        self.watchers.setdefault((key, port), []).append(watcher)
        self.report_at(key, port)

    def report_at(self, key: Any, port: Port) -> None:
        """Have the taps of a site report from now on."""
        self._asked[port].add(key)

    def record(self, keys: Collection[Any], port: Port, recorder: Watcher) -> None:
        """Have `recorder` called at every visit of these sites from now on, when the model goes on.

        It sees what everybody has written, and does not write.
        """
        self.recorders.append((keys, port, recorder))
        self._asked[port].update(keys)

    def _record(self, visit: Visit, port: Port) -> None:
        for keys, where, recorder in self.recorders:
            if where == port and visit.key in keys:
                recorder(visit)

    def reach(self, key: Any, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a call that somebody waits for: pause before it, and after it where that was asked for."""
        visit = Visit(key, self.seen(key, "input"), args, kwargs)
        self.tally.entered.append(key)
        self._arrive(visit, "input")
        if not visit.skipped:
            try:
                visit.result = call(*visit.args, **visit.kwargs)
            except BaseException:
                self.broke(key)
                raise
        self.tally.left.append(key)
        if key in self.tally.after:
            visit.number = self.seen(key, "output") - 1
            self._arrive(visit, "output")
        return visit.result

    def broke(self, key: Any) -> None:
        """Note that a call has ended with an error, so that its output is no visit."""
        ends = self.ends
        self._broken.add((key, ends[key]))
        ends[key] += 1
        if self.passing is not None:
            self.passing.log.append((key, "output"))

    def leave(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Report a call that has been made, and return what the model goes on with."""
        number = _count(self.tally.left, self._ends)[key] - 1
        visit = Visit(key, number, args, kwargs, "output", result)
        self._arrive(visit, "output")
        return visit.result

    def _arrive(self, visit: Visit, port: Port) -> None:
        switch, key, wanted = self.switch, visit.key, self._wanted
        if switch.ending:
            self._held_back |= port == "output"  # a call that should have been unwound
            raise RunEnded
        visit.port = port
        changed = None
        if self.changes is not None and (not _forward_grad() or _top_hooks(True) is not None):
            changed = self.changes(visit)
        self._tell(visit, port)
        if self.passing is not None and not switch.done:
            self.passing.add(visit, isinstance(self.tally.after, Everything))
        if wanted == (key, visit.number, port):
            self._wanted = None
            if self.schedule is None and not self.recorders and (key, port) not in self.watchers:
                self._asked[port].discard(key)
            self.live = visit
            switch.pause()
            if port == "output" and (result := visit.result).__class__ is _Tensor:
                if result.requires_grad:
                    self.reads[key, visit.number, port] = _weak(result)
            elif _grad():
                remember(self.reads, visit, port)
        if changed is not None:
            changed()
        if self.recorders:
            self._record(visit, port)

    # -- what an error says ----------------------------------------------------------------------------------

    def where(self) -> str:
        """Where the model is now, in words."""
        if self.failed is not None:
            return f"the model has failed with {type(self.failed).__name__}"
        if self.stopped:
            return "the run was stopped"
        if self.switch.done:
            return "the model has finished"
        if self.live is None or self._site is None:
            return "the model has not started"
        return f"the model is paused at {self._site.at(self.live.port, self.live.number)}"

    def _passed(self, site: Site, port: Port, number: int) -> str:
        seen = self.ends[site.key]
        times = f" It has been called {seen} times so far." if seen > 1 else ""
        return (
            f"{site.at(port, number)} has passed; {self.where()}.{times}\n"
            "A trace runs forward only: ask for values in the order in which the model computes them."
        )

    def _missed(self, site: Site, port: Port, number: int) -> str:
        said = f"{site.at(port, number)} was not reached: {self.where()}"
        if self.stopped or self.failed is not None:
            return said + ".\nAsk for it before that, or open a new trace."
        if port == "output" and (site.key, number) in self._broken:
            return said + ", and that call raised an error.\nAsk for a later visit, or for its input."
        for skipped in self.skipped:
            if site.under(skipped):
                said += f", and {skipped.at('output')} was skipped"
                return said + ".\nAsk for it in a trace that does not skip it."
        seen = self.starts[site.key]
        if seen:
            return said + f" after {seen} visit{'s' * (seen > 1)} of it.\nVisits are counted from 0."
        return said + (
            " and never called it.\nNot seen are a branch not taken, an unused expert, `module.forward(...)` "
            "called by hand, and calls in other threads."
        )

    def beside(
        self, site: Site, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Make a call on the block's side that counts as the next visit of a site."""
        self.side = self.called(site, call, args, kwargs, self.passed_by)
        return self.side.result

    def called(
        self,
        site: Site,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tell: Callable[[Visit, Port], None],
    ) -> Visit:
        """Make a call that counts as the next visit of a site, and tell of it."""
        visit = Visit(site.key, self.starts[site.key], args, kwargs)
        self.tally.entered.append(site.key)
        tell(visit, "input")
        try:
            visit.result = call(*visit.args, **visit.kwargs)
        except BaseException:
            self.broke(site.key)
            raise
        self.tally.left.append(site.key)
        visit.number = self.seen(site.key, "output") - 1
        tell(visit, "output")
        return visit

    def passed_by(self, visit: Visit, port: Port) -> None:
        """Tell of a visit, and record it, where the model cannot be paused."""
        self._tell(visit, port)
        self._record(visit, port)

    def _tell(self, visit: Visit, port: Port) -> None:
        visit.port = port
        for watcher in self.watchers.get((visit.key, port), ()):
            watcher(visit)
        if self.schedule is not None:
            self.schedule.reached(visit)

    def skip(self, site: Site, visit: Visit, value: Any) -> None:
        """Let `value` stand for the call at whose input the model is paused."""
        visit.skipped, visit.result = True, value
        self.skipped.append(site)


def settle(pending: list[Callable[[], None]]) -> None:
    """Call what waits for the model to go on; none of it twice if one of them fails."""
    try:
        for call in list(pending):
            call()
    except BaseException:
        pending.clear()
        raise


def remember(reads: dict[Key, Any], visit: Visit, port: Port) -> None:
    """Note, without keeping it alive, what a block has read at a visit, and what it has made of it."""
    if port == "output":
        value = visit.result
    else:
        value = visit.args[0] if visit.args else next(iter(visit.kwargs.values()), None)
    weak = weakly(value)
    if weak is not None:
        reads[visit.key, visit.number, port] = weak

"""What `with model.trace(...):` opens: one run of the model, served to the block that it stands over.

The block runs natively in the caller's frame. Each request that it makes of an envoy lets the model run until
that value exists; leaving the block lets it finish.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from interlace import edit, frames
from interlace.breaks import Break, break_at
from interlace.cache import Cache, chosen_ports
from interlace.errors import InputError, NotReachedError, OrderError, TraceError
from interlace.invoke import Barrier, Invoke, Prompts
from interlace.keeping import Positions, keeper
from interlace.recompute import Changes
from interlace.run import Run, remember
from interlace.schedule import Schedule
from interlace.selection import Modules, choose
from interlace.shards import SHARD_BYTES
from interlace.site import Port, Site, Visit
from interlace.steps import Iter, Steps
from interlace.switch import carried
from interlace.tap import Taps
from interlace.tracebacks import trim
from interlace.tree import Tree
from interlace.unseen import why
from interlace.workers import Worker
from interlace.writes import stand_in

Call = Callable[[], Any]


class Trace:
    """One run of a model, and the block that it waits for.

    Args:
        model: The envoy to trace.
        tree: Its tree.
        call: Prepares the input and returns the call to run, or raises `InputError`; called on entering.
        paced: Whether the traced module's starts are the steps of this run, because a method of it is traced.

    Attributes:
        model: The envoy that was traced.
    """

    # All else that a user has no use for begins with an underscore, so that a subclass may take any other name.

    _thread = 0
    _taps: Taps | None = None
    _run: Run | None = None
    _outer: "Trace | None" = None
    _prompts: Prompts | None = None
    _prepare: Callable[[], Call] | None = None
    _steps: Steps | None = None
    _result: Any = None
    _no_result: str | None = "its `with` block has not begun"

    def __init__(self, model: Any, tree: Tree, call: Callable[[], Call], paced: bool = False) -> None:
        self.model = model
        self._tree = tree
        self._call: Callable[[], Call] | None = call
        self._paced = paced
        self._trees: tuple[Tree, ...] = (tree,)
        self._strays: list[Taps] = []
        self._breaks: list[Break] = []
        self._caches: list[Cache] = []
        self._unfused: dict[nn.Module, RemovableHandle] = {}

    def __enter__(self) -> "Trace":
        if self._call is None:
            raise TraceError("A trace is opened once; call `.trace(...)` again for another run.")
        prepare, self._call = self._call, None
        waits = getattr(prepare, "waits", False)
        try:
            call = None if waits else prepare()
        except BaseException as failed:
            trim(failed)
            raise
        self._thread = threading.get_ident()
        self._owner = frames.owner(sys._getframe(1))
        self._taps = self._tree.taps()
        self._prepare = prepare
        try:
            if call is not None:
                self._begin(call)
            self._taps.install(self)
            for tree in self._trees:
                tree.opened(self._owner, self)
            return self
        except BaseException:
            self._drop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            try:
                if error is not None:
                    trim(error)
                else:
                    run = self._start() if self._run is None else self._run
                    run.finish()
            except BaseException as failed:
                error = failed
                trim(failed)
                raise
            finally:
                self._leave_run(error)
        except BaseException:
            self._drop()
            raise
        finally:
            error = None  # else the error and this frame hold each other

    def _leave_run(self, error: BaseException | None) -> None:
        """Keep what the run has given, end it, and close what stood over it."""
        run = self._run
        if run is not None and (run.failed is not None or run.stopped):
            self._no_result = run.where()
        elif run is not None and run.switch.done:
            self._result, self._no_result = run.switch.result, None
        elif error is not None:
            self._no_result = f"the block ended with {type(error).__name__}"
        if run is not None:
            run.end()
        self._close()
        if self._prompts is not None:
            self._close_prompts()
        if self._caches:
            self._close_caches(run, error is None)

    def _drop(self) -> None:
        """Do what is left of that, each part whatever comes of the others: an interrupt may fall on any line."""
        run = self._run
        try:
            if run is not None:
                run.end()
        finally:
            try:
                self._close()
            finally:
                try:
                    self._close_prompts()
                finally:
                    self._close_caches(run, False)

    def _close(self) -> None:
        """Undo what entering did. An interrupt may fall anywhere in it; it is then done again."""
        taps = self._taps
        if taps is None:
            return
        for tree in self._trees:
            tree.closed(self._owner, self)
        for placed in (taps, *self._strays):
            placed.remove(self)
        self._strays.clear()
        for handle in self._unfused.values():
            handle.remove()
        self._unfused.clear()
        if self._run is not None:
            self._run.failed = None  # its traceback holds the run
            if self._run.reads:
                self._tree.remember(self._run.reads)
        self._run = self._steps = self._prepare = self._taps = None
        self._breaks.clear()

    def _close_prompts(self) -> None:
        """Give the names that their blocks have assigned to the frame of this trace."""
        prompts, self._prompts = self._prompts, None
        if prompts is not None:
            prompts.close()

    def _close_caches(self, run: Run | None, whole: bool) -> None:
        """Close each, though what one of them reports may be an error."""
        failed: list[BaseException] = []
        while self._caches:
            try:
                self._caches.pop(0)._close(run, whole)
            except BaseException as error:
                failed.append(error)
        if failed:
            try:
                raise failed[0]
            finally:
                failed.clear()  # else the error and this frame hold each other

    def __del__(self) -> None:
        if self._taps is not None:
            if self._run is not None:
                self._run.end()
            self._close()

    # -- several blocks ---------------------------------------------------------------------------------------

    _runs: type[Run] = Run
    """What a call is run as when no other blocks are served."""

    def _edits(self) -> list[Worker]:
        """The stored edits of the model, as blocks that come before those of this trace."""
        return list(map(partial(edit.worker, self), self._tree.edits))

    def _begin(self, call: Call, blocks: Sequence[Worker] = ()) -> Run:
        """Make the run of a call: with the stored edits and blocks served, if there are any."""
        workers = [*self._edits(), *blocks] if blocks or self._tree.edits else []
        self._run = run = Schedule(workers).around(call) if workers else self._runs(call)
        self._steps = None
        if self._taps is not None:
            self._taps.serve(run.tally)
            run.known = self._taps.keys
            run.changes = Changes(self._taps).enter
        for point in self._breaks:
            point.set(run)
        for cache in self._caches:
            cache._attach(self, run)
        return run

    def _retap(self, taps: Taps) -> None:
        """Put taps on the modules that are there now: real weights may have come with the input."""
        if self._taps is not None:
            self._taps.remove(self)
        self._taps = taps
        taps.install(self)

    def _stepping(self) -> Steps:
        """The position in the steps of the run, which most runs do without."""
        run = self._running
        here = self._here()
        if here._steps is None:
            here._steps = Steps(run, here.model._site if here._paced else None)
        return here._steps

    def _start(self) -> Run:
        """Make the run of a trace whose input is in its invokes."""
        prepare, prompts = self._prepare, self._prompts
        if prepare is None:
            raise TraceError("This trace is not open: its `with` block has not begun, or is over.")
        call, rows = (prepare(), []) if prompts is None else prompts.call(prepare)
        taps = self._tree.taps()
        if taps is not self._taps:
            self._retap(taps)
        return self._begin(call, () if prompts is None else prompts.workers(self, rows))

    def invoke(self, *args: Any, **kwargs: Any) -> Invoke:
        """One prompt of several in this run: `with tracer.invoke(x):`, or `@tracer.invoke(x)` over a function.

        Args:
            *args: Its input; without any, the block sees the whole batch.
            **kwargs: Like `args`.

        Raises:
            TraceError: The model has started.
        """
        if self._taps is None or (self._run is not None and self._run.switch.started):
            raise TraceError(
                "An invoke must be opened before the model starts, inside the trace.\n"
                "Write it above the first line of the block that asks for a value."
            )
        if self._run is not None:
            self._run.switch.end()  # it has not begun, and another one takes its place
        self._run = self._steps = None
        if self._prompts is None:
            self._prompts = Prompts()
        return Invoke(self._prompts, (args, kwargs) if args or kwargs else None)

    def barrier(self, count: int) -> Barrier:
        """A point where that many blocks wait for each other: call what this returns in each of them."""
        return Barrier(count)

    def unpadded(self, value: torch.Tensor, *dims: int) -> torch.Tensor:
        """A prompt's rows without what the other prompts of the batch brought.

        Those are positions on the left, where another prompt is longer, and tokens on the right of what was
        generated, where another one went on. It is a view: edits in place, and gradients, go through it.

        Args:
            value: Rows of the prompt in whose block this is called; anywhere else it is returned as it is.
            *dims: The axes that count positions; 1 when none is named, as in `batch pos d_model`.

        Raises:
            TypeError: The value is no tensor.

        Example:
            >>> import interlace as il
            >>> model = il.demo_model()
            >>> with model.trace() as tracer:
            ...     with tracer.invoke("3 4"):
            ...         hidden = tracer.unpadded(model.transformer.h[0].input)
            ...     with tracer.invoke("3 4 5 6 7"):
            ...         pattern = tracer.unpadded(model.transformer.h[0].attn.output[0], 1)
            >>> hidden.shape[1], pattern.shape[1]
            (2, 5)
        """
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"`unpadded` takes one tensor, not {type(value).__name__}.")
        run = cast("Run | Worker", self._running)
        return run.unpadded(value, dims or (1,)) if isinstance(run, Worker) else value

    def _part(self) -> "Trace":
        """The trace of one block among several, which has what a request needs, and nothing to open or close."""
        part: Trace = object.__new__(type(self))
        part.model, part._tree, part._paced, part._thread = self.model, self._tree, self._paced, self._thread
        part._outer = self
        return part

    def _here(self) -> "Trace":
        """This trace, or the part of it that runs the block which asks."""
        part: Trace | None = getattr(carried(), "trace", None)
        return part if part is not None and part._outer is self else self

    # -- requests -----------------------------------------------------------------------------------------------

    def _visit(self, site: Site, port: Port) -> Visit:
        """Run the model to the visit of a site that a request made now means."""
        run, steps = self._run, self._steps
        if run is None:
            site = self._begun(site)
            run = self._run
            assert run is not None
        number = 0 if steps is None or steps.current is None else steps.number(site, port)
        try:
            visit = run.ask(site, port, number)
        except OrderError:
            found = self._tree.recalled(sys._getframe(1), site, port, number)
            if found is None:
                raise
            return found
        except NotReachedError as error:
            self._unreached(error, site)
            raise
        if port == "input" and visit.port == "output":
            remember(run.reads, visit, port)
        return visit

    def _unreached(self, error: NotReachedError, site: Site) -> None:
        """Raise an error that says more of why a site was not reached, where more is known."""
        run = self._run
        reason = why(self._tree.module, self._tree.path, site)
        if reason is not None and run is not None and run.failed is None and not run.stopped:
            raise NotReachedError(f"{str(error).partition(chr(10))[0]}\n{reason}") from None

    def _begun(self, site: Site) -> Site:
        """A site once the run has begun: its input may have brought real weights, and with them other modules."""
        if self._run is None:
            self._start()
            envoy = self._tree.envoys.get(site.path)
            return site if envoy is None else envoy._site
        return site

    def _before(self, site: Site, what: str = "changed") -> Visit:
        """Like `_visit` at the input, for a write: the call must not have begun."""
        visit = self._visit(site, "input")
        if visit.port != "input":
            raise OrderError(
                f"{site.at('input', visit.number)} cannot be {what} any more: the call has been made.\n"
                f"{'Skip' if what == 'skipped' else 'Write'} it before you ask for the output."
            )
        return visit

    def _skip(self, site: Site, value: Any) -> None:
        """Let `value` stand for the next call of a site.

        Raises:
            WriteError: A scan, or an earlier visit, told that the site gives something of another structure.
        """
        site = self._begun(site)
        visit, run = self._before(site, "skipped"), self._running
        scanned = self._tree.shapes.get(site.path)
        run.skip(site, visit, stand_in(value, site, run.kinds.get(site.key), scanned))

    def _joined(self, keys: Iterable[Any], like: Any) -> None:
        """Count further sites from now on: in the current step they begin as `like` did."""
        if self._steps is not None:
            self._steps.joined(keys, like)

    @property
    def _running(self) -> Run:
        """The run in progress."""
        here = self._here()
        return here._start() if here._run is None else here._run

    @property
    def _model_run(self) -> Run:
        """The run of the model itself, which several blocks may share."""
        run = cast("Run | Worker", self._running)
        return run.run if isinstance(run, Worker) else run

    def _before_going_on(self, call: Callable[[], None]) -> None:
        """Have something called before the model goes on: at the next request, or when the block ends."""
        self._running.pending.append(call)

    def _settle(self) -> None:
        """Let what waits for the model to go on have its effect now."""
        if self._running.pending:
            self._running.settle()

    def _tap(self, module: nn.Module) -> None:
        """Let a module that the tree has just learned of report in this run."""
        if self._outer is not None:
            self._outer._tap(module)
        elif not any(
            module in placed.modules for placed in (self._taps, *self._strays) if placed is not None
        ):
            self._strays.append(Taps(module.modules()))
            self._strays[-1].install(self)
            if self._run is not None:  # else it begins with taps that know the module
                self._run.learn(self._strays[-1].keys())

    def _unfuse(self, module: nn.Module) -> None:
        """Keep torch's fused path from passing over this module in this run.

        The presence of any hook switches it off, as it would for a hand-written one.
        """
        if self._outer is not None:
            self._outer._unfuse(module)
        elif module not in self._unfused:
            self._unfused[module] = module.register_forward_pre_hook(_nothing)

    # -- what the block may do -------------------------------------------------------------------------------

    @property
    def result(self) -> Any:
        """What the traced call returned (token ids for `generate`); in the block, the model finishes first.

        Raises:
            TraceError: There is none: the model failed, the run was stopped, or the block ended early with an error.
        """
        if self._no_result is None:
            return self._result
        here = self._here()
        run = here._run
        if run is None and here._prepare is not None:
            run = here._start()
        if run is None:
            if self._no_result is not None:
                raise TraceError(f"The traced call returned nothing: {self._no_result}.")
            return self._result
        result = run.finish()
        if run.failed is not None or run.stopped:
            raise TraceError(f"The traced call returned nothing: {run.where()}.")
        return result

    def cache(
        self,
        modules: Modules = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        detach: bool = True,
        include_output: bool = True,
        include_inputs: bool = False,
        *,
        clone: bool = False,
        positions: Positions = None,
        pos_axis: int | None = None,
        to: str | os.PathLike[str] | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> Cache:
        """Record many sites from now on, each visit as the model goes on from it.

        Args:
            modules: An envoy, a path (`transformer.h.3`), a pattern of a path's end (`h.*.mlp`, `**` for any
                number of names), a class of modules, a predicate of envoys, an operation, an iterable of those,
                or None for every module.
            device: Where tensors are kept; None for where they are.
            dtype: What floating-point tensors become; None for what they are.
            detach: Cut them off from the graph.
            include_output: Record what was returned.
            include_inputs: Record what modules were called with.
            clone: Copy, so that what is done to a tensor in place later does not show; else keep a view.
            positions: Keep these along the second axis of every `batch pos ...` tensor.
            pos_axis: Another axis for them.
            to: A folder; values are written there while the model runs, and are in memory no longer.
            shard_bytes: How large a file in it grows, and how much waits in memory.

        Returns:
            What is recorded, under the names of the model, in the block and after it.

        Raises:
            NameMissError: A path or pattern fits nothing.
            InputError: The modules or settings mean nothing here.
            RecordingError: The folder was begun with other settings.

        Example:
            >>> import interlace as il
            >>> model = il.demo_model()
            >>> with model.trace("The capital of France is") as tracer:
            ...     cache = tracer.cache("h.*.mlp")
            >>> cache.transformer.h[0].mlp.output.shape == cache["transformer.h.0.mlp"].output.shape
            True
        """
        here = self._here()
        top = here._outer or here
        if top._taps is None:
            raise TraceError("This trace is not open, so there is nothing to record.")
        self._tree.load()  # a site is a module with its weights
        keep = keeper(device, dtype, detach, clone, positions, pos_axis)
        ports = chosen_ports(include_output, include_inputs)
        wanted = choose(self.model, modules)
        cache = Cache(self._tree.outline(), wanted, keep, ports)
        if to is not None:
            kept = {"dtype": str(dtype), "positions": repr(positions), "pos_axis": pos_axis}
            cache._write_to(to, kept, shard_bytes)
        if here._run is not None:
            cache._attach(here, here._run)
        top._caches.append(cache)
        return cache

    def stop(self) -> None:
        """End the model's run here. What was read stays, and the statements after this one run.

        Raises:
            TraceError: The model itself runs here: this is a hook, or code of the model.
        """
        if carried() is self._model_run:
            raise TraceError(
                "`tracer.stop()` was called from inside the model's own run (a hook, or code of the model).\n"
                "Call it in the block of the trace."
            )
        self._running.stop()

    def break_at(
        self, at: Any = None, number: int = 0, *, port: Port | None = None, nonfinite: bool = False
    ) -> None:
        """Open the debugger, as `breakpoint()` does, when the model comes to a site.

        It stands at the line of the model that makes the call. `value` is what is there, `where` says where that
        is; the model goes on with what `value` is when the debugger is left.

        Args:
            at: An envoy, an operation of its `source`, or a path: `"transformer.h[3].mlp.input"`.
            number: Which visit since the start of the run, from 0.
            port: `output`, the default, or `input`.
            nonfinite: In place of a site: where the model first makes a nan or an infinity.

        Raises:
            OrderError: That visit has passed.
            NameMissError: The path leads nowhere.
        """
        if self._taps is None:
            raise TraceError("This trace is not open: its `with` block has not begun, or is over.")
        point = break_at(self, at, number, port, nonfinite, sys._getframe(1))
        if self._here()._run is not None:
            point.set(self._model_run)
        self._breaks.append(point)

    @property
    def iter(self) -> Iter:
        """The steps of a repeated run: `for step in tracer.iter[:3]:`, an int, a slice or a list of ints.

        The loop ends when the model does; the code after it runs.
        """
        return Iter(self._stepping())

    def all(self) -> Iterator[int]:
        """Every step, until the model ends: the same as `iter[:]`."""
        return self.iter[:]

    def next(self, step: int = 1) -> "Trace":
        """Go on to a later step; requests after this one mean visits in it."""
        self._stepping().next(step)
        return self


def _nothing(module: nn.Module, args: Any) -> None:
    """A hook that changes nothing but torch's choice of path."""


def no_input(call: str) -> InputError:
    """The error of a trace that was opened with nothing to run on.

    Args:
        call: What opened it: `model.trace`.
    """
    return InputError(
        f"`{call}()` was opened without an input.\nWrite `with {call}(x):` with what the model takes."
    )

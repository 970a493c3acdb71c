"""Run a function on a stack of its own, in strict turns with whoever resumes it.

A `Switch` is one such function: `resume` runs it until it pauses or ends, `pause` hands the turn back. Both
sides keep their own world: torch's ambient state, context variables, the exception being handled, coverage's
trace function.

A fresh greenlet costs twenty times a switch, so each thread keeps a few that wait for their next job; that
pool is the one piece of state here that no caller made. This is the only module that knows greenlet. It knows
nothing of models.
"""

import contextvars
import functools
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable
from threading import get_ident
from types import FrameType
from typing import Any

import torch
from greenlet import GreenletExit as GreenletExit
from greenlet import getcurrent as getcurrent
from greenlet import greenlet

from interlace import ambient, unwind
from interlace.compiled import quick
from interlace.errors import InterlaceWarning, RunEnded, ThreadError, TraceError

_transform = ambient.transform
_gettrace = sys.gettrace
_ambient_now = ambient.read if quick is None else quick.ambient

TURN = ()
"""What `switch()` gives when the other side has called it with nothing."""

KEPT = 32
"""How many idle workers a thread keeps."""

FAR = 1 << 16
"""Bytes of the resumer's stack that a switch may copy before its worker is replaced by a nearer one."""


IN_TRANSFORM = (
    "The model cannot pause inside a transform of torch.func (vmap, grad, ...): torch keeps one interpreter for "
    "both sides.\nAsk for the value outside of the transformed function."
)

DEEP = 200
"""How many calls deep a worker may have been started to be kept: all its jobs begin at that depth of recursion."""


class Worker(greenlet):
    """A stack that waits for jobs. `tracing` is what its job was started for; a tap looks it up there."""

    def __init__(self) -> None:
        super().__init__(_enter)
        self.job: Switch | None = None
        self.tracing: Any = None
        self.depth = _depth()


@functools.cache
def pass_dynamo() -> None:
    """Let torch.compile see through whoever asks where it executes: compiled code is no run's.

    Without it each module would end the graph, with a warning.
    """
    substitute = getattr(torch.compiler, "substitute_in_graph", None)  # torch 2.5 knows none
    if substitute is not None:
        substitute(getcurrent, skip_signature_check=True)(lambda: None)


class Home:
    """What one thread keeps: idle workers, who is parked, and runs whose trace was left on another thread."""

    __slots__ = ("abandoned", "ident", "idle", "parked", "thread")

    def __init__(self) -> None:
        self.idle: list[Worker] = []
        self.parked: list[object] = []
        self.abandoned: deque[Switch] = deque()
        self.thread = threading.current_thread()
        self.ident = get_ident()

    def __del__(self) -> None:
        """Let idle workers come to their end while their thread still can: later nothing frees their frames."""
        if get_ident() == self.ident and not sys.is_finalizing():
            while self.idle:
                worker = self.idle.pop()
                worker.parent = getcurrent()
                worker.switch()


class _Homes(threading.local):
    """Where the home of the current thread is found."""

    def __init__(self) -> None:
        self.home = Home()


_homes = _Homes()
_guard: list[Callable[[Callable[[], object]], object]] = []


def home() -> Home:
    """What this thread keeps."""
    return _homes.home


def _depth() -> int:
    """How deep in calls a stack that is started now begins, counted no further than matters."""
    frame: FrameType | None = sys._getframe(1)
    here = getcurrent()
    depth = here.depth if isinstance(here, Worker) else 0
    while frame is not None and depth <= DEEP:
        depth, frame = depth + 1, frame.f_back
    return depth


def guard() -> Callable[[Callable[[], object]], object]:
    """The call that every stack begins with; made once.

    Raises:
        PlatformError: None can be had.
    """
    if not _guard:
        _guard.append(unwind.guarded_call())
    return _guard[0]


def _enter() -> None:
    """The base of every worker's stack."""
    _guard[0](_work)


def _work() -> None:
    """The frame that is outermost on every worker's stack."""
    worker = getcurrent()
    assert isinstance(worker, Worker)
    work(worker)


def work(worker: Worker) -> None:
    """Do one job after the other until the pool drops this worker."""
    while worker.job is not None:
        idle = worker.job._home.idle
        try:
            worker.job._execute()
        finally:
            worker.job = worker.tracing = None
        resumer = worker.parent
        assert resumer is not None
        if resumer._stack_saved > FAR or worker.depth > DEEP or len(idle) >= KEPT:  # type: ignore[attr-defined]
            return
        idle.append(worker)
        resumer.switch()
        del resumer


def carried() -> Any:
    """What the job that executes here was started for; None on any other stack."""
    return getattr(getcurrent(), "tracing", None)


def waiting() -> FrameType | None:
    """The innermost frame of whoever waits for the job that executes here; None on any other stack."""
    here = getcurrent()
    return here.parent.gr_frame if isinstance(here, Worker) and here.parent is not None else None


class Switch:
    """One function on a stack of its own.

    Args:
        function: Runs on the other stack when first resumed.
        carries: What `carried()` returns there.
        token: What it is known by while it is parked. Switches that share one go on in any order among
            themselves; none of them may pause inside an operator that is written in Python.
    """

    __slots__ = (
        "__weakref__", "_abandoned", "_ambient", "_context", "_function", "_home", "_level", "_resumer", "_token",
        "_worker", "carries", "done", "ending", "error", "result", "unwound",
    )  # fmt: skip

    def __init__(self, function: Callable[[], Any], carries: Any, token: object = None) -> None:
        if not _guard:
            guard()
        self._function: Callable[[], Any] | None = function
        self.carries = carries
        self._worker: Worker | None = None
        self._resumer: greenlet | None = None
        self._ambient: ambient.State = _ambient_now()
        self._context: contextvars.Context | None = contextvars.copy_context()
        self._level = 0 if _transform() is None else ambient.functorch_level()
        home = self._home = _homes.home
        if home.abandoned:
            unwind_abandoned()
        self._abandoned = False
        self._token = object() if token is None else token
        self.done = False
        self.ending = False
        self.unwound = False
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def started(self) -> bool:
        """Whether the function has begun."""
        return self._function is None

    @property
    def frame(self) -> FrameType | None:
        """The innermost frame of the function where it pauses."""
        return None if self._worker is None else self._worker.gr_frame

    # -- the side that resumes -------------------------------------------------------------------------------

    def resume(self) -> None:
        """Run the function until it pauses or ends; `done` tells which.

        Raises:
            ThreadError: On another thread than the one that made this switch.
            TraceError: Where torch does not allow the two stacks to take turns out of order.
        """
        home, resumer = self._home, getcurrent()
        if resumer is not self._resumer:
            self._meet(resumer)
        if home.abandoned and self._unwound_before():
            return
        worker, parked, token = self._worker, home.parked, self._token
        if worker is None:
            worker = self._start(home, resumer)
        elif parked and parked[-1] is token:
            parked.pop()
        else:
            self._take_turn(parked, worker)
        mine, theirs, tracer = _ambient_now(), self._ambient, _gettrace()
        if tracer is not None and _is_coverage(tracer):
            sys.settrace(None)  # here and nowhere deeper: coverage must see this frame return
        there = False
        try:
            if mine is not theirs and mine != theirs:
                ambient.swap(mine, theirs)
            there = True
            came = worker.switch()
            while came is not TURN and not self.done:  # a greenlet that the model switched to has ended here
                came = worker.switch(came)
        finally:
            try:
                now = _ambient_now()
                self._ambient = now if there else theirs
                if now is not mine and now != mine:
                    ambient.swap(now, mine)
            except BaseException:
                ambient.swap(_ambient_now(), mine)  # an interrupt fell into it
                raise
            if tracer is not None:
                sys.settrace(tracer)
        if self.done:
            self._worker = self._resumer = None
            worker.gr_context = None
        else:
            parked.append(token)

    def _meet(self, resumer: greenlet) -> None:
        """Take the turn from another stack than the last time."""
        if get_ident() != self._home.ident:
            raise ThreadError(
                "This trace belongs to another thread; open a trace in the thread that uses it."
            )
        if self._worker is not None:
            self._worker.parent = resumer
        self._resumer = resumer

    def _unwound_before(self) -> bool:
        """Unwind what was left, and tell whether this was one of them."""
        unwind_abandoned()
        return self.done

    def _take_turn(self, parked: list[object], worker: Worker) -> None:
        """Go on although others were parked later."""
        if self._token in parked:
            _refuse_operator_frames(worker.gr_frame, sys._getframe(1))
            parked.remove(self._token)

    def _start(self, home: Home, resumer: greenlet) -> Worker:
        worker = home.idle.pop() if home.idle else Worker()
        worker.parent = resumer
        worker.job, worker.tracing, self.carries = self, self.carries, None
        worker.gr_context, self._context = self._context, None
        self._worker = worker
        return worker

    def end(self) -> None:
        """Unwind the function wherever it pauses, so that its `finally` blocks run and nothing stays alive.

        On another thread than the switch's own nothing can be unwound, nor where torch forbids it now: it is
        left for that thread's next trace.
        """
        self.ending = True
        if self.done:
            return
        if self._worker is None:
            self._forget()
        elif sys.is_finalizing():
            return  # no stack can be switched to any more, and all of them are about to go
        elif _homes.home is not self._home:
            self._leave_to_owner()
        elif self._worker.dead:  # an interrupt fell outside of the function
            self._forget()
        else:
            try:
                self.resume()
            except TraceError:
                self._home.abandoned.append(self)

    def _forget(self) -> None:
        self.done = True
        self._function = self._context = self.carries = self._worker = self._resumer = None

    def _leave_to_owner(self) -> None:
        if self._abandoned:
            return
        self._abandoned = True
        if self._home.thread.is_alive():
            self._home.abandoned.append(self)
        else:
            warnings.warn(
                "A trace outlived the thread that opened it; the model and the values of its run stay in "
                "memory. Leave the `with` block in the thread that entered it.",
                InterlaceWarning,
                stacklevel=2,
            )

    # -- the side that is resumed ----------------------------------------------------------------------------

    def pause(self) -> None:
        """Hand the turn back, from inside the function; returns when resumed.

        Raises:
            RunEnded: The switch is being ended; the stack unwinds.
            TraceError: Inside a transform of `torch.func`, whose interpreter cannot be left half-way.
        """
        if self.ending:
            raise RunEnded
        if (_transform() is not None or self._level) and ambient.functorch_level() != self._level:
            raise TraceError(IN_TRANSFORM)
        resumer = self._resumer
        assert resumer is not None
        resumer.switch()
        del resumer  # else the two stacks hold each other
        if self.ending:
            raise RunEnded

    def _execute(self) -> None:
        function, self._function = self._function, None
        assert function is not None
        try:
            self.result = function()
        except RunEnded:
            self.unwound = True
        except GreenletExit:  # the worker itself is going away
            self.done = True
            raise
        except BaseException as error:
            self.error = error.with_traceback(error.__traceback__.tb_next if error.__traceback__ else None)
        self.done = True


def unwind_abandoned() -> None:
    """End what could not be unwound when it was left: on another thread, or before others that had to end first."""
    queue = _homes.home.abandoned
    before = len(queue) + 1
    while 0 < len(queue) < before:  # one that ends may be what another waited for
        before = len(queue)
        for _ in range(before):
            if queue:
                switch = queue.popleft()
                switch.end()
                switch.error = None


def _is_coverage(tracer: Any) -> bool:
    """Whether a trace function is coverage's, which must not see the model's side.

    It keeps one stack of frames a thread, which two interleaved stacks would unbalance. Debuggers may stay.
    """
    owner = getattr(tracer, "__self__", tracer)
    return type(owner).__module__.partition(".")[0] == "coverage"


OPERATORS = frozenset(
    kind.__init__.__code__.co_filename
    for kind in (torch._ops.OpOverload, torch._library.custom_ops.CustomOpDef)
)
"""The files of torch whose code runs an operator that is written in Python."""


def in_operator(frame: FrameType | None, until: FrameType | None) -> bool:
    """Whether an operator of torch runs Python code on a stack, from `frame` outward to `until`."""
    while frame is not None and frame is not until:
        if frame.f_code.co_filename in OPERATORS:
            return True
        frame = frame.f_back
    return False


def _refuse_operator_frames(*stacks: FrameType | None) -> None:
    """Raise where two stacks inside Python operators of torch would be left in another order than entered.

    pybind11 keeps a chain of pointers into the native stack for each thread and aborts the process when it is
    broken.
    """
    if any(in_operator(frame, None) for frame in stacks):
        raise TraceError(
            "A trace paused inside a custom torch operator must be the last one paused when it goes on.\n"
            "Finish the traces that were opened or advanced after it first, or ask for a value outside of the "
            "operator."
        )

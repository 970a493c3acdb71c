"""All that depends on the version of the interpreter: leave a block where it stands, write into a frame.

A `with` block is skipped by an exception that is raised where the block is entered and swallowed by the
`__exit__` of its own context, before the name after `as` is bound. Up to Python 3.11 a trace function on
that one frame raises; from 3.12 on `sys.monitoring` does, for that one code object. Whatever tracer was
attached before (a debugger, coverage) is back when `restore` returns.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from collections.abc import Mapping
from types import CodeType, FrameType
from typing import Any, Protocol

from interlace.errors import CaptureError

_WITH = frozenset({"SETUP_WITH", "BEFORE_WITH"})
_OPTIMIZED = 0x1  # CO_OPTIMIZED: a function, whose local names are slots and not a dictionary


class Skipped(BaseException):
    """Raised at the first instruction of a captured block. Control flow: it never leaves the `with` statement."""


class Skip(Protocol):
    """A block that is about to be skipped."""

    error: Skipped

    def restore(self) -> None:
        """Give the tracer that was there before its place back."""


def opens_block(code: CodeType, offset: int) -> bool:
    """Whether the instruction at `offset` enters a `with` statement."""
    from dis import opname

    units = code.co_code
    name = opname[units[offset]]
    if name in _WITH:
        return True
    before = [opname[units[at]] for at in range(max(0, offset - 16), offset, 2) if units[at]]
    return name == "CALL" and before[-1:] == ["LOAD_SPECIAL"]  # Python 3.14


def with_offsets(code: CodeType, until: int) -> list[int]:
    """The offsets of the instructions that enter a `with`, up to and with the one at `until`."""
    units = code.co_code
    return [at for at in range(0, until + 2, 2) if units[at] == units[until] and opens_block(code, at)]


def entry(code: CodeType, offset: int) -> range:
    """Where the block entered at `offset` takes its `as` name or drops it.

    The first instruction that an error leaves by way of the block's own `__exit__`, and by no other: the block's own
    first line may be inside a `try` already.
    """
    from dis import opname

    units = code.co_code
    start = last = _after(units, offset)
    while opname[units[last]] == "EXTENDED_ARG":
        last = _after(units, last)
    return range(start, last + 1)


def _after(units: bytes, offset: int) -> int:
    offset += 2
    while sys.version_info >= (3, 11) and units[offset] == 0:  # the inline caches of the instruction before
        offset += 2
    return offset


if sys.version_info >= (3, 12):

    class _Monitor:
        """The one tool of this process that raises at instructions, and who waits for which.

        An interrupt may fall anywhere in here: each step can be done again, and a watch that nobody holds is none.
        """

        def __init__(self) -> None:
            self.lock = threading.RLock()
            self.tool: int | None = None
            self.waiting: dict[int, weakref.ref[_Watch]] = {}  # by frame, which enters one block at a time

        def add(self, watch: _Watch) -> None:
            with self.lock:
                tool = self._claim()
                self.waiting[id(watch.frame)] = weakref.ref(watch)
                sys.monitoring.set_local_events(tool, watch.frame.f_code, sys.monitoring.events.INSTRUCTION)

        def remove(self, watch: _Watch) -> None:
            with self.lock:
                code = watch.frame.f_code
                del self.waiting[id(watch.frame)]
                others = [other() for other in self.waiting.values()]
                if not any(other is not None and other.frame.f_code is code for other in others):
                    sys.monitoring.set_local_events(self._claim(), code, 0)

        def _claim(self) -> int:
            known = sys.monitoring.get_tool
            if self.tool is None:
                self.tool = next((tool for tool in (4, 3) if known(tool) is None), None)
            if self.tool is None:
                taken = " and ".join(f"{known(tool)!r}" for tool in (3, 4))
                raise CaptureError(
                    "A block that runs later is skipped by a tool of `sys.monitoring`, and the ids 3 and 4 are taken:\n"
                    f"{taken}. Free one, or give a function instead, which needs none."
                )
            if known(self.tool) is None:
                sys.monitoring.use_tool_id(self.tool, "interlace")
            sys.monitoring.register_callback(self.tool, sys.monitoring.events.INSTRUCTION, self.reached)
            return self.tool

        def reached(self, _code: CodeType, offset: int) -> None:
            frame = sys._getframe(1)
            waiting = self.waiting.get(id(frame))
            watch = None if waiting is None else waiting()
            if watch is not None and watch.frame is frame and offset in watch.offsets:
                raise watch.error

    _monitor = _Monitor()

    class _Watch:
        """Raise in one frame when it reaches one instruction."""

        __slots__ = ("__weakref__", "error", "frame", "offsets")

        def __init__(self, frame: FrameType, offsets: range) -> None:
            self.frame = frame
            self.offsets = offsets
            self.error = Skipped()
            _monitor.add(self)

        def restore(self) -> None:
            _monitor.remove(self)
            self.error.__traceback__ = None

    skip_at = _Watch

else:

    class _Tracer:
        """A trace function for one frame. An object: a closure that names itself would keep the frame alive."""

        __slots__ = ("before", "error", "frame", "offsets")

        def __init__(self, frame: FrameType, offsets: range) -> None:
            self.frame = frame
            self.offsets = offsets
            self.error = Skipped()
            self.before = (sys.gettrace(), frame.f_trace, frame.f_trace_opcodes)
            frame.f_trace = self
            frame.f_trace_opcodes = True
            sys.settrace(self)

        def __call__(self, frame: FrameType, event: str, _arg: object) -> _Tracer | None:
            if frame is not self.frame:
                return None
            if event == "opcode" and frame.f_lasti in self.offsets:
                raise self.error  # the interpreter takes this tracer off
            return self

        def restore(self) -> None:
            everywhere, here, opcodes = self.before
            self.frame.f_trace_opcodes = opcodes
            self.frame.f_trace = here
            self.error.__traceback__ = None
            if type(everywhere).__name__ == "CTracer":
                _catch_up(everywhere, frames=3)
            sys.settrace(everywhere)
            if everywhere is not None:
                _called()

    skip_at = _Tracer

    def _catch_up(tracer: Any, frames: int) -> None:
        """Let coverage, which counts calls against returns, count the frames that were entered unseen.

        They are `restore` and its callers up to `__exit__`.
        """
        for _ in range(frames):
            sys.settrace(tracer)
            _leave_untraced()

    def _leave_untraced() -> None:
        sys.settrace(None)

    def _called() -> None:
        """A tracer that is written in C is fully back from the first call on."""


if sys.version_info < (3, 13):
    _to_fast = ctypes.PYFUNCTYPE(None, ctypes.py_object, ctypes.c_int)(
        ("PyFrame_LocalsToFast", ctypes.pythonapi)
    )
    """Writes what `f_locals` holds into the slots of a frame."""


def held(frame: FrameType) -> dict[str, Any]:
    """The names of a frame with their values. Up to Python 3.12 nothing of them stays behind in the frame."""
    names = frame.f_locals
    if not frame.f_code.co_flags & _OPTIMIZED:
        return names
    found = dict(names)
    if sys.version_info < (3, 13):
        names.clear()  # a snapshot that would keep its values alive
    return found


def write(frame: FrameType, values: Mapping[str, object]) -> None:
    """Bind names in the frame of a function, a class body or a module. Costs the number of its local names."""
    code = frame.f_code
    if not code.co_flags & _OPTIMIZED:
        frame.f_locals.update(values)
        return
    own = code.co_varnames + code.co_cellvars + code.co_freevars
    frame_locals: Any = frame.f_locals  # a dictionary, or from 3.13 on a view that writes through
    for name, value in values.items():
        names = frame_locals if name in own else frame.f_globals
        names[name] = value
    if sys.version_info < (3, 13):
        _to_fast(frame, 0)
        frame_locals.clear()

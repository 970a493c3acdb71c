"""What depends on the interpreter's frames and bytecode: who owns a trace, whether a `with` follows a call.

A trace belongs to the frame in which its `with` stands, and a request goes to the trace whose owner is
nearest on the asker's own stack. What is captured or rewritten is read elsewhere (`capture`, `source`).
"""

import contextlib
import dis
import sys
import weakref
from types import CodeType, FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interlace.trace import Trace

_CONTEXTLIB = contextlib.__file__
_ENTERS = frozenset({"__enter__", "__aenter__"})
_PARKED = 0x20 | 0x80 | 0x200
"""Code flags of frames that can be parked: generators, coroutines, asynchronous generators."""


class Owner:
    """The frame that a trace belongs to, known by its address and code.

    It is not held: its locals hold the trace, and the two would keep each other alive where a trace is never
    left.
    """

    __slots__ = ("code", "key")

    def __init__(self, frame: FrameType) -> None:
        self.key = id(frame)
        self.code: CodeType = frame.f_code


class Opened:
    """An open trace of a frame, and the one that was opened there before it."""

    __slots__ = ("before", "code", "trace")

    def __init__(self, code: CodeType, trace: "weakref.ref[Trace]", before: "Opened | None") -> None:
        self.code = code
        self.trace = trace
        self.before = before

    def all(self) -> "list[Trace | None]":
        """This trace and those before it."""
        return [self.trace(), *(self.before.all() if self.before is not None else [])]


def owner(frame: FrameType) -> Owner:
    """The owner of a trace that is entered from `frame`.

    It is the first frame outward that is not contextlib's, not an `__enter__` of the user's own, and not a
    generator that contextlib drives: there stands the `with` that the reader sees.
    """
    here: FrameType = frame
    while (back := here.f_back) is not None:
        code = here.f_code
        # A generator that contextlib runs is one of `@contextmanager` or `@asynccontextmanager`.
        driven = code.co_flags & _PARKED and back.f_code.co_filename == _CONTEXTLIB
        if not (driven or code.co_name in _ENTERS or code.co_filename == _CONTEXTLIB):
            break
        here = back
    return Owner(here)


def code_at(source: str, frame: FrameType) -> CodeType:
    """One expression as code that looks as if it stood at the line where `frame` is."""
    code = compile("\n" * (frame.f_lineno - 1) + source, frame.f_code.co_filename, "exec")
    return code.replace(co_name=frame.f_code.co_name)


def at(frame: FrameType) -> int:
    """The offset of the instruction that a frame executes. Python 3.10 gives that of a prefix to it."""
    code, offset = frame.f_code.co_code, frame.f_lasti
    while code[offset] == dis.EXTENDED_ARG:
        offset += 2
    return offset


def with_follows(frame: FrameType) -> bool:
    """Whether the call that `frame` is making is the context expression of a `with` statement.

    Read from the instruction after the call, so that it works without source.
    """
    code = frame.f_code.co_code
    after = at(frame) + 2
    passed = (dis.opmap.get("CACHE", -1), dis.EXTENDED_ARG)  # up to Python 3.10 a long block has a prefix
    while after < len(code) and code[after] in passed:
        after += 2
    name = dis.opname[code[after]] if after < len(code) else ""
    if sys.version_info >= (3, 14):
        return name == "COPY" and code[after + 1] == 1 and _loads_exit(code, after + 2)
    return name in ("BEFORE_WITH", "SETUP_WITH")


def _loads_exit(code: bytes, offset: int) -> bool:
    """3.14 spells `with` as `COPY 1; LOAD_SPECIAL __exit__; ...`."""
    return offset < len(code) and dis.opname[code[offset]] == "LOAD_SPECIAL"


def calls_attribute(frame: FrameType) -> bool:
    """Whether `frame` is loading an attribute that it calls next, with no arguments: `x.name()` as it is written.

    Neither `hasattr(x, "name")`, nor `getattr`, nor `x.name` by itself is that.
    """
    code, offset = frame.f_code.co_code, at(frame)
    if dis.opname[code[offset]] not in ("LOAD_ATTR", "LOAD_METHOD"):
        return False
    offset += 2
    while offset < len(code) and dis.opname[code[offset]] in ("CACHE", "PRECALL", "PUSH_NULL"):
        offset += 2
    return (
        offset < len(code)
        and dis.opname[code[offset]] in ("CALL", "CALL_METHOD", "CALL_FUNCTION")
        and code[offset + 1] == 0
    )

"""What depends on the interpreter's frames and bytecode: who owns a trace, whether a `with` follows a call.

A trace belongs to the frame in which its `with` stands, and a request goes to the trace whose owner is
nearest on the asker's own stack. What is captured or rewritten is read elsewhere (`capture`, `source`).
"""

import contextlib
import dis
import sys
from types import CodeType, FrameType

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


def with_follows(frame: FrameType) -> bool:
    """Whether the call that `frame` is making is the context expression of a `with` statement.

    Read from the instruction after the call, so that it works without source.
    """
    code = frame.f_code.co_code
    at = frame.f_lasti + 2
    cache = dis.opmap.get("CACHE", -1)
    while at < len(code) and code[at] == cache:
        at += 2
    name = dis.opname[code[at]] if at < len(code) else ""
    if sys.version_info >= (3, 14):
        return name == "COPY" and code[at + 1] == 1 and _loads_exit(code, at + 2)
    return name in ("BEFORE_WITH", "SETUP_WITH")


def _loads_exit(code: bytes, at: int) -> bool:
    """3.14 spells `with` as `COPY 1; LOAD_SPECIAL __exit__; ...`."""
    return at < len(code) and dis.opname[code[at]] == "LOAD_SPECIAL"


def calls_attribute(frame: FrameType) -> bool:
    """Whether `frame` is loading an attribute that it calls next, with no arguments: `x.name()` as it is written.

    Neither `hasattr(x, "name")`, nor `getattr`, nor `x.name` by itself is that.
    """
    code, at = frame.f_code.co_code, frame.f_lasti
    if dis.opname[code[at]] not in ("LOAD_ATTR", "LOAD_METHOD"):
        return False
    at += 2
    while at < len(code) and dis.opname[code[at]] in ("CACHE", "PRECALL", "PUSH_NULL"):
        at += 2
    return (
        at < len(code)
        and dis.opname[code[at]] in ("CALL", "CALL_METHOD", "CALL_FUNCTION")
        and code[at + 1] == 0
    )

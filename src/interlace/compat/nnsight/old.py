"""Old forms of nnsight that ordinary Python has replaced: each warns, then works.

Blocks once could not use `if`, `for`, `print` or plain containers, so there was a function for each.
"""

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from interlace.capture import Body, capture
from interlace.compat.nnsight.elsewhere import here
from interlace.session import Session
from interlace.steps import Loop

_KINDS = (bool, bytes, dict, float, int, list, set, str, tuple)


def _tell(name: str, instead: str) -> None:
    warnings.warn(f"`nnsight.{name}` is an old form; {instead}", DeprecationWarning, stacklevel=3)


def apply(function: Callable[..., Any], *args: Any, validate: object = None, **kwargs: Any) -> Any:  # noqa: ARG001
    """Call `function`."""
    _tell("apply", "call the function.")
    return function(*args, **kwargs)


def log(*values: Any) -> None:
    """Print."""
    _tell("log", "write `print(...)`.")
    print(*values)  # noqa: T201


def local(value: Any = None) -> Any:
    """Do nothing: everything is local. Under a `with`, the block runs; a value or a function comes back as it is."""
    _tell("local", "leave it out.")
    return contextlib.nullcontext() if value is None else value


def trace(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function: any function may be called in a block."""
    _tell("trace", "leave it out.")
    return function


def session(**kwargs: Any) -> Session:
    """A scope around traces of several models."""
    here(kwargs, "nnsight.session")
    return Session(None)


def loop(items: Iterable[Any]) -> Loop:
    """Run the block of a `with` for each item; in a `for`, the items."""
    _tell("iter", "write a plain `for`.")
    return _Items(iter(items))


class _Items(Loop):
    """A loop over items that are not steps of a run."""

    __slots__ = ()

    old = None  # told already


class Condition:
    """`with nnsight.cond(x):` runs its block where `x` is true; `with condition.else_():` where none before was."""

    def __init__(self, holds: Any, taken: bool = False) -> None:
        self._runs = not taken and bool(holds)
        self._taken = taken or self._runs
        self._body: Body | None = None

    def __enter__(self) -> "Condition":
        if not self._runs:
            self._body = capture(sys._getframe(1), "Write a plain `if`: that needs no source.")
            self._body.skip()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        body, self._body = self._body, None
        return body is not None and body.left(error, self)

    def else_(self, condition: Any = True) -> "Condition":
        """The other branch, or, with a condition, the next one."""
        return Condition(condition, self._taken)


def cond(condition: Any) -> Condition:
    """A block that runs under a condition."""
    _tell("cond", "write a plain `if`.")
    return Condition(condition)


def _make(kind: type, *args: Any, **kwargs: Any) -> Any:
    _tell(kind.__name__, f"write `{kind.__name__}(...)`.")
    return kind(*args, **kwargs)


FORMS: dict[str, Callable[..., Any]] = {
    "apply": apply,
    "cond": cond,
    "iter": loop,
    "local": local,
    "log": log,
    "remote": lambda marked: marked,  # says that a class may travel
    "session": session,
    "trace": trace,
    **{kind.__name__: functools.partial(_make, kind) for kind in _KINDS},
}
"""The old forms, by the name that they have in `nnsight`."""

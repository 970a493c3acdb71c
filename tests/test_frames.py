"""Rule 10: the frame that owns a trace, and whether a `with` follows a call."""

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from interlace import frames


class Enters:
    """Notes who owns what is entered here."""

    def __enter__(self) -> frames.Owner:
        return frames.owner(sys._getframe(0))

    def __exit__(self, *failure: object) -> None:
        pass


def here() -> tuple[int, Any]:
    frame: FrameType = sys._getframe(1)
    return id(frame), frame.f_code


def key(owner: frames.Owner) -> tuple[int, Any]:
    return owner.key, owner.code


def test_the_frame_of_the_with_owns() -> None:
    with Enters() as owner:
        assert key(owner) == here()
    with contextlib.ExitStack() as stack:
        assert key(stack.enter_context(Enters())) == here()


def test_a_generator_of_contextlib_is_passed_over_and_any_other_is_not() -> None:
    @contextlib.contextmanager
    def around() -> Iterator[frames.Owner]:
        with Enters() as owner:
            yield owner

    def plain() -> Iterator[tuple[frames.Owner, tuple[int, Any]]]:
        with Enters() as owner:
            yield owner, here()

    with around() as owner:
        assert key(owner) == here()
    owner, inside = next(plain())
    assert key(owner) == inside


def test_an_owner_holds_no_frame() -> None:
    """Its locals would hold the trace, and the trace it."""

    def inside() -> tuple[frames.Owner, int]:
        with Enters() as owner:
            return owner, sys.getrefcount(owner.code)

    owner, _ = inside()
    assert frames.Owner.__slots__ == ("code", "key")
    assert owner.code is inside.__code__


class Sees:
    def __init__(self) -> None:
        self.followed: list[bool] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.followed.append(frames.with_follows(sys._getframe(1)))
        return contextlib.nullcontext()

    method = __call__


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("with f(): pass", True),
        ("with f(1, a=2) as x: pass", True),
        ("with f(*[1], **{}): pass", True),
        ("with f.method(1): pass", True),
        ("with f(): " + "v = 1; " * 300 + "pass", True),
        ("with (f(1), f(2)): pass", True),
        ("with f(f(1)): pass", None),
        ("x = f()", False),
        ("f()", False),
        ("f().__enter__()", False),
        ("[f() for _ in range(1)]", False),
        ("with (x := f()): pass", False),
    ],
)
def test_with_follows(source: str, expected: bool | None) -> None:
    """Read from the bytecode after the call, so that it works without source."""
    f = Sees()
    exec(source, {"f": f})
    assert f.followed == ([False, True] if expected is None else [expected] * len(f.followed))
    assert f.followed

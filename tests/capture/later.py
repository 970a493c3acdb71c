"""Contexts that run their block later, with no model: what `capture` is tested with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from interlace.capture import Body, Family, Scope, capture


class Later:
    """Skip the block where it stands and run it when the group ends, or at once without a group."""

    def __init__(self, group: Group | None = None) -> None:
        self.group = group

    def __enter__(self) -> Later:
        self.body = capture(sys._getframe(1))
        self.body.skip()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> bool:
        if not self.body.left(error, self):
            return False
        if self.group is not None:
            self.group.bodies.append(self.body)
            scope = self.body.scope()
            self.group.scopes.append(scope)
            self.group.family.add(scope)
            return True
        family = Family()
        scope = self.body.scope()
        family.add(scope)
        frame = self.body.frame
        try:
            self.body.run(scope)
        finally:
            family.close(frame)
            self.body.frame = None
        return True


class Group:
    """Blocks of one family, run in the order in which they are written."""

    def __init__(self) -> None:
        self.bodies: list[Body] = []
        self.scopes: list[Scope] = []
        self.family = Family()
        self.frame: FrameType | None = None

    def later(self) -> Later:
        return Later(self)

    def __enter__(self) -> Group:
        self.frame = sys._getframe(1)
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            for body, scope in zip(self.bodies, self.scopes, strict=True):
                body.run(scope)
        finally:
            self.family.close(self.frame)
            self.frame = None


class Native:
    """The same names over blocks that run where they stand."""

    def later(self) -> Native:
        return self

    def __enter__(self) -> Native:
        return self

    def __exit__(self, *ignored: object) -> None:
        pass


@contextmanager
def in_place() -> Iterator[None]:
    yield


__all__ = ["Group", "Later", "Native", "in_place"]

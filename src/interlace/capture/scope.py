"""The names of captured blocks: each block's own, those of the frame around, those of its siblings.

What a block binds is its own while it runs. What it reads without having bound it comes from the blocks and
lines written before it, as if all had run one after the other. A `Family` is the blocks of one trace in the
order in which they were written; who runs when is not its business: it asks its `wait` for a name that a
sibling has yet to settle.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Mapping
from types import FrameType

from interlace.capture import around
from interlace.capture.uses import Use
from interlace.errors import CaptureError

NOTHING = object()
Wait = Callable[["Scope", "Scope", str], None]


class Scope:
    """The names of one block in one run; its body reads and writes them as attributes.

    Names of its own machinery begin with `_il_`, which a body has no reason to use.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_il_base",
        "_il_before",
        "_il_binds",
        "_il_family",
        "_il_globals",
        "_il_outer",
        "_il_pending",
        "_il_place",
        "_il_settled",
        "_il_uses",
    )
    _il_base: dict[str, object]
    _il_before: Mapping[str, object]
    _il_binds: frozenset[str]
    _il_family: Family | None
    _il_globals: dict[str, object]
    _il_outer: Scope | None
    _il_pending: list[str]
    _il_place: int
    _il_settled: set[str] | None
    _il_uses: Mapping[str, Use]

    def __init__(
        self,
        before: Mapping[str, object],
        binds: frozenset[str],
        names: Mapping[str, object],
        outer: Scope | None = None,
        uses: Mapping[str, Use] | None = None,
    ) -> None:
        self._il_before = before  # what the frame held where the block stands
        self._il_binds = binds
        self._il_globals = names  # type: ignore[assignment]  # of the frame
        self._il_base = {}  # what came from outside the block
        self._il_family = None
        self._il_place = 0
        self._il_settled = set()  # None: all of them
        self._il_outer = outer  # of the kept block that this one stands in
        self._il_uses = uses or {}
        self._il_pending = []  # names that blocks inside of this one bind when their trace ends

    def __getattr__(self, name: str) -> object:
        value = self._il_from_outside(name)
        if value is NOTHING:
            value = self._il_globals.get(name, getattr(builtins, name, NOTHING))
            if value is NOTHING:
                raise NameError(f"name {name!r} is not defined", name=name)
        return value

    def _il_from_outside(self, name: str) -> object:
        """What the lines before the block left, `NOTHING` if nothing; the block's own from now on."""
        value = NOTHING if self._il_family is None else self._il_family.outer(self, name)
        if value is NOTHING:
            value = self._il_before.get(name, NOTHING)
        if value is not NOTHING:
            self._il_base[name] = value
            setattr(self, name, value)
        return value

    def _il_set_(self, name: str, value: object) -> object:
        setattr(self, name, value)
        return value

    def _il_settled_(self, *names: str) -> None:
        if self._il_settled is not None:
            self._il_settled.update(names)

    def _il_alone_(self, name: str, method: str) -> None:
        """Wait until the blocks before have no more use for an object that is about to be changed in place."""
        if self._il_place and self._il_family is not None and self._il_in_place(name, method):
            self._il_family.leave_alone(self, name)
        if self._il_outer is not None and self._il_made(name) is NOTHING:
            self._il_outer._il_alone_(name, method)

    def _il_in_place(self, name: str, method: str) -> bool:
        """Whether a name's object comes from outside of the block and can be changed in place."""
        return hasattr(type(getattr(self, name, None)), method) and self._il_made(name) is NOTHING

    def _il_start(self) -> None:
        """Put in place what no sibling can change, so that reading it costs an attribute."""
        family = self._il_family
        shared = family.binders if family is not None else {}
        own = self._il_binds
        names = vars(self)
        for name, value in self._il_before.items():
            if name not in own and name not in shared:
                names[name] = value

    def _il_made(self, name: str) -> object:
        """What the block bound the name to, `NOTHING` if it left it alone."""
        value = vars(self).get(name, NOTHING)
        return NOTHING if value is self._il_base.get(name, NOTHING) else value

    def _il_is_settled(self, name: str) -> bool:
        return self._il_settled is None or (name in self._il_settled and name not in self._il_pending)

    def _il_is_past(self, name: str, line: int) -> bool:
        """Whether the block, which is at a line, has no more use for a name; 0 before it has begun."""
        return self._il_settled is None or line > self._il_uses[name].last

    def _il_finish(self) -> None:
        """All names are what they will be: the block has ended, well or not."""
        self._il_settled = None


def _no_wait(_asker: Scope, _maker: Scope, name: str) -> None:
    raise CaptureError(f"`{name}` is read before the block that assigns it has run.")


class Family:
    """The captured blocks of one trace, in the order in which they are written.

    Args:
        wait: Called with the asker, the block that assigns the name, and the name; returns when it is settled.
        use: Called likewise with a block that uses the name; returns when it no longer does.
    """

    def __init__(self, wait: Wait = _no_wait, use: Wait = _no_wait) -> None:
        self.scopes: list[Scope] = []
        self.binders: dict[str, list[int]] = {}
        self._wait = wait
        self._use = use

    def add(self, scope: Scope) -> None:
        """Take in the next block in program order."""
        scope._il_family = self
        scope._il_place = len(self.scopes)
        self.scopes.append(scope)
        for name in scope._il_binds:
            self.binders.setdefault(name, []).append(scope._il_place)
        if scope._il_outer is not None:
            scope._il_outer._il_pending.extend(scope._il_binds)

    def outer(self, asker: Scope, name: str) -> object:
        """The value that the lines before a block left, `NOTHING` where only the frame can tell."""
        places = self.binders.get(name, ())
        held = asker._il_before.get(name, NOTHING)
        for place in reversed(places):
            if place >= asker._il_place:
                continue
            maker = self.scopes[place]
            if maker._il_before.get(name, NOTHING) is not held:
                return held  # rebound between the two blocks
            value = self._made(asker, maker, name)
            if value is not NOTHING:
                return value
        later = [place for place in places if place > asker._il_place]
        if not later or name in asker._il_binds:
            return held
        if held is not NOTHING:
            if any(place < asker._il_place for place in places):
                return held  # an earlier block left it alone, or changed it in place
            raise CaptureError(
                f"`{name}` is bound before the trace and again by a later block; the block that reads it may mean\n"
                "either. Use two names, or write the block that assigns it first."
            )
        return next(
            (made for place in later if (made := self._made(asker, self.scopes[place], name)) is not NOTHING),
            NOTHING,
        )

    def _made(self, asker: Scope, maker: Scope, name: str) -> object:
        if not maker._il_is_settled(name):
            self._wait(asker, maker, name)
        return maker._il_made(name)

    def leave_alone(self, asker: Scope, name: str) -> None:
        """Wait for the blocks before one, as far as they use the object that it is about to change in place.

        Raises:
            CaptureError: One of them gives the object another name: nobody knows who means it by that.
        """
        held = asker._il_before.get(name, NOTHING)
        for other in reversed(self.scopes[: asker._il_place]):
            use = other._il_uses.get(name)
            if use is None:
                continue
            if other._il_before.get(name, NOTHING) is not held:
                return  # rebound between the two blocks
            if use.handed is not None:
                raise CaptureError(
                    f"`{name}` would be changed in place here, and line {use.handed} of a block before gives the same\n"
                    f"object another name. Write it out, as in `{name} = {name} + ...`: that makes another object."
                )
            self._use(asker, other, name)

    def close(self, frame: FrameType | None) -> None:
        """Write what the blocks bound into the frame, later blocks over earlier ones, and let go of everything."""
        if frame is not None:
            self._commit(frame)
        for scope in self.scopes:
            if scope._il_outer is not None:
                for name in scope._il_binds:
                    scope._il_outer._il_pending.remove(name)
                scope._il_outer = None
            scope._il_family = None
            scope._il_before = {}
            if frame is not None and frame.f_code.co_name == "<module>" and frame.f_locals is frame.f_globals:
                scope.__dict__ = frame.f_globals  # functions made in the block go on with the module's names
        self.scopes.clear()
        self.binders.clear()

    def _commit(self, frame: FrameType) -> None:
        here = around.held(frame)
        out: dict[str, object] = {}
        for name, places in self.binders.items():
            now = here.get(name, NOTHING)
            for place in reversed(places):
                scope = self.scopes[place]
                if scope._il_before.get(name, NOTHING) is not now:
                    break  # rebound after the block by a line of the frame
                value = scope._il_made(name)
                if value is not NOTHING:
                    out[name] = value
                    break
        if out:
            around.write(frame, out)

"""The captured blocks of one trace, in the order in which they are written, and what each may see of the others.

A block sees the names that the blocks and lines written before it left, as if all had run one after the other.
Who runs when is not the business of a `Family`: it asks its `wait` for a name that a block has yet to settle, and its
`use` for an object that a block has still to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FrameType

from interlace.capture import around
from interlace.capture.scope import NOTHING, Scope
from interlace.capture.shows import Shows
from interlace.errors import CaptureError

Wait = Callable[[Scope, Scope, str], bool]


def _no_wait(_asker: Scope, _maker: Scope, name: str) -> bool:
    raise CaptureError(f"`{name}` is read before the block that assigns it has run.")


class Family:
    """The captured blocks of one trace, in the order in which they are written.

    Args:
        wait: Called with the asker, the block that assigns the name, and the name; returns when it is settled,
            whether that took a wait.
        use: Called likewise with a block that uses the name; returns when it no longer does.
    """

    __slots__ = ("_use", "_wait", "binders", "scopes")

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

    def leave_alone(self, asker: Scope, name: str, value: object, named: bool) -> None:
        """Wait for the blocks before one, as far as they use an object that it is about to change in place.

        Args:
            asker: The block that changes it.
            name: Its name there.
            value: The object.
            named: Whether the name is not the block's own, so that other blocks may mean the same by it.

        Raises:
            CaptureError: A block after has read it already, under another name.
        """
        if len(self.scopes) == 1:
            return
        shows = Shows(value)
        if not named and not any(map(shows, asker._il_taken().values())):
            return  # the block's own
        self._refuse_late(asker, name, shows)
        while any(
            self._use(asker, other, used)
            for other, names in reversed(list(self._before(asker)))
            if other._il_settled is not None
            for used, held in names
            if shows(held)
        ):  # meanwhile more names may have come to mean it, and blocks after may have read it
            self._refuse_late(asker, name, shows)

    def _refuse_late(self, asker: Scope, name: str, shows: Shows) -> None:
        """Raise where a block after one has already read what this one is about to change in place."""
        for other in self.scopes[asker._il_place + 1 :]:
            for known, taken in other._il_taken().items():
                if shows(taken):
                    raise CaptureError(
                        f"`{name}` would be changed in place here, and a block after has read it as `{known}` already.\n"
                        f"Write it out, as in `{name} = {name} + ...`: that makes another object."
                    )

    def _before(self, asker: Scope) -> Iterator[tuple[Scope, list[tuple[str, object]]]]:
        """The blocks before one, with the names that they use and what these are now; waits for nobody."""
        # By what the frame held, which rebinding between blocks changes.
        left: dict[tuple[str, int], object] = {}
        for scope in self.scopes[: asker._il_place]:
            own, before, names = vars(scope), scope._il_before, scope._il_globals
            held = []
            for name in scope._il_uses:
                value = own.get(name, NOTHING)
                if value is NOTHING:
                    outside = before.get(name, NOTHING)
                    value = left.get((name, id(outside)), outside)
                held.append((name, names.get(name) if value is NOTHING else value))
            yield scope, held
            for name in scope._il_binds:
                made = scope._il_made(name)
                if made is not NOTHING:
                    left[name, id(before.get(name, NOTHING))] = made

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

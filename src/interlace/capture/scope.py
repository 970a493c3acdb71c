"""The names of one captured block in one run.

What a block binds is its own while it runs. What it reads without having bound it comes from the blocks and
lines written before it, which its `Family` knows.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interlace.capture.family import Family

NOTHING = object()


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
    _il_uses: Mapping[str, float]

    def __init__(
        self,
        before: Mapping[str, object],
        binds: frozenset[str],
        names: Mapping[str, object],
        outer: Scope | None = None,
        uses: Mapping[str, float] | None = None,
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

    def _il_keeps_(self, value: object, name: str) -> bool:
        """Whether an object keeps an attribute itself: to read it asks nobody, and other blocks may change it."""
        return name in getattr(value, "__dict__", ())

    def _il_settled_(self, *names: str) -> None:
        if self._il_settled is not None:
            self._il_settled.update(names)

    def _il_alone_(self, name: str, method: str) -> None:
        """Wait until the blocks before have no more use for an object that is about to be changed in place."""
        value = getattr(self, name, None)
        if not hasattr(type(value), method):
            return
        scope: Scope | None = self
        named = True
        while scope is not None:
            named = named and scope._il_made(name) is NOTHING
            if scope._il_family is not None:
                scope._il_family.leave_alone(scope, name, value, named)
            scope = scope._il_outer

    def _il_taken(self) -> dict[str, object]:
        """What the block has from outside so far, as far as it mentions it."""
        family, names = self._il_family, vars(self)
        shared = {} if family is None else family.binders
        start = {name: names[name] for name in self._il_uses if name in names and name not in shared}
        return {**start, **self._il_base}

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
        return self._il_settled is None or line > self._il_uses[name]

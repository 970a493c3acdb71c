"""Make the modules of a model report to the run that they execute in.

`nn.Module.__call__` looks at `self._compiled_call_impl` first. A function set there on an instance sees the
call as the caller made it and the result as the caller gets it, needs no hook, and is dropped by pickling and
copying. It is a private name of torch: nothing outside of this module uses it, and a test says what broke if
torch changes it.

Taps stand only while a trace of the model is open. Each calls through to what the slot held
(`module.compile()` lives there). Trees that wrap one module share its tap: the tree that came first keeps its
taps for as long as another needs them.
"""

import threading
import weakref
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

from torch import nn

from interlace.run import Run
from interlace.switch import Worker, getcurrent

SLOT = "_compiled_call_impl"

_lock = threading.RLock()  # a finalizer that closes a trace may run inside it, on the same thread


class Tap:
    """What one module's report calls through to, and whose it is. It must not know the report: no cycles.

    Attributes:
        inner: The module's own call, or what its slot held.
        held: What the slot held before, if anything.
        lender: The taps of the tree that this one belongs to.
    """

    __slots__ = ("held", "inner", "lender")

    def __init__(self, module: nn.Module, lender: "weakref.ref[Taps]") -> None:
        self.inner: Callable[..., Any] = module._call_impl
        self.held: Callable[..., Any] | None = None
        self.lender = lender


def _report(tap: Tap, key: int) -> Callable[..., Any]:
    """What runs in place of the module's call. It is the hot path of the library."""

    def call(*args: Any, **kwargs: Any) -> Any:
        stack = getcurrent()
        if type(stack) is not Worker or not isinstance(run := stack.tracing, Run):
            return tap.inner(*args, **kwargs)  # a plain call while a trace is open
        if key in run.before:
            return run.reach(key, tap.inner, args, kwargs)
        starts = run.starts
        number = starts[key]
        starts[key] = number + 1
        result = tap.inner(*args, **kwargs)
        run.ends[key] += 1
        if key in run.after:
            return run.leave(key, number, args, kwargs, result)
        return result

    call.tap = tap  # type: ignore[attr-defined]
    return call


def works() -> bool:
    """Whether this torch looks at the slot when a module is called."""
    module, seen = nn.Identity(), list[Any]()
    module.__dict__[SLOT] = seen.append
    module(None)
    return bool(seen)


class Taps:
    """The taps of the modules of one tree, put in place and taken away together.

    Attributes:
        users: Open traces of the tree, and taps of other trees that found these in place, by id. Whoever is
            in it can be removed, however far an interrupted `install` or `remove` came.
        lenders: The taps of other trees that stood in some slots when these were put in place.
        replaced: Where something else stood: what `module.compile()` left, or the tap of another tree.
    """

    __slots__ = ("__weakref__", "calls", "lenders", "modules", "placed", "replaced", "slots", "users")

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.modules = list(modules)
        self.slots = [module.__dict__ for module in self.modules]
        self.calls = [_report(Tap(module, weakref.ref(self)), id(module)) for module in self.modules]
        self.users: set[int] = set()
        self.placed = False
        self.lenders: list[Taps] = []
        self.replaced: list[int] = []

    def install(self, user: object) -> None:
        """Put the taps in place, unless a trace of this tree has done so already."""
        with _lock:
            self.users.add(id(user))
            if not self.placed:
                found = list(map(dict.setdefault, self.slots, repeat(SLOT), self.calls))
                if found != self.calls:
                    self._share(found)
                self.placed = True

    def _share(self, found: list[Any]) -> None:
        """Some slots were taken: by the tap of another tree, or by what `module.compile()` left there."""
        lenders: dict[int, Taps] = {}
        for index, held in enumerate(found):
            if held is self.calls[index]:
                continue
            lender = held.tap.lender() if hasattr(held, "tap") else None
            if lender is not None:
                lenders[id(lender)] = lender
                continue
            tap: Tap = self.calls[index].tap  # type: ignore[attr-defined]
            tap.held, tap.inner = held, held or self.modules[index]._call_impl
            self.slots[index][SLOT] = self.calls[index]
            self.replaced.append(index)
        self.lenders = list(lenders.values())
        for lender in self.lenders:
            lender.users.add(id(self))

    def remove(self, user: object) -> None:
        """Take the taps away when the last trace that needs them has ended."""
        with _lock:
            users, one = self.users, id(user)
            if one not in users:
                return
            if len(users) > 1:
                users.remove(one)
                return
            found = list(map(dict.pop, self.slots, repeat(SLOT), repeat(None)))
            if found != self.calls:
                self._put_back(found)
            for index in self.replaced:
                self._restore(index)
            for lender in self.lenders:
                lender.remove(self)
            self.lenders, self.replaced = [], []
            self.placed = False
            users.clear()

    def _put_back(self, found: list[Any]) -> None:
        """What others have put into a slot stays: a tap that is lent, or what `module.compile()` left."""
        for slot, call, held in zip(self.slots, self.calls, found, strict=True):
            if held is not None and held is not call:
                slot[SLOT] = held

    def _restore(self, index: int) -> None:
        """Give a slot back what it held, unless somebody has put something else there."""
        tap: Tap = self.calls[index].tap  # type: ignore[attr-defined]
        self.slots[index].setdefault(SLOT, tap.held)
        tap.held, tap.inner = None, self.modules[index]._call_impl

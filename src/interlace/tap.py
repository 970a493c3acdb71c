"""Make the modules of a model report to the run that they execute in.

`nn.Module.__call__` looks at `self._compiled_call_impl` first. A function set there on an instance sees the call as
the caller made it and the result as the caller gets it, needs no hook, and is dropped by pickling and copying. It is a
private name of torch: nothing outside of this module uses it, and a test says what broke if torch changes it.

Taps stand only while a trace of the model is open. Each calls through to what the slot held (`module.compile()` lives
there), and several trees that wrap one module share its tap.
"""

import threading
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

from torch import nn

from interlace.switch import getcurrent

SLOT = "_compiled_call_impl"

_lock = threading.RLock()  # a finalizer that closes a trace may run inside it, on the same thread


class Group:
    """Whether any tap of one tree is used by another tree as well."""

    __slots__ = ("shared",)

    def __init__(self) -> None:
        self.shared = False


class Tap:
    """The report of one module.

    Attributes:
        call: What stands in the module's slot while anyone uses the tap.
        inner: What it calls through to.
        held: What the slot held before, if anything.
        others: How many trees use it besides the first.
    """

    __slots__ = ("call", "group", "held", "inner", "others")

    def __init__(self, module: nn.Module, group: Group) -> None:
        self.group = group
        self.others = 0
        self.held: Callable[..., Any] | None = None
        self.inner: Callable[..., Any] = module._call_impl
        self.call = _reporting(self, id(module))
        self.call.tap = self  # type: ignore[attr-defined]

    def release(self, slot: dict[str, Any]) -> None:
        """One user less; the last one gives the slot back what it held."""
        if self.others:
            self.others -= 1
        elif slot.get(SLOT) is self.call:
            if self.held is None:
                del slot[SLOT]
            else:
                slot[SLOT] = self.held


def _reporting(tap: Tap, key: int) -> Callable[..., Any]:
    """What runs in place of the module's call. It is the hot path of the library."""

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            run = getcurrent().tracing  # type: ignore[attr-defined]
            starts = run.starts
        except AttributeError:  # another stack than a model's
            return tap.inner(*args, **kwargs)
        if key in run.before:
            return run.reach(key, tap.inner, args, kwargs)
        number = starts[key]
        starts[key] = number + 1
        result = tap.inner(*args, **kwargs)
        run.ends[key] += 1
        if key in run.after:
            return run.leave(key, number, args, kwargs, result)
        return result

    return call


class Taps:
    """The taps of the modules of one tree, put in place and taken away together."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.group = Group()
        self.modules = list(modules)
        self.slots = [module.__dict__ for module in self.modules]
        self.calls = [Tap(module, self.group).call for module in self.modules]
        self.users = 0
        self.placed: list[Tap] | None = None

    def install(self) -> None:
        """Put the taps in place, unless a trace of this tree has done so already."""
        with _lock:
            self.users += 1
            if self.users == 1:
                found = list(map(dict.setdefault, self.slots, repeat(SLOT), self.calls))
                self.placed = None if found == self.calls else self._share(found)

    def _share(self, found: list[Any]) -> list[Tap]:
        """Some slots were taken: by the tap of another tree, or by what `module.compile()` left there."""
        placed = []
        for module, slot, call, held in zip(self.modules, self.slots, self.calls, found, strict=True):
            tap: Tap = call.tap  # type: ignore[attr-defined]
            if held is not call:
                other: Tap | None = getattr(held, "tap", None)
                if other is not None:
                    other.others += 1
                    other.group.shared = True
                    tap = other
                else:
                    tap.held, tap.inner = held, held or module._call_impl
                    slot[SLOT] = call
            placed.append(tap)
        return placed

    def remove(self) -> None:
        """Take the taps away when the last trace that needs them has ended."""
        with _lock:
            self.users -= 1
            if self.users:
                return
            if self.placed is None and not self.group.shared:
                found = list(map(dict.pop, self.slots, repeat(SLOT), repeat(None)))
                if found != self.calls:
                    self._put_back(found)
                return
            placed = self.placed or [call.tap for call in self.calls]  # type: ignore[attr-defined]
            for slot, tap in zip(self.slots, placed, strict=True):
                tap.release(slot)
                if tap.others == 0:
                    tap.held = None
            self.placed, self.group.shared = None, False

    def _put_back(self, found: list[Any]) -> None:
        """Somebody put something else into a slot while the taps stood there; it stays."""
        for slot, call, held in zip(self.slots, self.calls, found, strict=True):
            if held is not None and held is not call:
                slot[SLOT] = held

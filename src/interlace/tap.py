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
from torch.nn.modules import module as torch_module

from interlace.compiled import quick
from interlace.run import Run, Tally
from interlace.switch import Worker, getcurrent

SLOT = "_compiled_call_impl"

HOOKS = ("_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_pre_hooks")
"""Where a module keeps hooks; torch has the same four dictionaries once more for all modules."""

MANY = 1 << 14
"""How many calls may be noted, and not counted, when the root of a model is called again."""

_lock = threading.RLock()  # a finalizer that closes a trace may run inside it, on the same thread
_IDLE = Tally()


def _knows_call_impl() -> bool:
    """Whether `nn.Module._call_impl` still looks at the hooks that are known here, and at no others."""
    names = nn.Module._call_impl.__code__.co_names
    known = {*HOOKS, *(f"_global{name}" for name in HOOKS)}
    return {name for name in names if name.endswith("_hooks")} == known and "forward" in names


SHORT = _knows_call_impl()
"""Whether a module without hooks may be called by its forward, which is what torch does then."""

HOOKED = dict.fromkeys(HOOKS, True)
"""Looked at in place of a module that must not be called by its forward."""


class Tap:
    """What belongs to one module's report. It must not know the report: no cycles.

    Attributes:
        held: What the slot held before, if anything.
        lender: The taps of the tree that the report belongs to.
    """

    __slots__ = ("held", "lender")

    def __init__(self, held: Callable[..., Any] | None, lender: "weakref.ref[Taps]") -> None:
        self.held = held
        self.lender = lender


def here() -> Tally | None:
    """The tally of the run that executes here, if one does."""
    stack = getcurrent()
    run = stack.tracing if type(stack) is Worker else None
    return run.tally if isinstance(run, Run) else None


def _may_shorten(module: nn.Module) -> bool:
    """Whether the call of a module is torch's own, and what it looks at is where it looks."""
    own: Any = getattr(module._call_impl, "__func__", None) is nn.Module._call_impl
    return SHORT and own and all(name in module.__dict__ for name in HOOKS)


Make = Callable[[nn.Module, Callable[..., Any] | None], Callable[..., Any]]


Everywhere = tuple[Any, Any, Any, Any]
"""Torch's hooks for all modules. They are looked up by attribute in its own code, and are never replaced there."""


def _everywhere() -> Everywhere:
    return (
        torch_module._global_backward_hooks,
        torch_module._global_backward_pre_hooks,
        torch_module._global_forward_hooks,
        torch_module._global_forward_pre_hooks,
    )


def _quick_reporter(
    keys: tuple[int, ...], lender: "weakref.ref[Taps]"
) -> tuple[Make, Callable[[Tally], None]]:
    """Like `_reporter`, in C. torch.compile does not look into it, and compiles what it calls."""
    line = quick.Line(served=_IDLE, everywhere=_everywhere(), keys=keys)

    def report(module: nn.Module, held: Callable[..., Any] | None = None) -> Callable[..., Any]:
        inner = module._call_impl if held is None else held
        looked = module.__dict__ if held is None and _may_shorten(module) else None
        return quick.Report(  # type: ignore[no-any-return]
            line=line, key=id(module), module=module, inner=inner, looked=looked, tap=Tap(held, lender)
        )

    return report, line.serve


def _reporter(keys: tuple[int, ...], lender: "weakref.ref[Taps]") -> tuple[Make, Callable[[Tally], None]]:
    """What makes the reports of a tree's modules, and what says whose run is served by the quick way.

    The report of the root also keeps the notes of a long run short when nobody asks for anything.

    A report runs in place of a module's call, and is the hot path of the library. Between two modules of a real
    model nothing of it is left in the processor's own caches, so what counts is how much it touches: no object
    of its own beside its cells. The run that was opened last is known to all reports of a tree by one variable;
    any other run is found by the stack that it executes on. A module without hooks is called by its forward,
    past torch's own look at its hooks, which is done here. That pays for the report.
    """
    served, root = _IDLE, keys[0]
    any_backward, any_backward_pre, any_forward, any_forward_pre = _everywhere()

    def serve(tally: Tally) -> None:
        nonlocal served
        served = tally

    def report(module: nn.Module, held: Callable[..., Any] | None = None) -> Callable[..., Any]:
        key = id(module)
        inner: Callable[..., Any] = module._call_impl if held is None else held
        looked = module.__dict__ if held is None and _may_shorten(module) else HOOKED

        def call(*args: Any, **kwargs: Any) -> Any:
            tally, stack = served, getcurrent()
            if stack is not tally.stack:
                found = here()
                if found is None:
                    return inner(*args, **kwargs)  # a plain call while a trace is open
                tally = found
            if key in tally.before:
                return stack.tracing.reach(key, inner, args, kwargs)  # type: ignore[attr-defined]
            tally.entered.append(key)
            try:
                if (
                    looked["_forward_hooks"] or looked["_forward_pre_hooks"]
                    or looked["_backward_hooks"] or looked["_backward_pre_hooks"]
                    or any_forward or any_forward_pre or any_backward or any_backward_pre
                ):  # fmt: skip
                    result = inner(*args, **kwargs)
                else:
                    result = module.forward(*args, **kwargs)
            except BaseException:
                stack.tracing.broke(key)  # type: ignore[attr-defined]
                raise
            tally.left.append(key)
            if key in tally.after:
                return stack.tracing.leave(key, args, kwargs, result)  # type: ignore[attr-defined]
            return result

        def counting(*args: Any, **kwargs: Any) -> Any:
            stack = getcurrent()
            # Compiled code never comes to the length, and so is not compiled anew for each.
            if stack is served.stack and len(served.entered) > MANY:
                stack.tracing.count()
            return call(*args, **kwargs)

        made = counting if key == root else call
        made.tap = Tap(held, lender)  # type: ignore[attr-defined]
        return made

    return report, serve


def works() -> bool:
    """Whether this torch looks at the slot when a module is called."""
    module, seen = nn.Identity(), list[Any]()
    module.__dict__[SLOT] = seen.append
    module(None)
    return bool(seen)


def _placed(slots: list[dict[str, Any]], key: str, values: list[Any]) -> list[Any] | None:
    """Put each value under a key of its dictionary, where nothing stands; what stands there then, if not all is new."""
    found = list(map(dict.setdefault, slots, repeat(key), values))
    return None if found == values else found


def _displaced(slots: list[dict[str, Any]], key: str, values: list[Any]) -> None:
    """Take each value away from under a key of its dictionary, and leave what is something else.

    That is a tap of another tree, which a run in another thread may come to meanwhile, or what
    `module.compile()` has put there.
    """
    for slot, value in zip(slots, values, strict=True):
        if slot.get(key) is value:
            del slot[key]


_place = _placed if quick is None else quick.place
_displace = _displaced if quick is None else quick.displace


class Taps:
    """The taps of the modules of one tree, put in place and taken away together.

    Attributes:
        serve: Says which run the reports serve by the quick way.
        users: Open traces of the tree, and taps of other trees that found these in place, by id. Whoever is
            in it can be removed, however far an interrupted `install` or `remove` came.
        lenders: The taps of other trees that stood in some slots when these were put in place.
        replaced: Where something else stood: what `module.compile()` left, or the tap of another tree.
    """

    __slots__ = (
        "__weakref__",
        "_keys",
        "_report",
        "calls",
        "lenders",
        "modules",
        "placed",
        "replaced",
        "serve",
        "slots",
        "users",
    )

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.modules = list(modules)
        self.slots = [module.__dict__ for module in self.modules]
        self.users: set[int] = set()
        make = _reporter if quick is None else _quick_reporter
        self._keys = tuple(map(id, self.modules))
        self._report, self.serve = make(self._keys, weakref.ref(self))
        self.calls = [self._report(module, None) for module in self.modules]
        self.placed = False
        self.lenders: list[Taps] = []
        self.replaced: list[int] = []

    def keys(self) -> tuple[int, ...]:
        """The key of each tapped module."""
        return self._keys

    def install(self, user: object) -> None:
        """Put the taps in place, unless a trace of this tree has done so already."""
        with _lock:
            self.users.add(id(user))
            if not self.placed:
                found = _place(self.slots, SLOT, self.calls)
                if found is not None:
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
            self.replaced.append(index)
            self.calls[index] = self._report(self.modules[index], held)
            self.slots[index][SLOT] = self.calls[index]
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
            self.serve(_IDLE)
            _displace(self.slots, SLOT, self.calls)
            for index in self.replaced:
                self._restore(index)
            for lender in self.lenders:
                lender.remove(self)
            self.lenders, self.replaced = [], []
            self.placed = False
            users.clear()

    def _restore(self, index: int) -> None:
        """Give a slot back what it held, unless somebody has put something else there."""
        tap: Tap = self.calls[index].tap  # type: ignore[attr-defined]
        if tap.held is not None:
            self.slots[index].setdefault(SLOT, tap.held)
        self.calls[index] = self._report(self.modules[index], None)

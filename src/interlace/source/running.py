"""Operations of one run: rewritten forwards put in place, and what they report.

A module's `forward` gives way to a stand-in while any run has asked for its operations. The stand-in
looks which run it executes in: that run's rewritten forward, or the original for everyone else.
Operations report to the run through the same `reach` as modules do, so that visits, edits and errors are
the same thing for both.
"""

import functools
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any

from torch import nn

from interlace.errors import OrderError, SourceError
from interlace.run import Run
from interlace.site import Site, spell
from interlace.source.callables import innermost, rebuilt, spelled
from interlace.source.names import Operation
from interlace.source.rewrite import Rewritten, rewrite
from interlace.switch import carried

_lock = threading.RLock()  # a finalizer that ends a run may run inside it, on the same thread


class StandIn:
    """What stands as `module.forward` while the operations of the module are asked for."""

    def __init__(self, module: nn.Module) -> None:
        self.original: Callable[..., Any] = module.forward
        self.held = module.__dict__.get("forward")
        self.key = id(module)
        self.users: set[int] = set()
        self.__wrapped__ = self.original  # where `inspect.signature` looks; `generate` asks for it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward that belongs to the run this executes in."""
        run = carried()
        if run is not None:
            frame = run.frames.get(self.key)
            if frame is not None:
                return frame.forward(*args, **kwargs)
        return self.original(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the module made during a trace gets a forward of its own."""
        copied = memo.get(self.key)
        return self.original if copied is None else type(copied).forward.__get__(copied)

    @classmethod
    def put(cls, module: nn.Module, user: object) -> None:
        """Put the stand-in of a module in place, if nobody has; `leave` undoes it from any point in here."""
        with _lock:
            slot = module.__dict__
            found = slot.get("forward")
            if not isinstance(found, cls):
                slot["forward"] = found = cls(module)
            found.users.add(id(user))

    @classmethod
    def leave(cls, module: nn.Module, user: object) -> None:
        """One user fewer; the last one gives the module its forward back."""
        with _lock:
            slot = module.__dict__
            found = slot.get("forward")
            if not isinstance(found, cls):
                return
            if found.users - {id(user)}:
                found.users.discard(id(user))
            elif found.held is None:
                del slot["forward"]
            else:
                slot["forward"] = found.held


class Frame:
    """The operations of one function in one run. It is the reporter of the rewritten function.

    Attributes:
        keys: The key of each operation, for the run.
        path: Where this function is, `model.h.0.attn.source`.
        inner: The functions that calls run, by position, where somebody asked for the operations inside.
    """

    __slots__ = (
        "callees",
        "ends",
        "forward",
        "functions",
        "inner",
        "keys",
        "path",
        "rewritten",
        "run",
        "starts",
        "tally",
    )

    def __init__(self, run: Run, rewritten: Rewritten, path: str) -> None:
        self.run = run
        self.starts, self.ends, self.tally = run.starts, run.ends, run.tally
        self.rewritten = rewritten
        self.path = path
        self.keys = tuple([object() for _ in rewritten.operations])
        # A position that is no operator is never asked for as one.
        self.functions: tuple[Any, ...] = rewritten.functions
        self.inner: dict[int, dict[Rewritten, Frame]] = {}
        self.callees: dict[int, Callable[..., Any]] = {}
        self.forward: Callable[..., Any]

    def site(self, operation: Operation) -> Site:
        """The site of one operation."""
        return Site(self.keys[operation.position], f"{self.path}.{operation.name}")

    def close(self) -> None:
        """Let go of the rewritten forward, which holds this frame and the module."""
        if hasattr(self, "forward"):
            del self.forward
        self.inner.clear()

    def began(self, calls: int) -> None:
        """Calls that nobody saw have passed: each operation counts as reached once in each of them."""
        for key in self.keys if calls else ():
            self.starts[key] = self.ends[key] = calls

    # -- what the rewritten function calls

    def call(self, at: int, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """A call, counted, and reported where somebody waits for it."""
        run, key = self.run, self.keys[at]
        if key in self.tally.before:
            self.callees[at] = function
            try:
                return run.reach(key, functools.partial(self._enter, at, function), args, kwargs)
            finally:
                self.callees.pop(at, None)
        self.starts[key] += 1
        try:
            if at in self.inner:
                result = self._enter(at, function, *args, **kwargs)
            else:
                result = function(*args, **kwargs)
        except BaseException:
            self.run.broke(key)
            raise
        self.ends[key] += 1
        if key in self.tally.after:
            return run.leave(key, args, kwargs, result)
        return result

    def operator(self, at: int, /, *operands: Any) -> Any:
        """An operator, likewise."""
        run, key, function = self.run, self.keys[at], self.functions[at]
        if key in self.tally.before:
            return run.reach(key, function, operands, {})
        self.starts[key] += 1
        try:
            result = function(*operands)
        except BaseException:
            self.run.broke(key)
            raise
        self.ends[key] += 1
        if key in self.tally.after:
            return run.leave(key, operands, {}, result)
        return result

    def value(self, at: int, value: Any, /) -> Any:
        """A variable, likewise: what it is about to hold is both its input and its output."""
        run, key = self.run, self.keys[at]
        if key in self.tally.before:
            return run.reach(key, _itself, (value,), {})
        self.starts[key] += 1
        self.ends[key] += 1
        if key in self.tally.after:
            return run.leave(key, (value,), {}, value)
        return value

    # -- functions inside

    def _enter(self, at: int, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run a callee, rewritten if its operations are asked for; another than last time runs as it is."""
        frames = self.inner.get(at)
        if frames and not isinstance(function, nn.Module):
            try:
                body = innermost(function)
                frame = frames.get(rewrite(body))
            except SourceError:
                frame = None
            if frame is not None:
                return rebuilt(function, frame.rewritten.bind(body, frame))(*args, **kwargs)
        return function(*args, **kwargs)

    def only(self, operation: Operation) -> "Frame | None":
        """The function that this call runs, where its operations were asked for before."""
        frames = self.inner.get(operation.position)
        return next(reversed(frames.values())) if frames else None

    def descend(self, operation: Operation) -> "Frame":
        """The function that this call is about to run; the model must be paused at its input.

        Raises:
            SourceError: The callee is a module, a class, built in, or compiled.
        """
        callee = self.callees[operation.position]
        path = f"{self.path}.{operation.name}"
        if isinstance(callee, nn.Module):
            raise SourceError(
                f"`{spell(path)}` calls a {type(callee).__name__}, a module with a `.source` of its own.\n"
                f"Go to the module instead of the call: `{_module_path(path, operation)}.source`."
            )
        body: FunctionType = innermost(callee)
        rewritten = rewrite(body)
        frames = self.inner.setdefault(operation.position, {})
        frame = frames.pop(rewritten, None)
        if frame is None:
            frame = Frame(self.run, rewritten, f"{path}.source")
            frame.began(self.run.ends[self.keys[operation.position]])
            self.run.learn(frame.keys)
        frames[rewritten] = frame
        return frame


def instrument(run: Run, module: nn.Module, path: str) -> Frame:
    """The operations of a module's forward in this run, from its next call on.

    Raises:
        OrderError: The module is executing, so its forward cannot be replaced any more.
        SourceError: The forward cannot be rewritten.
    """
    key = id(module)
    known: Frame | None = run.frames.get(key)
    if known is not None:
        return known
    inside = run.starts[key] - run.ends[key]
    live = run.live
    if live is not None and live.key == key and live.port == "input":
        inside -= 1  # paused before its forward begins
    if inside > 0:
        raise OrderError(
            f"`{spell(path)}` is running already, so this call's operations cannot be seen; {run.where()}.\n"
            f"Name `{spell(path)}.source` (any operation of it) before anything inside the module."
        )
    _refuse_compiled(module, path)
    forward = module.forward
    target = forward.original if isinstance(forward, StandIn) else forward
    try:
        body = innermost(target)
        frame = Frame(run, rewrite(body), f"{path}.source")
    except SourceError as error:
        raise SourceError(f"`{spell(path)}.source` is not to be had: {error}") from None
    frame.forward = rebuilt(target, frame.rewritten.bind(body, frame))
    frame.began(run.ends[key])
    run.at_end += [frame.close, functools.partial(StandIn.leave, module, frame)]
    StandIn.put(module, frame)
    run.frames[key] = frame
    run.learn(frame.keys)
    return frame


def describe(module: nn.Module, path: str) -> Rewritten:
    """The operations of a module's forward without any run, to list and to print."""
    _refuse_compiled(module, path)
    forward = module.forward
    target = forward.original if isinstance(forward, StandIn) else forward
    try:
        return rewrite(innermost(target))
    except SourceError as error:
        raise SourceError(f"`{spell(path)}.source` is not to be had: {error}") from None


def _refuse_compiled(module: nn.Module, path: str) -> None:
    compiled = type(module).__name__ in ("OptimizedModule", "RecursiveScriptModule", "ScriptModule")
    if compiled or type(module).__module__.startswith("torch.jit"):
        raise SourceError(f"`{spell(path)}` is a {spelled(type(module))}: its Python code does not run.")


def _module_path(path: str, operation: Operation) -> str:
    """`model.h.0.attn.source.self_c_proj_0` calls what its own text says: `model.h[0].attn.c_proj`."""
    owner = spell(path.partition(".source.")[0])
    callee = operation.source_code.partition("(")[0].strip()
    return owner + callee.removeprefix("self") if callee.startswith("self.") else owner + ".<name>"


def _itself(value: Any) -> Any:
    return value

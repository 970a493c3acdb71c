"""Several prompts in one forward: the blocks of one trace, each with rows of its own.

`tracer.invoke(x)` takes a function (as a decorator) or captures the block under a `with`. All blocks run
when the trace runs its model, each on a stack of its own (`workers`), over the rows of its own input
(`rows`).
"""

import sys
from collections.abc import Callable
from math import inf
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from interlace import frames
from interlace.capture import Body, Family, Scope, Template, capture, check_function, held, line_in, write
from interlace.errors import InputError, TraceError
from interlace.rows import Rows
from interlace.switch import carried
from interlace.workers import Worker

if TYPE_CHECKING:
    from interlace.trace import Trace

Input = tuple[tuple[Any, ...], dict[str, Any]]


_WANTED = (
    "The block of a prompt is a function without arguments, not {}.\n"
    "Write `@tracer.invoke(x)` over `def block():`; it reads what it needs from around it."
)


class Promise:
    """What a decorated block returned, once its trace is over.

    The name that the decorator bound is bound to the value itself by then.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._values: list[Any] = []

    @property
    def value(self) -> Any:
        """The value.

        Raises:
            TraceError: The trace is not over, or the block has failed.
        """
        if not self._values:
            raise TraceError(f"`{self._name}` has not returned yet: it runs when its trace ends.")
        return self._values[0]

    def __repr__(self) -> str:
        return f"<what `{self._name}` returns when its trace ends>"


class Invoke:
    """One prompt of a trace, before its block is known."""

    def __init__(self, prompts: "Prompts", given: Input | None) -> None:
        self._prompts = prompts
        self._given = given
        self._body: Body | None = None

    def __enter__(self) -> "Invoke":
        self._body = capture(sys._getframe(1))
        self._body.skip()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        body, self._body = self._body, None
        if body is None or not body.left(error, self):
            return False
        self._prompts.add_body(self._given, body)
        return True

    def __call__(self, function: Callable[[], Any]) -> Any:
        """Run a function without arguments as the block; its name becomes what it returns."""
        return self._prompts.add_function(self._given, function, sys._getframe(1))


class Prompts:
    """The blocks of one trace, in the order in which they are written."""

    def __init__(self) -> None:
        self._inputs: list[Input | None] = []
        self._bodies: list[Callable[[], Any]] = []
        self._names: list[str] = []
        self._families: dict[int, tuple[FrameType, Family]] = {}
        self._templates: dict[Scope, Template] = {}
        self._places: dict[Scope, int] = {}
        self._promises: dict[int, tuple[FrameType, list[Promise]]] = {}
        self._workers: list[Worker] = []

    def __bool__(self) -> bool:
        return bool(self._bodies)

    @property
    def inputs(self) -> list[Input]:
        """The inputs, of those blocks that have one."""
        return [given for given in self._inputs if given is not None]

    def add_body(self, given: Input | None, body: Body) -> None:
        """Take in a captured block."""
        frame = body.frame
        assert frame is not None
        _, family = self._families.setdefault(id(frame), (frame, Family(self._wait, self._wait_for_use)))
        scope = body.scope()
        family.add(scope)
        self._templates[scope] = body.template
        self._places[scope] = len(self._bodies)
        run = body.bind()
        self._add(given, lambda: run(scope), f"the block at line {body.template.line}")

    def add_function(self, given: Input | None, function: Callable[[], Any], frame: FrameType) -> Promise:
        """Take in a function."""
        check_function(function, (), _WANTED)
        name = getattr(function, "__name__", "a block")
        promise = Promise(name)
        self._promises.setdefault(id(frame), (frame, []))[1].append(promise)
        self._add(given, lambda: promise._values.append(function()), f"`{name}`")
        return promise

    def _add(self, given: Input | None, run: Callable[[], Any], name: str) -> None:
        self._inputs.append(given)
        self._bodies.append(run)
        self._names.append(name)

    def _wait(self, asker: Scope, maker: Scope, name: str) -> bool:
        """Let a block wait until another one has settled a name."""
        makes = self._templates[maker].line_of(name)
        self._wait_until(asker, name, lambda: maker._il_is_settled(name), f"which line {makes} assigns")
        return True

    def _wait_for_use(self, asker: Scope, user: Scope, name: str) -> bool:
        """Let a block wait until another one, which comes first, has no more use for a name."""
        if self._is_past(user, name):
            return False
        last = user._il_uses[name]
        until = "to its end" if last == inf else f"up to line {last}"
        self._wait_until(asker, name, lambda: self._is_past(user, name), f"which a block before uses {until}")
        return True

    def _is_past(self, user: Scope, name: str) -> bool:
        """Whether a block, at the line where it pauses, has no more use for a name."""
        if user._il_settled is None:
            return True
        stack = self._workers[self._places[user]].switch.frame
        return user._il_is_past(name, line_in(user, self._templates[user].code, stack))

    def _wait_until(self, asker: Scope, name: str, until: Callable[[], bool], why: str) -> None:
        worker = carried()
        if not isinstance(worker, Worker) or worker.trace._outer._prompts is not self:
            raise TraceError(
                f"`{name}` is made by another block of a trace around this one, which cannot go on from in here.\n"
                "Read it in a line above the inner trace."
            )
        asks = self._templates[asker]
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not asks.code:
            frame = frame.f_back
        line = asks.line if frame is None else frame.f_lineno

        def waits() -> str:
            return f"`{name}` at line {line}, {why} ({asks.code.co_filename})"

        worker.wait(until, waits)

    def workers(self, trace: "Trace", rows: list[Rows]) -> list[Worker]:
        """A worker for each block.

        Args:
            trace: The trace that they are parts of.
            rows: Of each block that has an input.
        """
        left = iter(rows)
        made = []
        for given, body, name in zip(self._inputs, self._bodies, self._names, strict=True):
            own = None if given is None else next(left)
            own = None if own is None or own.size == own.total else own
            made.append(part(trace, body, own, name, (trace._tree,)))
        self._workers = made
        return made

    def close(self) -> None:
        """Give every name its value, in the order in which the blocks are written."""
        for frame, family in self._families.values():
            family.close(frame)
        for frame, promises in self._promises.values():
            kept = {id(promise): promise._values[0] for promise in promises if promise._values}
            here = held(frame).items()
            found = {name: kept[id(value)] for name, value in here if id(value) in kept}
            if found:
                write(frame, found)
        self._families.clear()
        self._templates.clear()
        self._places.clear()
        self._bodies.clear()
        self._promises.clear()
        self._workers = []


def part(
    trace: "Trace", body: Callable[[], Any], rows: Rows | None, name: str, trees: tuple[Any, ...]
) -> Worker:
    """A worker whose requests go to a trace of its own, which is a part of another one.

    Args:
        trace: The one that it is a part of; all parts of it may take turns in any order.
        body: Runs the block.
        rows: The rows that are the block's own; None for all.
        name: What errors call it.
        trees: Whose envoys the block asks.
    """
    own = trace._part()

    def serve(worker: Worker) -> Any:
        try:
            try:
                own._serve(worker, frames.Owner(sys._getframe()), trees)
                result = body()
                if worker.pending:  # edits in place that go back when the model goes on
                    worker.settle()
                    worker.pending.clear()
                return result
            finally:
                own._unserve(trees)
        except BaseException:
            own._unserve(trees)  # again: an interrupt may have fallen into it
            raise
        finally:
            worker.trace = None

    worker = Worker(serve, rows, name, trace._owner)
    worker.trace = own
    return worker


class Barrier:
    """A point at which blocks wait for each other: `barrier = tracer.barrier(2)`, then `barrier()` in two blocks."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise InputError(
                f"A barrier for {count} blocks would hold nobody; give the number of blocks that meet."
            )
        self._count = count
        self._here = 0
        self._round = 0

    def __call__(self) -> None:
        """Wait until as many blocks are here as the barrier is for.

        Raises:
            TraceError: The run ended before they came.
        """
        self._here += 1
        if self._here == self._count:
            self._here = 0
            self._round += 1
            return
        worker = carried()
        if not isinstance(worker, Worker):
            raise TraceError("A barrier is for the blocks of `tracer.invoke(...)`; here only one block runs.")
        this = self._round

        def waits() -> str:
            return f"a barrier for {self._count} blocks, where {self._here} arrived"

        worker.wait(lambda: self._round > this, waits)

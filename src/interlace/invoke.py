"""Several prompts in one forward: the blocks of one trace, each with rows of its own.

`tracer.invoke(x)` takes a function (as a decorator) or captures the block under a `with`. All blocks run
when the trace runs its model, each on a stack of its own (`workers`), over the rows of its own input
(`rows`).
"""

import sys
import weakref
from collections.abc import Callable
from functools import partial
from math import inf
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

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

    __slots__ = ("__weakref__", "_name", "_values")

    def __init__(self, name: str, values: list[Any]) -> None:
        self._name = name
        self._values = values  # one, when there is one

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

    __slots__ = ("_body", "_given", "_prompts")

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


Block = tuple[Input | None, Callable[[], Any], str, Callable[[Any], None] | None]
"""The input of a prompt, what runs its block, what errors call it, and who is told what it returns."""


class Prompts:
    """The blocks of one trace, in the order in which they are written."""

    __slots__ = ("_blocks", "_families", "_places", "_promises", "_templates", "_workers")

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._families: dict[int, tuple[FrameType, Family]] = {}
        self._templates: dict[Scope, Template] = {}
        self._places: dict[Scope, int] = {}
        self._promises: dict[int, tuple[FrameType, list[weakref.ref[Promise]]]] = {}
        self._workers: list[Worker] = []

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def call(self, prepare: Any) -> tuple[Callable[[], Any], list[Rows]]:
        """The call that serves all blocks, and the rows of those that have an input.

        Args:
            prepare: What the trace was opened with. Its own input is the whole batch, where no block has one.
        """
        inputs = [block[0] for block in self._blocks if block[0] is not None]
        return prepare.combined(inputs) if inputs else (prepare(), [])

    def add_body(self, given: Input | None, body: Body) -> None:
        """Take in a captured block."""
        frame = body.frame
        assert frame is not None
        known = self._families.get(id(frame))
        if known is None:
            known = self._families[id(frame)] = frame, Family(self._wait, self._wait_for_use)
        scope = body.scope()
        known[1].add(scope)
        self._templates[scope] = body.template
        self._places[scope] = len(self._blocks)
        run = partial(body.bind(), scope)
        self._blocks.append((given, run, body.template.called, None))

    def add_function(self, given: Input | None, function: Callable[[], Any], frame: FrameType) -> Promise:
        """Take in a function."""
        check_function(function, (), _WANTED)
        name = getattr(function, "__name__", "a block")
        values: list[Any] = []
        promise = Promise(name, values)
        known = self._promises.get(id(frame))
        if known is None:
            known = self._promises[id(frame)] = frame, []
        known[1].append(weakref.ref(promise))
        self._blocks.append((given, function, f"`{name}`", values.append))
        return promise

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
        part = worker.trace if isinstance(worker, Worker) else None
        if part is None or part._outer is None or part._outer._prompts is not self:
            raise TraceError(
                f"`{name}` is made by another block of a trace around this one, which cannot go on from in here.\n"
                "Read it in a line above the inner trace."
            )
        assert isinstance(worker, Worker)
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
        for given, body, name, keep in self._blocks:
            own = None if given is None else next(left)
            own = None if own is None or own.size == own.total else own
            made.append(Worker(trace, body, own, name, trace._trees, keep))
        self._workers = made
        return made

    def close(self) -> None:
        """Give every name its value, in the order in which the blocks are written."""
        for frame, family in self._families.values():
            family.close(frame)
        for frame, promises in self._promises.values():
            kept: list[Promise] = []
            for promise in promises:
                one = promise()
                if one is not None and one._values:
                    kept.append(one)
            if not kept:
                continue  # no name is bound to one
            values = {id(one): one._values[0] for one in kept}
            found = {name: values[id(value)] for name, value in held(frame).items() if id(value) in values}
            if found:
                write(frame, found)
        self._families.clear()
        self._templates.clear()
        self._places.clear()
        self._blocks.clear()
        self._promises.clear()
        self._workers = []


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

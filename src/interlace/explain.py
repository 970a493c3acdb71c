"""What a block asks of a model, found out before anything runs: `model.explain(...)`.

A plan is a scan that notes every request: what it gives, how many bytes, what of it is still held when the
block ends. A request that comes too late is answered all the same, so that the plan knows all of them and can
say in which order they would work.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from interlace.capture import check_function
from interlace.errors import InterlaceError, NotReachedError, OrderError, WriteError
from interlace.memory import Memory, Stored
from interlace.scan import Keep, Scan
from interlace.site import Port, Site, Visit, spell
from interlace.trace import Trace
from interlace.trees import describe, tensors
from interlace.workers import Worker

if TYPE_CHECKING:
    from interlace.calls import Function
    from interlace.envoy import Envoy

Kind = Literal["read", "write", "edit", "skip"]


@dataclass(slots=True)
class Request:
    """One request of a block.

    Attributes:
        site: The place: `model.h[3].output`.
        visit: Which occurrence of it, from 0.
        kind: `read`, `write` (a replacement), `edit` (in place) or `skip`.
        value: What was there, as tensors that have no values.
        line: Where it was asked for: `file:line`.
        block: Which invoke or edit asked; empty for the block of the trace itself.
        late: Whether the model had passed it.
    """

    site: str
    visit: int
    kind: Kind
    value: Any
    line: str
    block: str
    late: bool
    _tick: int
    _stores: list[Stored] = field(default_factory=list, repr=False)

    @property
    def shape(self) -> torch.Size | None:
        """The shape of its tensor, or of the first of several; None where there is none."""
        first = next(tensors(self.value), None)
        return None if first is None else first.shape

    @property
    def dtype(self) -> torch.dtype | None:
        """Likewise the dtype."""
        first = next(tensors(self.value), None)
        return None if first is None else first.dtype

    @property
    def device(self) -> torch.device | None:
        """Likewise the device."""
        first = next(tensors(self.value), None)
        return None if first is None else first.device

    @property
    def bytes(self) -> int:
        """How many bytes its tensors take, views of them counted by what they show."""
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors(self.value))

    @property
    def kept_bytes(self) -> int:
        """How many bytes of the memory behind it are still held when the block ends."""
        return sum(store.bytes for store in self._stores if store.held)

    def __str__(self) -> str:
        return f"`{self.site}`" + (f" (visit {self.visit})" if self.visit else "")


_WANTED = (
    "`explain` takes a function of the model, or of the model and the trace, not {}.\n"
    "Write `model.explain(lambda model: ..., x)`, or `with model.explain(x) as plan:`."
)


class Plan(Scan):
    """What a block asks of a model, and what that costs. Made by `model.explain(...)`.

    Attributes:
        requests: What was asked for, in the order of the asking.
        problems: What would go wrong, in words; empty if the block works.
        kept_bytes: What the block holds when it ends, with what its values hold for a backward pass. No weights,
            no input.
        peak_bytes: The most that the run held at once, likewise.
        returned: What a function returned, as tensors that have no values.
    """

    _opened_by = "explain"

    def __init__(self, model: "Envoy", fn: "Function", args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(model, fn, args, kwargs)
        self.requests: list[Request] = []
        self.problems: list[str] = []
        self.kept_bytes = 0
        self.peak_bytes = 0
        self.returned: Any = None
        self._memory = Memory()
        self._ticks: dict[tuple[Any, int, Port], int] = {}
        self._gone: dict[tuple[Any, int], Visit] = {}
        self._last: tuple[Request, Visit, Port, Any, list[int]] | None = None

    @property
    def works(self) -> bool:
        """Whether the block would run as it is written."""
        return not self.problems

    @property
    def order(self) -> list[Request]:
        """The requests in an order that works: that in which the model passes them, block by block."""
        blocks = list(dict.fromkeys(request.block for request in self.requests))
        return sorted(self.requests, key=lambda request: (blocks.index(request.block), request._tick))

    # -- a scan that notes -----------------------------------------------------------------------------------

    def __enter__(self) -> "Plan":
        super().__enter__()
        assert self._fakes is not None
        self._fakes.mode.made = self._memory.made
        return self

    def __exit__(  # type: ignore[override]  # what would be an error in a trace is a line of the plan
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        try:
            super().__exit__(kind, error, traceback)
        except EXPECTED as late:
            self._problem(late)
        if not isinstance(error, EXPECTED):
            return False
        self._problem(error)
        return True

    def _run_function(self, function: Callable[..., Any]) -> "Plan":
        """Run a function of the model, or of the model and the trace, as the block."""
        takes = inspect.signature(function).parameters.values()
        both = (
            sum(
                p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty for p in takes
            )
            > 1
        )
        given = (self.model, self) if both else (self.model,)
        check_function(function, given, _WANTED)
        with self:
            self.returned = function(*given)
        return self

    def _leave(self) -> None:
        fakes = self._fakes
        if fakes is None:
            return
        self._conclude()
        self._result = Keep(fakes).value(self._result)  # the trace's own, and nothing that the block holds
        fakes.mode.made = None
        self.kept_bytes, self.peak_bytes = self._memory.now, self._memory.peak
        self._memory.close()
        self.returned = Keep(fakes).value(self.returned)
        self._gone.clear()
        super()._leave()

    def _record(self, visit: Visit) -> None:
        fakes = self._fakes
        if fakes is None:
            return
        self._without_stale(visit, fakes)
        kept = Keep(fakes).visit(visit)  # and not the visit, whose values nobody may hold but the block
        self._ticks[visit.key, visit.number, visit.port] = len(self._ticks)
        self._gone[visit.key, visit.number] = kept
        if not visit.number:
            self._seen[visit.key] = kept

    # -- requests --------------------------------------------------------------------------------------------

    @property
    def _whole(self) -> "Plan":
        return self if self._outer is None else cast("Plan", self._outer)

    def _visit(self, site: Site, port: Port) -> Visit:
        """Run the model to the visit of a site that a request made now means, and note it."""
        whole, late = self._whole, False
        whole._conclude()
        try:
            visit = super()._visit(site, port)
        except OrderError as error:
            found = whole._passed(site, port, error)
            if found is None:
                raise
            visit, late = found, True
        whole._note(self, site, port, visit, late)
        return visit

    def _before(self, site: Site, what: str = "changed") -> Visit:
        """Like `_visit` at the input, for a write."""
        try:
            visit = super()._before(site, what)
        except OrderError as error:
            whole = self._whole
            request = whole.requests[-1]
            request.late = True
            whole._problem(error)
            visit = whole._gone[site.key, request.visit]
        self._whole.requests[-1].kind = "write"
        return visit

    def _skip(self, site: Site, value: Any) -> None:
        """Let `value` stand for the next call of a site."""
        super()._skip(site, value)
        request = self._whole.requests[-1]
        request.kind, request.site = "skip", f"{spell(site.path)}.skip()"

    def _passed(self, site: Site, port: Port, error: OrderError) -> Visit | None:
        """A visit that has passed, as it was."""
        number = next(
            (n for key, n in self._gone if key == site.key and site.at(port, n) in str(error)), None
        )
        if number is None:
            return None
        self._problem(error)
        gone, visit = self._gone[site.key, number], Visit(site.key, number, (), {})
        if self._fakes is not None:
            self._fakes.disown((gone.args, gone.kwargs, gone.result))
        visit.args, visit.kwargs, visit.result, visit.port = gone.args, gone.kwargs, gone.result, port
        return visit

    def _note(self, part: Trace, site: Site, port: Port, visit: Visit, late: bool) -> None:
        value = _value(visit, port)
        worker: Any = part._run  # a worker, where there are several blocks
        fakes = self._fakes
        assert fakes is not None
        where, line = site.at(port).strip("`"), _line(sys._getframe(2))
        block = worker.name if isinstance(worker, Worker) else ""
        asked = self.requests[-1] if self.requests else None
        if asked is None or (asked.site, asked.visit, asked.line, asked.block) != (
            where,
            visit.number,
            line,
            block,
        ):
            tick, stores = self._ticks.get((site.key, visit.number, port), -1), self._memory.behind(value)
            shown = Keep(fakes).value(_shown(value, port))
            asked = Request(where, visit.number, "read", shown, line, block, late, tick, stores)
            self.requests.append(asked)
        self._last = asked, visit, port, value, _versions(value)

    def _conclude(self) -> None:
        """Tell what the last request was: it may have been the first half of a write."""
        last, self._last = self._last, None
        if last is not None:
            request, visit, port, value, versions = last
            if request.kind == "read" and not _same(_value(visit, port), value, port):
                request.kind = "write"
            elif request.kind == "read" and _versions(value) != versions:
                request.kind = "edit"

    def _problem(self, error: BaseException) -> None:
        self.problems.append(str(error))

    # -- what is shown ---------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        if self._call is not None:
            return "A plan of nothing yet: `with model.explain(x) as plan:`, or `model.explain(function, x)`."
        rows = [("", "request", "", "value", "bytes", "kept", "line")]
        for number, request in enumerate(self.requests):
            visit = f" (visit {request.visit})" if request.visit else ""
            mark = f"{number}" + " late" * request.late
            value = describe(request.value)
            sizes = f"{request.bytes:,}", f"{request.kept_bytes:,}"
            rows.append((mark, request.site + visit, request.kind, value, *sizes, Path(request.line).name))
        widths = [max(len(row[at]) for row in rows) for at in range(7)]
        lines = [
            "  ".join(
                cell.rjust(width) if at in (4, 5) else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        lines.append(
            f"Kept when the block ends: {self.kept_bytes:,} bytes; at most {self.peak_bytes:,} at once, without "
            "weights and input."
        )
        if self.works:
            return "\n".join([*lines, "The block works as it is written."])
        lines += [f"Problem: {problem}" for problem in self.problems]
        if any(request.late for request in self.requests):
            lines.append("An order that works: " + ", ".join(dict.fromkeys(map(str, self.order))) + ".")
        if any(request.late and request.kind != "read" for request in self.requests):
            lines.append(
                "If what is written late depends on what was read before it, it takes a second trace."
            )
        return "\n".join(lines)


EXPECTED: tuple[type[InterlaceError], ...] = (OrderError, NotReachedError, WriteError)
"""What a plan is there to tell."""


def _value(visit: Visit, port: Port) -> Any:
    return visit.result if port == "output" else (visit.args, visit.kwargs)


def _same(now: Any, then: Any, port: Port) -> bool:
    return now is then if port == "output" else now[0] is then[0] and now[1] is then[1]


def _shown(value: Any, port: Port) -> Any:
    """What stands for a value in a row: of a call with one argument, the argument."""
    return value[0][0] if port == "input" and len(value[0]) == 1 and not value[1] else value


def _versions(value: Any) -> list[int]:
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors(value)]


_HERE = str(Path(__file__).parent)


def _line(frame: FrameType | None) -> str:
    """The line of the block that asks."""
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"

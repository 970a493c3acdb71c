"""What `envoy.source` is: the operations of a forward, by name, each with its values.

An operation is a site like a module, and a request for it goes the same way: to the trace that the asker
stands in. What is here finds the operations and puts them in place; it has no requests of its own.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any, Protocol

from torch import nn

from interlace.errors import (
    InterlaceWarning,
    NameMissError,
    OrderError,
    OutsideTraceError,
    SourceError,
    nearest,
)
from interlace.run import Run
from interlace.site import Port, Site, Visit, spell
from interlace.source import listing
from interlace.source.names import Operation as Named
from interlace.source.rewrite import Rewritten
from interlace.source.running import Frame, describe, instrument
from interlace.writes import replace, replace_first, replace_inputs

FUSED = ("scaled_dot_product_attention", "flash_attn", "flex_attention")
SCORES = ("attn_weight", "attention_weight", "softmax", "scores", "attention_prob", "attn_prob")


class Trace(Protocol):
    """What an open trace does, for any site. Users, who see traces, do none of it: hence the underscores."""

    @property
    def _running(self) -> Run:
        """The run in progress."""

    @property
    def _model_run(self) -> Run:
        """The run of the model itself, which several blocks may share."""

    def _visit(self, site: Site, port: Port) -> Visit:
        """Run the model to the visit that a request made now means."""

    def _before(self, site: Site, what: str = "changed") -> Visit:
        """The visit at the input, for a write."""

    def _skip(self, site: Site, value: Any) -> None:
        """Let a value stand for the next call of a site."""

    def _joined(self, keys: Iterable[object], like: object) -> None:
        """Count these keys from now on; in the current step they begin as `like` did."""


class Traces(Protocol):
    """How the trace that code stands in is found."""

    def trace_at(self, frame: FrameType | None) -> Trace | None:
        """The open trace of a frame, if any."""

    def trace_for(self, frame: FrameType | None, what: str) -> Trace:
        """The same, or the error that says why there is none."""


class Source:
    """The operations of one function: iterable, and by attribute.

    Attributes:
        source: The text of the function.
        line_numbers: The line of each operation, by its name.
        operations: The operations by name, in the order of evaluation.
    """

    def __init__(self, traces: Traces, rewritten: Rewritten, path: str) -> None:
        self._traces = traces
        self._rewritten = rewritten
        self._path = path

    def _frame(self, trace: Trace) -> Frame:
        raise NotImplementedError

    @property
    def source(self) -> str:  # noqa: D102
        return "\n".join(self._rewritten.text.lines)

    @property
    def line_numbers(self) -> dict[str, int]:  # noqa: D102
        return {one.name: one.line_number for one in self._rewritten.operations}

    @property
    def operations(self) -> "dict[str, Operation]":  # noqa: D102
        return {one.name: Operation(self, one) for one in self._rewritten.operations}

    def __iter__(self) -> "Iterator[Operation]":
        return iter(self.operations.values())

    def __len__(self) -> int:
        return len(self._rewritten.operations)

    def __contains__(self, name: object) -> bool:
        return name in self._rewritten.by_name

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(one.name for one in self._rewritten.operations)]

    def __getattr__(self, name: str) -> "Operation":
        found = self.__dict__["_rewritten"].by_name.get(name)
        if found is not None:
            return Operation(self, found)
        raise NameMissError(self._no_such(name))

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_"):
            raise NameMissError(f"`{spell(self._path)}.{name}` cannot be assigned; write to its `.output`.")
        super().__setattr__(name, value)

    def _no_such(self, name: str) -> str:
        names = [one.name for one in self._rewritten.operations]
        said = f"`{spell(self._path)}` has no operation `{name}`.{nearest(name, names)}"
        fused = self._fused()
        if fused and _of_scores(name):
            return f"{said}\n{_advice(fused)}"
        return said + f"\n`print({spell(self._path)})` lists all {len(names)}."

    def _fused(self) -> str | None:
        """The fused attention that this code runs, if any."""
        names = (one.name for one in self._rewritten.operations)
        return next((name for name in names if any(part in name for part in FUSED)), None)

    def _warn_of_fusion(self, name: str) -> None:
        fused = self._fused()
        if fused and _of_scores(name):
            said = f"`{spell(self._path)}.{name}.output` is None. {_advice(fused)}"
            warnings.warn(said, InterlaceWarning, stacklevel=3)

    def __str__(self) -> str:
        text = self._rewritten.text
        return listing.table(text.lines, text.line, self._rewritten.operations)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same listing, in a notebook."""
        return listing.html(str(self))


class ForwardSource(Source):
    """The operations of a module's forward; of whatever module stands there when a value is asked for."""

    def __init__(self, traces: Traces, module: Callable[[], nn.Module], path: str) -> None:
        super().__init__(traces, describe(module(), path), f"{path}.source")
        self._module = module
        trace = traces.trace_at(sys._getframe())
        if trace is not None and not trace._running.done:
            with suppress(OrderError):  # it may be listed at any time; asking for a value raises this
                self._frame(trace)

    def _frame(self, trace: Trace) -> Frame:
        run = trace._model_run
        module = self._module()
        known: Frame | None = run.frames.get(id(module))
        if known is None:
            known = instrument(run, module, self._path.removesuffix(".source"))
            trace._joined(known.keys, id(module))
        return known

    def _fused(self) -> str | None:
        config = getattr(self._module(), "config", None)
        chosen = getattr(config, "_attn_implementation", None)
        names = [one.name for one in self._rewritten.operations]
        if isinstance(chosen, str) and chosen != "eager" and any("attention" in name for name in names):
            return chosen
        return super()._fused()


class CalleeSource(Source):
    """The operations of a function that an operation calls."""

    def __init__(self, traces: Traces, frame: Frame) -> None:
        super().__init__(traces, frame.rewritten, frame.path)
        self._kept = frame

    def _frame(self, trace: Trace) -> Frame:
        if trace._model_run is not self._kept.run:
            raise OutsideTraceError(
                f"`{spell(self._path)}` was found in another trace, which is over.\n"
                "Go down to it again in this one: what a call runs is known only while the model runs."
            )
        return self._kept


def _of_scores(name: str) -> bool:
    return any(part in name.lower() for part in SCORES)


def _advice(fused: str) -> str:
    return (
        f"Attention is fused here (`{fused}`): its scores never exist.\n"
        'Load the model with attn_implementation="eager" to have them.'
    )


class Operation:
    """One operation of a function, with its values in the trace that asks.

    Attributes:
        name: `self_c_proj_0`.
        kind: `call`, `operator` or `variable`.
        line_number: Its line in the model's file.
        source_code: Its text.
    """

    _owner: Source
    _named: Named
    name: str
    kind: str
    line_number: int
    source_code: str

    def __init__(self, owner: Source, named: Named) -> None:
        self.__dict__.update(
            _owner=owner,
            _named=named,
            name=named.name,
            kind=named.kind,
            line_number=named.line_number,
            source_code=named.source_code,
        )

    def __setattr__(self, name: str, value: object) -> None:
        if not isinstance(getattr(type(self), name, None), property):
            raise NameMissError(
                f"An operation has no `{name}` to assign.{nearest(name, ['output', 'input', 'inputs'])}"
            )
        super().__setattr__(name, value)

    @property
    def path(self) -> str:
        """Where it is, `model.h.0.attn.source.self_c_proj_0`."""
        return f"{self._owner._path}.{self.name}"

    def _site(self, port: str, frame: FrameType) -> tuple[Trace, Site]:
        if self.kind == "operator" and self._named.function is None and port != "output":
            raise SourceError(
                f"`{spell(self.path)}` is a chain of comparisons; only its `.output` can be had."
            )
        traces = self._owner._traces
        trace = traces.trace_at(frame) or traces.trace_for(frame, f"`{spell(self.path)}.{port}`")
        return trace, self._owner._frame(trace).site(self._named)

    @property
    def output(self) -> Any:
        """What the operation gave, or what the variable holds; assign to replace it."""
        trace, site = self._site("output", sys._getframe(1))
        value = trace._visit(site, "output").result
        if value is None:
            self._owner._warn_of_fusion(self.name)
        return value

    @output.setter
    def output(self, value: Any) -> None:
        trace, site = self._site("output", sys._getframe(1))
        visit = trace._visit(site, "output")
        visit.result = replace(visit.result, value, f"{self.path}.output")

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`(args, kwargs)` of a call, the operands of an operator; assign to replace them."""
        trace, site = self._site("inputs", sys._getframe(1))
        visit = trace._visit(site, "input")
        return visit.args, visit.kwargs

    @inputs.setter
    def inputs(self, value: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        trace, site = self._site("inputs", sys._getframe(1))
        replace_inputs(trace._before(site), value, f"{self.path}.inputs")

    @inputs.deleter
    def inputs(self) -> None:
        """Nothing is cached, so there is nothing to forget: the next read asks the run again."""

    @property
    def input(self) -> Any:
        """The first argument; assigning it keeps all others."""
        trace, site = self._site("input", sys._getframe(1))
        visit = trace._visit(site, "input")
        if visit.args:
            return visit.args[0]
        if visit.kwargs:
            return next(iter(visit.kwargs.values()))
        raise IndexError(f"`{spell(self.path)}` is called with no arguments; see `inputs`.")

    @input.setter  # noqa: A003  # the field's word, also for modules
    def input(self, value: Any) -> None:
        trace, site = self._site("input", sys._getframe(1))
        if not replace_first(trace._before(site), value, f"{self.path}.input"):
            raise IndexError(
                f"`{spell(self.path)}` is called with no arguments; there is no `input` to replace."
            )

    def skip(self, value: Any) -> None:
        """Do not run the operation; `value` takes the place of what it would give."""
        trace, site = self._site("skip()", sys._getframe(1))
        trace._skip(site, value)

    @property
    def source(self) -> Source:
        """The operations of the function that this call runs; inside a trace only.

        Raises:
            SourceError: Nothing is inside: no call, a module (which has its own), built in, or compiled.
        """
        if self.kind != "call":
            raise SourceError(f"`{spell(self.path)}` is no call of a function, so nothing is inside of it.")
        trace, site = self._site("source", sys._getframe(1))
        frame = self._owner._frame(trace)
        inside = frame.only(self._named)
        if inside is None:
            trace._before(site)
            inside = frame.descend(self._named)
            trace._joined(inside.keys, site.key)
        return CalleeSource(self._owner._traces, inside)

    def __str__(self) -> str:
        text = self._owner._rewritten.text
        return f"{spell(self.path)}\n\n{listing.window(text.lines, text.line, self._named)}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The same listing, in a notebook."""
        return listing.html(str(self))

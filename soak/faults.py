"""Errors raised on every line of the library while a trace runs, as Ctrl-C or a lack of memory may be.

A trace function counts the lines of the library that a scenario executes, on both sides of the switch. The
scenario is then run once for each of them, with the error raised there; afterwards nothing may be left of it.
"""

import gc
import linecache
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import interlace as il
from interlace import ambient, switch
from interlace.run import Run
from interlace.tap import SLOT
from tests.models import sequential

LIBRARY = f"{Path(il.__file__).parent}/"
X = torch.ones(2, 3)


class Fault:
    """Raises an error at the n-th line of the library that is executed."""

    def __init__(self, at: int, error: type[BaseException]) -> None:
        self.at = at
        self.error = error
        self.count = 0
        self.where = ""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(LIBRARY) or code.co_name == "__del__":
            return None  # an error in a finalizer reaches nobody
        return self.line

    def line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and _may_fail(frame):
            self.count += 1
            if self.count == self.at:
                file = frame.f_code.co_filename.removeprefix(LIBRARY)
                self.where = f"{file}:{frame.f_lineno} ({frame.f_code.co_name})"
                sys.settrace(None)
                raise self.error
        return self.line


def _may_fail(frame: FrameType) -> bool:
    """Whether anything is done on a line; where a `try` only begins, Python raises nothing."""
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() != "try:"


def plain(model: il.Model) -> None:
    with model.trace(X):
        hidden = model[0].output
        model[1].input = hidden * 1
        model.output  # noqa: B018


def prompts(model: il.Model) -> None:
    with model.trace() as tracer:

        @tracer.invoke(X)  # type: ignore[untyped-decorator]
        def first() -> Any:
            model[0].output[:] *= 1
            return model[1].output

        @tracer.invoke(X)  # type: ignore[untyped-decorator]
        def second() -> Any:
            return model[2].output


def captured(model: il.Model) -> None:
    with model.trace() as tracer, tracer.invoke(X):
        model[0].output  # noqa: B018


def edited(model: il.Model) -> None:
    model.edit(lambda inner: inner[0].output)(X)


def loop(model: il.Model) -> None:
    with model.trace(X) as tracer:
        for _ in tracer.iter[:]:
            model[0].output  # noqa: B018


def stopped(model: il.Model) -> None:
    with model.trace(X) as tracer:
        model[0].output  # noqa: B018
        tracer.stop()


def failing(model: il.Model) -> None:
    try:
        with model.trace(X):
            model[0].output  # noqa: B018
            raise KeyError
    except KeyError:
        pass


def nested(model: il.Model) -> None:
    with model.trace(X):
        model[0].output  # noqa: B018
        with torch.no_grad(), model.trace(X):
            model[1].output  # noqa: B018
        model[1].output  # noqa: B018


def operations(model: il.Model) -> None:
    with model.trace(X):
        model.source.module_0.output  # noqa: B018


def quiet(model: il.Model) -> None:
    """A model that runs without gradients, as `generate` does, below a block that has them."""
    with model.trace(X, fn=torch.no_grad()(model._module)):
        model[0].output  # noqa: B018
        model[1].output = model[1].output * 2


def backward(model: il.Model) -> None:
    with model.trace(X):
        hidden = model[0].output
        loss = model.output.sum()
    with il.backward(loss):
        hidden.grad = hidden.grad * 2


def cached(model: il.Model) -> None:
    with model.trace() as tracer:
        tracer.cache()
        with tracer.invoke(X):
            model[0].output  # noqa: B018


def failing_prompt(model: il.Model) -> None:
    try:
        with model.trace() as tracer, tracer.invoke(X):
            model[0].output  # noqa: B018
            raise KeyError
    except KeyError:
        pass


SCENARIOS = (
    plain, prompts, captured, edited, loop, stopped, failing, nested, operations, quiet, backward, cached,
    failing_prompt,
)  # fmt: skip


@dataclass
class Findings:
    """How many faults were injected, and what was left behind by which."""

    injected: int = 0
    left: list[str] = field(default_factory=list)


def model_and_output() -> tuple[il.Model, torch.Tensor]:
    torch.manual_seed(0)
    net = sequential()
    return il.Model(net), net(X).detach()


def inject(
    scenario: Callable[[il.Model], None], error: type[BaseException], stride: int = 1, start: int = 1
) -> Findings:
    """Raise an error on every line of the library, or every `stride`-th, that a scenario comes past."""
    findings = Findings()
    gc.collect()
    gc.freeze()  # else each collection below walks all of torch
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scenario(model_and_output()[0])
            parked = len(switch.home().parked)
            for at in range(start, _lines(scenario) + 1, stride):
                model, wanted = model_and_output()
                fault = Fault(at, error)
                before = _run(scenario, model, fault)
                findings.injected += 1
                findings.left += [f"{scenario.__name__}: {fault.where}: {one}" for one in before]
                findings.left += [
                    f"{scenario.__name__}: {fault.where}: {one}" for one in left(model, wanted, parked)
                ]
    finally:
        gc.unfreeze()
    return findings


def _lines(scenario: Callable[[il.Model], None]) -> int:
    counting = Fault(-1, KeyboardInterrupt)
    _run(scenario, model_and_output()[0], counting)
    return counting.count


def _run(scenario: Callable[[il.Model], None], model: il.Model, fault: Fault) -> list[str]:
    """Run it, and tell when the error did not come out as it went in."""
    tracer = sys.gettrace()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        sys.settrace(fault)
        try:
            scenario(model)
        except fault.error:
            return []
        except BaseException as error:
            return [f"came out as {error!r}"]
        finally:
            sys.settrace(tracer)
    said = any(fault.error.__name__ in str(warning.message) for warning in told)
    return [] if said or not fault.where else ["was swallowed"]


def _left_in_torch() -> Iterator[str]:
    """What is left of the model's side in the state that torch keeps for a thread."""
    if not torch.is_grad_enabled():
        yield "another grad mode"
        torch.set_grad_enabled(True)
    if ambient.full(ambient.read())._replace(place=None) != ambient.full(ambient.GRAD):
        yield f"another state of torch: {ambient.read()}"
    if not torch._C._is_multithreading_enabled():
        yield "a backward without threads"
        torch._C._set_multithreading_enabled(True)


def left(model: il.Model, wanted: torch.Tensor, parked: int) -> Iterator[str]:
    """What is left of a run that ended in an error, beside what was parked before; is the next one right?"""
    home = switch.home()
    if any(type(one) is Run and not one.done for one in gc.get_objects()):
        yield "a run, left to the collector"
    if model.interleaving:
        yield "an open trace, left to the collector"
    gc.collect()
    if any(SLOT in module.__dict__ for module in model._module.modules()):
        yield "taps"
    if any("forward" in module.__dict__ for module in model._module.modules()):
        yield "a rewritten forward"
    if model.interleaving:
        yield "an open trace"
    if len(home.parked) > parked:
        yield "a parked stack"
        del home.parked[parked:]
    yield from _left_in_torch()
    try:
        with model.trace(X):
            hidden, out = model[0].output, model.output
    except BaseException as error:
        yield f"a model that fails: {error!r}"
    else:
        if not torch.equal(out, wanted) or not torch.equal(hidden, model[0]._module(X)):
            yield "wrong values"
    if any(SLOT in module.__dict__ for module in model._module.modules()):
        yield "taps of the next trace"

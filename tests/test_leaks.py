"""Law 10: after a trace, however it ended, reference counting alone frees the model and its tensors."""

import contextlib
import gc
import threading
import tracemalloc
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import interlace as il
from interlace.errors import InterlaceWarning, NotReachedError, OrderError, ThreadError
from interlace.run import Run
from interlace.switch import Switch
from interlace.tap import Taps
from interlace.trace import Trace
from interlace.tree import Tree

OURS = (Run, Switch, Trace, Taps, Tree)
X = torch.ones(1, 4)


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ArithmeticError("the model's own")


class Holds(nn.Module):
    """Keeps a resource while it waits, and gives it back in `finally`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.closed = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        try:
            return self.inner(x)  # type: ignore[no-any-return]
        finally:
            self.closed += 1


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive() -> list[object]:
    return [found for found in gc.get_objects() if type(found) in OURS]


def good(model: il.Model) -> None:
    with model.trace(X) as tracer:
        model[0].output[:] = 0
        model[1].output = model[1].output + 1
        model[2].input  # noqa: B018
    tracer.result  # noqa: B018


def nothing_asked(model: il.Model) -> None:
    with model.trace(X):
        pass


def user_error(model: il.Model) -> None:
    with contextlib.suppress(KeyError), model.trace(X):
        model[1].output  # noqa: B018
        raise KeyError


def before_start(model: il.Model) -> None:
    with contextlib.suppress(KeyError), model.trace(X):
        raise KeyError


def model_error(model: il.Model) -> None:
    model._module.add_module("1", Fails())
    with contextlib.suppress(ArithmeticError), model.trace(X):
        model[2].output  # noqa: B018


def model_error_at_exit(model: il.Model) -> None:
    model._module.add_module("1", Fails())
    with contextlib.suppress(ArithmeticError), model.trace(X):
        model[0].output  # noqa: B018


def model_error_caught(model: il.Model) -> None:
    model._module.add_module("1", Fails())
    with model.trace(X):
        with contextlib.suppress(ArithmeticError):
            model[2].output  # noqa: B018
        with contextlib.suppress(NotReachedError):
            model[2].output  # noqa: B018


def order_error(model: il.Model) -> None:
    with contextlib.suppress(OrderError), model.trace(X):
        model[1].output  # noqa: B018
        model[0].output  # noqa: B018


def stopped(model: il.Model) -> None:
    with model.trace(X) as tracer:
        model[0].output  # noqa: B018
        tracer.stop()


def step_loop(model: il.Model) -> None:
    with model.trace(X) as tracer:
        for _ in tracer.iter[:]:
            model[1].output  # noqa: B018


def step_loops(model: il.Model) -> None:
    with model.trace(X) as tracer:
        for _ in tracer.iter[:]:
            model[0].output  # noqa: B018
        for _ in tracer.iter[:]:
            model[2].output  # noqa: B018


def dropped_generator(model: il.Model) -> None:
    def parked() -> Iterator[torch.Tensor]:
        with model.trace(X):
            yield model[0].output
            yield model[1].output

    next(parked())


def never_left(model: il.Model) -> None:
    tracer = model.trace(X)
    tracer.__enter__()
    model[0].output  # noqa: B018


def never_entered(model: il.Model) -> None:
    model.trace(X)


def exit_stack(model: il.Model) -> None:
    stack = contextlib.ExitStack()
    stack.enter_context(model.trace(X))
    model[0].output  # noqa: B018


def nested(model: il.Model) -> None:
    with model.trace(X):
        outer = model[0].output
        with model.trace(X):
            model[1].input  # noqa: B018
            model(outer)


def input_and_block(model: il.Model) -> None:
    with model.trace(X) as tracer:
        tracer.invoke()(lambda: model[0].output)


def two_blocks(model: il.Model) -> None:
    with model.trace() as tracer:
        tracer.invoke(X)(lambda: model[0].output)
        tracer.invoke(X)(lambda: model[1].output)


def edited(model: il.Model) -> None:
    model.edit(lambda model: model[0].output)(X)


def edited_twice(model: il.Model) -> None:
    model.edit(lambda model: model[0].output).edit(lambda model: model[1].output)(X)


@pytest.mark.parametrize(
    "run",
    [
        input_and_block, two_blocks, edited, edited_twice,
        good, nothing_asked, user_error, before_start, model_error, model_error_at_exit, model_error_caught,
        order_error, stopped, step_loop, step_loops, dropped_generator, never_left, never_entered, exit_stack, nested,
    ],
    ids=lambda run: run.__name__,
)  # fmt: skip
def test_reference_counting_alone_frees_everything(run: Callable[[il.Model], None]) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    seen: list[weakref.ref[torch.Tensor]] = []
    net[0].register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    before = len(alive())
    module, model = weakref.ref(net), il.Model(net)
    run(model)
    assert all("_compiled_call_impl" not in part.__dict__ for part in net.modules())
    assert all(value() is None for value in seen)
    del net, model
    assert module() is None
    assert len(alive()) == before


@pytest.mark.parametrize("how", ["return", "break", "raise", "stop", "close", "drop"])
def test_leaving_a_block_in_any_way_runs_the_finally_blocks_of_the_model(how: str) -> None:
    """Fact 7: whatever ends the block, a paused forward is unwound at once."""
    net = Holds()
    model = il.Model(net)

    def block() -> Iterator[None]:
        for _ in range(1):
            with model.trace(X) as tracer:
                model.inner.input  # noqa: B018
                if how == "return":
                    return
                if how == "break":
                    break
                if how == "raise":
                    raise KeyError
                if how == "stop":
                    tracer.stop()
                    assert net.closed == 1
                yield

    running: Any = block()
    with contextlib.suppress(KeyError, StopIteration):
        next(running)
    if how == "close":
        running.close()
    del running
    assert net.closed == 1


def test_the_operations_of_a_finally_block_are_made_while_a_run_is_ended() -> None:
    """Fact 7: of a forward whose operations report as of any other."""
    net = Holds()
    model = il.Model(net)
    with model.trace(X) as tracer:
        model.source.self_inner_0.input  # noqa: B018
        tracer.stop()
    assert net.closed == 1


def test_a_trace_collected_on_another_thread_is_unwound_by_its_own() -> None:
    """Fact 7: no other thread switches to that stack; its own unwinds it when it next enters a trace."""
    net = Holds()
    model = il.Model(net)
    tracer = model.trace(X)
    tracer.__enter__()
    model.inner.input  # noqa: B018
    box = [tracer]
    del tracer

    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert net.closed == 0
    with model.trace(X):
        assert net.closed == 1
    assert net.closed == 2
    module = weakref.ref(net)
    del net, model
    assert module() is None


def test_leaving_a_trace_on_another_thread_is_an_error_that_leaves_nothing_behind() -> None:
    """Fact 7, for a block that ended well: the result cannot be had there, and the taps are gone."""
    net = Holds()
    model = il.Model(net)
    tracer = model.trace(X)
    tracer.__enter__()
    model.source.self_inner_0.input  # noqa: B018
    caught: list[BaseException] = []

    def leave() -> None:
        try:
            tracer.__exit__(None, None, None)
        except ThreadError as error:
            caught.append(error)

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert len(caught) == 1
    assert all("_compiled_call_impl" not in part.__dict__ for part in net.modules())
    assert "forward" not in net.__dict__
    with model.trace(X):
        assert net.closed == 1


def test_a_thread_that_ends_before_its_trace_is_told_of() -> None:
    """Fact 7: nobody can unwind that stack any more; the warning says what stays alive."""
    model = il.Model(Holds())
    left: list[Trace] = []

    def careless() -> None:
        tracer = model.trace(X)
        tracer.__enter__()
        model.inner.input  # noqa: B018
        left.append(tracer)

    thread = threading.Thread(target=careless)
    thread.start()
    thread.join()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        left.clear()
    assert [w.category for w in caught] == [InterlaceWarning]
    assert "outlived the thread" in str(caught[0].message)


def test_a_bare_except_in_the_model_cannot_hold_back_the_end() -> None:
    """Fact 7: while a run is ended every tap raises again; a forward that still finishes is reported."""

    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(4, 4) for _ in range(4)])
            self.reached: list[int] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for number, part in enumerate(self.parts):
                try:
                    x = part(x)
                    self.reached.append(number)
                except:  # noqa: E722
                    pass
            return x

    net = Stubborn()
    model, module = il.Model(net), weakref.ref(net)
    with pytest.warns(InterlaceWarning, match="bare `except:`"), model.trace(X) as tracer:  # noqa: PT031
        model.parts[1].input  # noqa: B018
        tracer.stop()
    assert net.reached == [0]
    del net, model, tracer
    assert module() is None


@pytest.mark.slow
def test_ten_thousand_traces_leave_no_growth() -> None:
    """Nothing grows with the history of the process: not memory, not objects, not workers."""
    model = il.Model(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

    def some(count: int) -> None:
        for turn in range(count):
            with contextlib.suppress(KeyError), model.trace(X) as tracer:
                model[0].output  # noqa: B018
                if turn % 10 == 0:
                    raise KeyError
                if turn % 10 == 1:
                    tracer.stop()

    some(100)
    objects = len(gc.get_objects())
    some(9_000)
    tracemalloc.start()
    some(100)
    first, _ = tracemalloc.get_traced_memory()
    some(900)
    second, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(gc.get_objects()) - objects < 50
    assert second - first < 10_000

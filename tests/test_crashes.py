"""What could kill the process: each runs in a process of its own, which must end well and say so."""

import subprocess
import sys
import textwrap

import pytest


def survives(script: str, *, timeout: float = 60) -> str:
    """Run a script on stdin; it must end with status 0 and print nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-"],
        input=textwrap.dedent(script),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert done.stderr == ""
    return done.stdout


FUZZ = """
import random, sys
import torch
from torch import nn
import interlace as il

torch.set_num_threads(1)
seed, rounds = {seed}, {rounds}
chance = random.Random(seed)

def deep(levels, then):
    # Native levels as well as Python ones: sorted() calls its key from C.
    if levels <= 0:
        return then()
    if levels % 3 == 0:
        return sorted([0], key=lambda _: kept.append(deep(levels - 1, then)) or 0) and kept.pop()
    return deep(levels - 1, then)

kept = []

class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last, self.quiet = nn.Linear(4, 4), nn.Linear(4, 4), nn.Identity()
        self.levels, self.fail = 0, None
    def forward(self, x):
        def inside():
            y = self.first(x)
            for _ in range(chance.randrange(2)):
                try:
                    torch.ones(2, 3) @ torch.ones(2, 3)
                except RuntimeError:
                    pass
                y = self.quiet(y)
            if self.fail == "matmul":
                y = y @ torch.ones(7, 7)
            if self.fail == "view":
                y = y.view(999)
            if self.fail == "linear":
                y = nn.functional.linear(y, torch.ones(3, 3))
            return self.last(y)
        return deep(self.levels, inside)

nets = [Fails() for _ in range(3)]
models = [il.Model(net) for net in nets]
x = torch.ones(1, 4)
errors = 0

def one(depth):
    global errors
    index = chance.randrange(3)
    net, model = nets[index], models[index]
    net.levels, net.fail = chance.randrange(40), chance.choice([None, "matmul", "view", "linear"])
    try:
        with model.trace(x):
            deep(chance.randrange(40), lambda: model.first)
            model.first.output
            if chance.random() < 0.3:
                deep(chance.randrange(30), lambda: torch.randn(3))
            if chance.random() < 0.2:
                raise KeyError
            if chance.random() < 0.4 and depth < 3:
                deep(chance.randrange(60), lambda: one(depth + 1))
            if chance.random() < 0.3:
                try:
                    torch.ones(2, 3) @ torch.ones(2, 3)
                except RuntimeError:
                    pass
            if chance.random() < 0.7:
                model.last.output
    except (RuntimeError, KeyError):
        errors += 1

def parked(levels):
    with models[0].trace(x):
        yield models[0].first.output
        yield models[0].last.output

waiting = []
for turn in range(rounds):
    deep(chance.randrange(80), lambda: one(0))
    nets[0].levels, nets[0].fail = chance.randrange(40), None
    if chance.random() < 0.2:
        waiting.append(parked(0))
        deep(chance.randrange(40), lambda: next(waiting[-1]))
    if waiting and chance.random() < 0.2:
        go = waiting.pop(chance.randrange(len(waiting)))
        try:
            deep(chance.randrange(40), lambda: next(go))
        except RuntimeError:
            errors += 1
        del go
waiting.clear()
assert errors > rounds // 10, errors
print("survived", seed)
"""


@pytest.mark.parametrize("seed", range(2))
def test_an_error_of_torch_at_any_stack_depth_on_both_sides_reaches_the_block(seed: int) -> None:
    """Fact 2: torch walks the native stack at each C++ error, and must not walk past the model's."""
    assert survives(FUZZ.format(seed=seed, rounds=120)) == f"survived {seed}\n"


OPERATOR = """
import contextlib
import torch
from torch import nn
import interlace as il
from interlace import switch
from interlace.errors import TraceError

inner = nn.Linear(2, 2)

@torch.library.custom_op("crash::call", mutates_args=())
def call(x: torch.Tensor) -> torch.Tensor:
    return inner(x).clone()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = inner, nn.Linear(2, 2)
    def forward(self, x):
        return self.last(torch.ops.crash.call(x))

model, other = il.Model(Net()), il.Model(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
x = torch.ones(1, 2)

def parked():
    with torch.no_grad(), model.trace(x):
        model.inner.output
        yield
        model.last.output
        yield
"""


def test_a_trace_that_pauses_inside_a_custom_operator_goes_on() -> None:
    """Fact 12: last in, first out is allowed, also with a whole trace of another model in between."""
    survives(
        OPERATOR
        + """
with torch.no_grad(), model.trace(x):
    a = model.inner.output
    with other.trace(x):
        b = other[0].output
    c = model.last.output
def plain():
    with other.trace(x):
        yield other[0].output
held = plain()
next(held)                    # parked below
one = parked()
next(one); next(one)
held.close(); one.close()
"""
    )


def test_resuming_out_of_order_inside_a_custom_operator_is_refused() -> None:
    """Fact 12: pybind11 would abort the process; the trace that cannot go on says so, and ends later."""
    survives(
        OPERATOR
        + """
one, two = parked(), parked()
next(one)
next(two)
try:
    next(one)
except TraceError as error:
    assert "custom torch operator" in str(error), error
else:
    raise SystemExit("it went on")
next(two)
two.close()
with model.trace(x):          # the refused one is unwound when it is its turn
    model.last.output
import gc
assert not switch._homes.home.abandoned and not switch._homes.home.parked
"""
    )


def test_a_run_that_could_not_be_ended_is_ended_when_it_can_be() -> None:
    """Fact 12: by whoever comes first, be it the block that stopped it; one that could not finish is where it was."""
    survives(
        OPERATOR
        + """
for how in ("stop", "result"):
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        tracer = stack.enter_context(model.trace(x))
        model.inner.output
        with other.trace(x):
            other[0].output
            try:
                tracer.stop() if how == "stop" else tracer.result
            except TraceError as error:
                assert how == "result" and "custom torch operator" in str(error), error
                assert torch.equal(model.inner.output, inner(x))
assert tracer.result is not None
assert not switch._homes.home.abandoned and not switch._homes.home.parked
"""
    )


def test_a_request_inside_an_operator_for_what_is_inside_another_is_refused() -> None:
    """Fact 12: the block's operator would return before the model's does. The run is ended while it can be."""
    out = survives(
        OPERATOR
        + """
ask = []
@torch.library.custom_op("crash::block", mutates_args=())
def block(x: torch.Tensor) -> torch.Tensor:
    return ask[0]().clone()

for once in range(3):
    ask[:] = [lambda: model.inner.output]
    try:
        with torch.no_grad(), model.trace(x):
            torch.ops.crash.block(x)
    except TraceError as error:
        assert "inside a torch operator written in Python, and was asked for inside another" in str(error), error
    else:
        raise SystemExit("it went on")
    ask[:] = [lambda: other[0].output]
    with torch.no_grad(), other.trace(x):
        seen = torch.ops.crash.block(x)       # the model is in no operator
        other[0].output[:] = 0
    assert torch.equal(seen, other._module[0](x))
    ask[:] = [lambda: model.last.output]
    with torch.no_grad(), model.trace(x):
        seen = torch.ops.crash.block(x)       # it has left its own
    assert torch.equal(seen, model(x))
try:
    with torch.no_grad(), other.trace() as tracer:
        @tracer.invoke(x)
        def first():
            ask[:] = [lambda: other[0].output]
            torch.ops.crash.block(x)
except TraceError as error:
    assert "in one block of several" in str(error), error
else:
    raise SystemExit("it went on")
for wait in (lambda tracer, barrier: barrier(), lambda tracer, barrier: tracer.result):
    ended = []
    try:
        with torch.no_grad(), other.trace() as tracer:
            barrier = tracer.barrier(2)
            @tracer.invoke(x)
            def first():
                ask[:] = [lambda: wait(tracer, barrier) or x]
                try:
                    torch.ops.crash.block(x)
                finally:
                    ended.append(True)
            @tracer.invoke(x)
            def second():
                other[0].output
    except TraceError as error:
        assert "A block beside others cannot wait inside a torch operator" in str(error), error
    else:
        raise SystemExit("it went on")
    assert ended
print("alive")
"""
    )
    assert out == "alive\n"


def test_threads_that_end_with_idle_and_with_open_traces() -> None:
    """Fact 7: a thread may end with workers that wait, and with traces that nobody left."""
    out = survives(
        """
import threading, warnings
import torch
from torch import nn
import interlace as il

warnings.simplefilter("always")
caught = []
warnings.showwarning = lambda message, *rest: caught.append(str(message))
model = il.Model(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
x = torch.ones(1, 2)

def good():
    for _ in range(5):
        with model.trace(x):
            model[0].output
for _ in range(40):
    thread = threading.Thread(target=good)
    thread.start()
    thread.join()

left = []
def careless():
    trace = model.trace(x)
    trace.__enter__()
    model[0].output
    left.append(trace)
thread = threading.Thread(target=careless)
thread.start()
thread.join()
left.clear()
assert any("outlived the thread" in message for message in caught), caught
with model.trace(x):
    model[0].output
print("alive")
"""
    )
    assert out == "alive\n"


def test_the_interpreter_ends_quietly_in_the_middle_of_traces() -> None:
    """A trace that is open when the interpreter ends, by falling off the end or by an error, does no harm."""
    survives(
        """
import torch
from torch import nn
import interlace as il
model = il.Model(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
def held():
    with model.trace(torch.ones(1, 2)):
        yield model[0].output
generator = held()
next(generator)
trace = model.trace(torch.ones(1, 2))
trace.__enter__()
model[0].output
"""
    )


@pytest.mark.parametrize("how", ["left open", "freed in the order of opening"])
def test_the_interpreter_ends_quietly_after_backwards_that_paused_together(how: str) -> None:
    """The engine of torch keeps the innermost of a thread; a thread that ends with a stale one crashes."""
    survives(
        """
import torch
from torch import nn
import interlace as il
net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
loss = net(torch.ones(1, 2)).sum()
def paused():
    with il.backward(loss, retain_graph=True):
        yield net[0].weight.grad
outer, inner = paused(), paused()
next(outer), next(inner)
"""
        + ("del outer, inner\nassert torch._C._current_graph_task_id() == -1\n" if how != "left open" else "")
    )


def test_a_worker_that_was_made_far_from_here_is_replaced() -> None:
    """Fact 1: a kept stack whose base lies far above costs a long copy at each switch."""
    survives(
        """
import sys
import torch
from torch import nn
import interlace as il
from interlace import switch
sys.setrecursionlimit(5_000)
model = il.Model(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
x = torch.ones(1, 2)
def once():
    with model.trace(x):
        model[0].output
def deep(levels):
    return sorted([0], key=lambda _: deep(levels - 1) or 0) if levels else once()
once()
shallow = switch._homes.home.idle[-1]
deep(300)
assert shallow not in switch._homes.home.idle
for levels in range(0, 200, 7):
    deep(levels)
assert len(switch._homes.home.idle) <= switch.KEPT
"""
    )

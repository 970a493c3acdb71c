"""Models that stretch what can be seen: each is right, or says what cannot be had and what to write."""

# ruff: noqa: PT012

import copy
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn

import interlace as il
from interlace.errors import NotReachedError, TraceError
from interlace.tap import SLOT

X = torch.ones(2, 3)


class Net(nn.Module):
    """Three layers; `middle` makes the call of the second one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)

    def middle(self, x: Tensor) -> Tensor:
        return self.b(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.middle(self.a(x)).relu())  # type: ignore[no-any-return]


class Inner(nn.Module):
    """A part with parts of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.q(self.p(x).relu())  # type: ignore[no-any-return]


def clean(net: nn.Module) -> bool:
    return all(SLOT not in module.__dict__ for module in net.modules())


def zeroed_middle(net: Any) -> None:
    """Writes the middle and sees that the end follows."""
    model = il.Model(net)
    expected = net(X)
    with model.trace(X):
        first = model.a.output
        out = model.c.output
    assert torch.equal(out, expected)
    assert torch.equal(first, net.a(X))
    with model.trace(X):
        model.b.output = torch.zeros(2, 3)
        out = model.c.output
    assert torch.equal(out, net.c(torch.zeros(2, 3)))


# -- calls that nobody sees --------------------------------------------------------------------------------


def test_forward_called_by_hand_is_said_not_to_be_seen() -> None:
    class ByHand(Net):
        def middle(self, x: Tensor) -> Tensor:
            return self.b.forward(x)

    net = ByHand()
    model = il.Model(net)
    with (
        pytest.raises(
            NotReachedError, match=r"`model.b.output` was not reached(.|\n)*`module.forward\(...\)`"
        ),
        model.trace(X),
    ):
        model.b.output  # noqa: B018
    with model.trace(X):
        out = model.c.output
    assert torch.equal(out, net(X))
    assert clean(net)


def test_a_module_replaced_during_the_run_is_told_and_the_next_trace_sees_the_new_one() -> None:
    class Replaces(Net):
        def middle(self, x: Tensor) -> Tensor:
            if self.replace:
                self.b = nn.Linear(3, 3)
            return self.b(x)  # type: ignore[no-any-return]

    net: Any = Replaces()
    net.replace = True
    model = il.Model(net)
    with pytest.raises(NotReachedError, match=r"put another module at `model.b`.*next trace"), model.trace(X):
        model.a.output  # noqa: B018
        model.b.output  # noqa: B018
    net.replace = False
    with model.trace(X):
        hidden = model.b.output
    assert torch.equal(hidden, net.b(net.a(X)))
    assert clean(net)


def test_calls_in_threads_of_the_model_are_plain_calls() -> None:
    class InThreads(Net):
        def middle(self, x: Tensor) -> Tensor:
            found: list[Tensor] = []
            running = [threading.Thread(target=lambda: found.append(self.b(x))) for _ in range(4)]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
            return found[0]

    net = InThreads()
    model = il.Model(net)
    with model.trace(X):
        model.a.output = torch.zeros(2, 3)
        out = model.c.output
    assert torch.equal(out, net.c(net.b(torch.zeros(2, 3)).relu()))
    with pytest.raises(NotReachedError, match="calls in other threads"), model.trace(X):
        model.b.output  # noqa: B018
    assert clean(net)


def test_copies_made_in_the_forward_are_modules_of_their_own() -> None:
    class Copies(nn.Module):
        def __init__(self, how: Any) -> None:
            super().__init__()
            self.net, self.how = Net(), how

        def forward(self, x: Tensor) -> Tensor:
            made = self.how(self.net)
            made._modules = dict(made._modules)
            made.a = nn.Identity()
            return made(x)  # type: ignore[no-any-return]

    for how in (copy.deepcopy, copy.copy):
        net = Copies(how)
        model = il.Model(net)
        with model.trace(X):
            out = model.output
        assert torch.equal(out, net(X))


# -- shared weights ------------------------------------------------------------------------------------------


def test_tied_weights_keep_one_gradient() -> None:
    net = Net()
    net.c.weight = net.a.weight
    model = il.Model(net)
    with model.trace(X):
        model.b.output = model.b.output * 2
        out = model.output
    out.sum().backward()  # type: ignore[no-untyped-call]
    traced = net.a.weight.grad
    assert traced is not None
    net.zero_grad()
    net.c((net.b(net.a(X)) * 2).relu()).sum().backward()
    assert torch.equal(traced, net.a.weight.grad)  # type: ignore[arg-type]


# -- compiled and scripted parts -----------------------------------------------------------------------------


def compiled(module: nn.Module, graphs: list[int]) -> Any:
    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    return torch.compile(module, backend=backend)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at it, traced or not
def test_a_compiled_part_is_read_and_written_as_one_and_stays_compiled() -> None:
    graphs: list[int] = []
    net: Any = Net()
    net.b = compiled(Inner(), graphs)
    zeroed_middle(net)
    for _ in range(3):
        net(X)
    assert len(set(graphs)) == 1  # no tap has ended a graph
    assert len(graphs) <= 2
    assert clean(net)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at it, traced or not
def test_what_is_inside_a_compiled_part_is_said_not_to_run() -> None:
    net: Any = Net()
    net.b = compiled(Inner(), [])
    model = il.Model(net)
    with (
        pytest.raises(NotReachedError, match=r"`model.b` is compiled by torch.compile(.|\n)*_orig_mod.trace"),
        model.trace(X),
    ):
        model.b._orig_mod.p.output  # noqa: B018
    with model.b._orig_mod.trace(X):
        hidden = model.b._orig_mod.p.output
    assert torch.equal(hidden, net.b._orig_mod.p(X))


def test_a_module_of_a_name_like_the_compilers_is_not_said_to_be_compiled() -> None:
    net: Any = nn.Sequential(Inner())
    net[0].__class__ = type("Unused", (Inner,), {"__module__": "my_dynamo_net", "forward": lambda _, x: x})
    with (
        pytest.raises(NotReachedError, match="Not seen are a branch not taken"),
        il.Model(net).trace(X) as tracer,
    ):
        tracer.model[0].p.output  # noqa: B018


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at it, traced or not
def test_a_model_compiled_as_a_whole_or_in_place() -> None:
    net = Net()
    whole = il.Model(compiled(net, []))
    with whole.trace(X):
        out = whole.output
    assert torch.equal(out, net(X))
    with pytest.raises(NotReachedError, match=r"`model` is compiled by torch\.compile"), whole.trace(X):
        whole._orig_mod.a.output  # noqa: B018
    net = Net()
    net.b = Inner()  # type: ignore[assignment]
    net.b.compile(backend="eager")
    zeroed_middle(net)
    model = il.Model(net)
    with pytest.raises(NotReachedError, match=r"`model.b.compile\(\)` has been called"), model.trace(X):
        model.b.p.output  # noqa: B018


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at it, traced or not
def test_a_compiled_call_in_a_block_counts_no_visit_and_is_compiled_no_more_often_for_it() -> None:
    """Law 9: it is nobody's run, wherever the run of the trace is."""
    graphs: list[int] = []
    net = Net()
    model, quick = il.Model(net), compiled(net, graphs)
    for _ in range(2):
        with model.trace(X):
            assert torch.equal(quick(X), net(X))
            for part in (model.a, model.b, model.c):
                part.output  # noqa: B018
                assert torch.equal(quick(X), net(X))
            assert torch.equal(model.output, net(X))
    assert len(graphs) <= 2  # before the model's side has begun, and after


@pytest.mark.parametrize(
    "make",
    [torch.jit.script, lambda net: torch.jit.trace(net, X)],  # type: ignore[no-untyped-call]
)
def test_a_scripted_part_is_read_and_written_as_one(make: Any) -> None:
    net: Any = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have it exported
        warnings.simplefilter("ignore", FutureWarning)
        net.b = make(Inner())
    zeroed_middle(net)
    model = il.Model(net)
    assert "p" in repr(model)
    with (
        pytest.raises(NotReachedError, match=r"`model.b` is scripted or traced by torch.jit"),
        model.trace(X),
    ):
        model.b.p.output  # noqa: B018


# -- other libraries -----------------------------------------------------------------------------------------


def test_weights_that_accelerate_offloads() -> None:
    net = Net()
    expected = net(X)
    cpu_offload(net, execution_device=torch.device("cpu"))
    assert net.a.weight.is_meta
    model = il.Model(net)
    with model.trace(X):
        out = model.c.output
    assert torch.equal(out, expected)
    zeroed_middle(net)
    with model.trace(X):
        inside = model.a.output
        model.b.skip(inside)
        out = model.output
    assert torch.equal(out, net.c(inside.relu()))


def test_weights_that_accelerate_keeps_on_disk(tmp_path: Path) -> None:
    net: Any = Net()
    expected = net(X)
    places = {"a": "cpu", "b": "disk", "c": "cpu"}
    net = dispatch_model(net, places, offload_dir=str(tmp_path), main_device="cpu", force_hooks=True)
    zeroed_middle(net)
    model = il.Model(net)
    with model.trace(X):
        out = model.output
    assert torch.equal(out, expected)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("port", ["pre_forward", "post_forward"])
def test_errors_in_hooks_of_other_libraries_come_out_as_they_are(error: Any, port: str) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error("the hook's")

    hook = ModelHook()
    setattr(hook, port, fail)
    net = Net()
    add_hook_to_module(net.b, hook)
    model = il.Model(net)
    seen: list[Tensor] = []

    def block() -> None:
        with model.trace(X):
            seen.append(model.a.output)
            model.c.output  # noqa: B018

    with pytest.raises(error, match="the hook's"):
        block()
    assert len(seen) == 1
    with pytest.raises(error, match="the hook's"), model.trace(X):
        pass
    assert clean(net)


def test_data_parallel_on_one_device_runs_and_on_several_is_refused() -> None:
    net = nn.DataParallel(Net())  # on the CPU it has no devices, else it takes all that there are
    place = torch.device("cuda" if net.device_ids else "cpu")
    net.to(place)
    model = il.Model(net)
    with model.trace(X):
        hidden = model.module.b.output
    assert torch.equal(hidden, net.module.b(net.module.a(X.to(place))))
    net.device_ids = [0, 1]
    model = il.Model(net)
    with pytest.raises(TraceError, match=r"nn\.DataParallel runs copies"), model.trace(X):
        pass

"""S-90, fact 13: a recomputed region repeats what a block changed in it, or the backward is refused."""

import gc
import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import interlace as il
from interlace.errors import TraceError
from tests import tiny


class Net(nn.Module):
    """A region with dropout and a block that is called twice, checkpointed or not, perhaps one in another."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.drop = nn.Dropout(0.3)

    def twice(self, x: Tensor) -> Tensor:
        return torch.tanh(self.b(torch.tanh(self.b(x))))

    def part(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x)) * 1  # so that torch allows an edit in place
        y = checkpoint(self.twice, x, use_reentrant=False) if self.mode == "nested" else self.twice(x)
        return self.drop(y) + x  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        if self.mode == "none":
            x = self.part(x)
        else:
            x = checkpoint(self.part, x, use_reentrant=self.mode == "reentrant")
        return self.c(x**2)  # type: ignore[no-any-return]


def replaced(model: il.Model) -> None:
    model.a.output = model.a.output * 2 + 1


def edited(model: il.Model) -> None:
    model.a.output[:, 0] = 3


def shared(model: il.Model) -> None:
    model.b.input[:, 1] = 0.5  # the model adds the same tensor later


def given(model: il.Model) -> None:
    model.b.input = model.b.input * 0.5


def skipped(model: il.Model) -> None:
    model.a.skip(model.a.input * 3)


def second(model: il.Model) -> None:
    tracer = model._tree.trace_at(sys._getframe(1))
    assert tracer is not None
    for step in tracer.iter[:2]:
        hidden = model.b.output
        if step == 1:
            model.b.output = hidden * 3


def noise(model: il.Model) -> None:
    model.a.output = model.a.output + torch.randn(2, 3)


def drawn(model: il.Model) -> None:
    model.a.output  # noqa: B018
    torch.randn(3)


def steered(model: il.Model) -> None:
    model.a.output = torch.ones(2, 3, requires_grad=True) * 0.3


CHANGES = [replaced, edited, shared, given, skipped, second, noise, drawn, steered]


def gradients(mode: str, change: Callable[[il.Model], None], where: str) -> list[Tensor | None]:
    torch.manual_seed(0)
    net = Net(mode)
    x = torch.randn(2, 3, requires_grad=True)
    model = il.Model(net)
    with model.trace(x):
        change(model)
        loss = model.output.sum()
        if where == "inside":
            loss.backward()  # type: ignore[no-untyped-call]
    if where == "after":
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        for tensor in (x, *net.parameters()):
            tensor.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
    if where == "paused":
        with il.backward(loss):
            pass
    assert all("_compiled_call_impl" not in part.__dict__ for part in net.modules())
    return [x.grad, *(p.grad for p in net.parameters())]


def same(ours: list[Tensor | None], theirs: list[Tensor | None]) -> bool:
    return all(
        a is b or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("where", ["inside", "after", "paused"])
@pytest.mark.parametrize("mode", ["region", "nested"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_recomputed_region_repeats_what_was_changed(change: Any, mode: str, where: str) -> None:
    """Fact 13, law 2: bit for bit what the model without checkpoints gives, dropout included."""
    if change is shared and mode == "nested":
        mode = "region"  # torch itself forbids to edit what a checkpoint was given
    assert same(gradients(mode, change, where), gradients("none", change, where))


@pytest.mark.parametrize("where", ["inside", "after", "paused"])
def test_a_region_that_only_was_read_is_recomputed_as_ever(where: str) -> None:
    """Fact 13: no visit is counted, nothing is refused, with `use_reentrant=True` either."""

    def reads(model: il.Model) -> None:
        model.b.input  # noqa: B018

    for mode in ("region", "nested", "reentrant"):
        assert same(gradients(mode, reads, where), gradients("none", reads, where))


@pytest.mark.parametrize("where", ["inside", "after", "paused"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_cannot_be_repeated_refuses_the_backward(change: Any, where: str) -> None:
    """Fact 13: the first forward of a reentrant region has no graph that a change could be part of."""
    with pytest.raises(TraceError, match=r"cannot repeat it\.\nCheckpoint with `use_reentrant=False`"):
        gradients("reentrant", change, where)


def test_inference_mode_inside_of_a_reentrant_region_is_no_reason_to_let_it_pass() -> None:
    """It says nothing of what is around it: here a region that runs again, with what had been replaced."""

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen, self.head = nn.Tanh(), nn.Linear(2, 1)

        def part(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                hidden = self.frozen(x.detach())
            out: torch.Tensor = self.head(hidden.clone())
            return out

        def forward(self, x: torch.Tensor) -> Any:
            return checkpoint(self.part, x, use_reentrant=True)

    model = il.Model(Frozen())
    with model.trace(torch.ones(1, 2, requires_grad=True)) as tracer:
        model.frozen.output = torch.zeros(1, 2)
    with pytest.raises(TraceError, match="cannot repeat it"):
        tracer.result.sum().backward()


@pytest.mark.parametrize("where", ["inside", "after", "paused"])
def test_changes_at_operations_refuse_the_backward(where: str) -> None:
    """Fact 13: an operation (`.source`) is not called again by the recomputation; one that is read is harmless."""

    def reads(model: il.Model) -> None:
        model.a.source.F_linear_0.output  # noqa: B018

    def changes(model: il.Model) -> None:
        model.a.source.F_linear_0.output = model.a.source.F_linear_0.output * 2

    def edits(model: il.Model) -> None:
        model.a.source.F_linear_0.output[:, 0] = 3

    for mode in ("region", "nested", "reentrant"):
        assert same(gradients(mode, reads, where), gradients("none", reads, where))
        told = "use_reentrant=False" if mode == "reentrant" else r"made at an operation \(`\.source`\)"
        for change in (changes, edits):
            with pytest.raises(TraceError, match=rf"cannot repeat it\.\n.*{told}"):
                gradients(mode, change, where)


class Varied(nn.Module):
    """A region that calls one of two modules, or one that saves nothing for the backward, as often as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shift = nn.Linear(3, 3), nn.Linear(3, 3), nn.Identity()
        self.first, self.times = True, 2

    def region(self, x: Tensor) -> Tensor:
        x = (self.a if self.first else self.b)(x)
        for _ in range(self.times):
            x = self.shift(x)
        return torch.tanh(x)

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.region, x, use_reentrant=False).sum()  # type: ignore[no-any-return]


def test_a_module_that_is_not_called_again_refuses_the_backward() -> None:
    """Fact 13: another module of the same shapes in its place, which torch does not notice."""
    net = Varied()
    model, x = il.Model(net), torch.randn(2, 3, requires_grad=True)
    for changed in (False, True):
        net.first = True
        with model.trace(x):
            if changed:
                model.a.output = model.a.output * 2
            loss: Any = model.output
        net.first = False
        if changed:
            with pytest.raises(TraceError, match=r"cannot repeat it\.\nA module of it was not called again"):
                loss.backward()
        else:
            loss.backward()


@pytest.mark.parametrize(("steps", "again"), [((0,), 2), ((1,), 2), ((0, 1), 2), ((0, 1), 1)], ids=str)
def test_calls_that_cannot_be_told_apart_refuse_the_backward(steps: tuple[int, ...], again: int) -> None:
    """Fact 13: nothing was saved between two calls of a module; the recomputation makes both of them, or one."""
    net = Varied()
    model, x = il.Model(net), torch.randn(2, 3, requires_grad=True)
    with model.trace(x) as tracer:
        for step in tracer.iter[:2]:
            hidden = model.shift.output
            if step in steps:
                model.shift.output = hidden * (step + 2)
        loss: Any = model.output
    net.times = again
    with pytest.raises(TraceError, match=r"cannot repeat it\.\nIt calls one module several times"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch, of a region in a region
def test_stored_edits_invokes_and_regions_in_regions_refuse_it_too() -> None:
    """Fact 13: whoever changes a reentrant region, and however deep; without gradients nothing is refused."""
    x = torch.randn(2, 3, requires_grad=True)
    net = Net("reentrant")
    model = il.Model(net)
    with model.trace() as tracer:
        with tracer.invoke(x[:1]):
            model.b.output  # noqa: B018
        with tracer.invoke(x[1:]):
            model.b.output[:] = 1
            loss: Any = model.output.sum()
    with pytest.raises(TraceError, match="cannot repeat it"):
        loss.backward()
    inner = nn.Sequential(net.b, nn.Tanh())
    net.__dict__["twice"] = lambda y: checkpoint(inner, y, use_reentrant=True)
    stored = model.edit(lambda model: setattr(model.b, "output", model.b.output * 2))
    with stored.trace(x):
        loss = stored.output.sum()
    with pytest.raises(TraceError, match="cannot repeat it"):
        loss.backward()
    with torch.no_grad(), stored.trace(x):
        assert stored.output is not None


def test_edits_of_what_the_model_has_left_are_refused() -> None:
    """Fact 13."""

    def late(model: il.Model) -> None:
        early = model.b.input
        model.drop.input  # noqa: B018
        early[:] = 0

    with pytest.raises(TraceError, match="edited in place after the model had gone on"):
        gradients("region", late, "after")


def test_no_visit_is_counted_and_rows_and_stored_edits_are_repeated() -> None:
    """Fact 13, law 3: under invokes, beside a stored edit; the run's counts stay what the forward made them."""
    found = {}
    for mode in ("none", "region"):
        torch.manual_seed(0)
        net = Net(mode).eval()
        x = torch.randn(2, 3, requires_grad=True)
        model = il.Model(net).edit(lambda model: setattr(model.a, "output", model.a.output * 2))
        with model.trace() as tracer:
            with tracer.invoke(x[:1]):
                model.b.output = model.b.output * 5
                one = model.output.sum()
            with tracer.invoke(x[1:]):
                model.b.output[:] = 1
                two = model.output.sum()
                with il.backward(two, retain_graph=True):
                    counts = dict(tracer._model_run.starts)
                same_counts = counts == dict(tracer._model_run.starts)
        assert same_counts
        with il.backward(one):
            pass
        found[mode] = [x.grad, *(p.grad for p in net.parameters())]
    assert same(found["region"], found["none"])


def test_nothing_outlives_the_graph() -> None:
    """Law 10: what is kept for the recomputation goes with the graph."""
    gc.collect()
    gc.disable()
    try:
        net = Net("region")
        model, module = il.Model(net), weakref.ref(net)
        with model.trace(torch.randn(2, 3)):
            replaced(model)
            loss = model.output.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        del model, net, loss
        assert module() is None
    finally:
        gc.enable()


@pytest.mark.language
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gradient_checkpointing_of_transformers(name: str) -> None:
    """Fact 13: `gradient_checkpointing_enable`, in training mode."""
    found = {}
    for mode in ("none", "region", "reentrant"):
        module = tiny.ready(name).train()
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        if mode != "none":
            settings = {"use_reentrant": mode == "reentrant"}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # another name from transformers 5 on
                module.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
        model = il.Model(module)
        block = model.get(tiny.BLOCKS[name])[1]
        with model.trace(input_ids=torch.arange(6).reshape(1, 6), use_cache=False):
            block.mlp.output[:, -1] = 0.5
            loss = model.output.logits.square().sum()
            if mode == "reentrant":
                with pytest.raises(TraceError, match="use_reentrant': False"):
                    loss.backward(retain_graph=True)
        if mode == "reentrant":
            with (
                pytest.raises(TraceError, match="use_reentrant': False"),
                il.backward(loss, retain_graph=True),
            ):
                pass
            with pytest.raises(TraceError, match="use_reentrant': False"):
                loss.backward()
        else:
            loss.backward()
            found[mode] = [p.grad for p in module.parameters()]
    assert same(found["region"], found["none"])


class Recomputes(torch.autograd.Function):
    """A checkpoint of one's own, in the newer style: its forward has no context."""

    @staticmethod
    def forward(x: Tensor, call: Any, *parameters: Tensor) -> Any:
        return call(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.call, ctx.parameters = inputs[1], inputs[2:]

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.call(x)
        found = torch.autograd.grad(y, (x, *ctx.parameters), gradient)
        return found[0], None, *found[1:]


class Older(Recomputes):
    """The same with a context in the forward, under another name."""

    @staticmethod
    def forward(context: Any, x: Tensor, call: Any, *parameters: Tensor) -> Any:  # type: ignore[override]
        Recomputes.setup_context(context, (x, call, *parameters), None)
        return call(x)

    setup_context = torch.autograd.Function.setup_context


class Wrapped(Older):
    """Its context is out of sight."""

    @staticmethod
    def forward(*args: Any) -> Any:
        return Older.forward(*args)


class Regions(nn.Module):
    """Two regions in a row, each recomputed by a function; one of them perhaps inside of another."""

    def __init__(self, function: Any, nested: bool) -> None:
        super().__init__()
        self.function, self.nested = function, nested
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def region(self, module: nn.Module, x: Tensor) -> Tensor:
        def inner(x: Tensor) -> Any:
            return torch.tanh(module(x))

        def outer(x: Tensor) -> Any:
            return self.function.apply(x, inner, *module.parameters())

        return self.function.apply(x, outer if self.nested else inner, *module.parameters())  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.region(self.b, self.region(self.a, x))


@pytest.mark.parametrize("function", [Recomputes, Older, Wrapped])
def test_functions_of_other_runs_are_not_refused(function: Any) -> None:
    """Fact 13: neither one that ran before a change, nor one that ran after it."""
    net = Regions(function, nested=False)
    model, x = il.Model(net), torch.randn(2, 3)
    before = net(x).sum()
    with model.trace(x):
        model.a.output = model.a.output * 2
        changed = model.output.sum()
    after = net(x).sum()
    for loss in (before, after):
        loss.backward()
    with pytest.raises(TraceError, match="cannot repeat it"):
        changed.backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("function", [Recomputes, Older, Wrapped])
@pytest.mark.parametrize("name", ["a", "b"])
def test_functions_that_may_recompute_refuse_the_backward(name: str, function: Any, nested: bool) -> None:
    """Fact 13: whatever its style; only the function that was changed, and only if something was changed."""
    net = Regions(function, nested)
    model, x = il.Model(net), torch.randn(2, 3)
    for changed in (False, True):
        with model.trace(x):
            middle = model.a.output if name == "b" else None
            hidden = model.get(name).output
            if changed:
                model.get(name).output = hidden * 2
            loss = model.output.sum()
        assert middle is None or not middle.requires_grad
        if not changed:
            loss.backward()  # type: ignore[no-untyped-call]
            assert all(part.grad is not None for part in net.parameters())
            continue
        for _ in range(2):
            with pytest.raises(TraceError, match="cannot repeat it"):
                loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        with pytest.raises(TraceError, match="cannot repeat it"):
            torch.autograd.grad(loss, next(iter(net.parameters())), retain_graph=True)
        with pytest.raises(TraceError, match="cannot repeat it"), il.backward(loss):
            pass
    with torch.no_grad(), model.trace(x):
        model.a.output = model.a.output * 2
        model.output  # noqa: B018

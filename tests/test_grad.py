"""S-90: gradients, in a block and after it; `il.backward`; laws 2, 3, 9 and 10 for them."""

import contextlib
import gc
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import interlace as il
from interlace.errors import (
    InputError,
    NotReachedError,
    OrderError,
    OutsideTraceError,
    TraceError,
    WriteError,
)
from tests.models import Experts, Looped, Tied, Transformer, ids, sequential

Hidden = list[Tensor]


def transformer() -> tuple[il.Model, Tensor, Callable[[il.Model], Hidden], list[nn.Module]]:
    net = Transformer(3)

    def read(model: il.Model) -> Hidden:
        return [model.h[n].output[0] for n in range(3)]

    return il.Model(net), ids(), read, list(net.h)


def chain() -> tuple[il.Model, Tensor, Callable[[il.Model], Hidden], list[nn.Module]]:
    net = sequential()
    return (
        il.Model(net),
        torch.randn(2, 3),
        lambda model: [model[0].output, model[1].output],
        [net[0], net[1]],
    )


def experts() -> tuple[il.Model, Tensor, Callable[[il.Model], Hidden], list[nn.Module]]:
    net = Experts(1)
    return il.Model(net), torch.randn(4, 3), lambda model: [model.experts[0].output], [net.experts[0]]


def looped() -> tuple[il.Model, Tensor, Callable[[il.Model], Hidden], list[nn.Module]]:
    net = Looped(3)

    def read(model: il.Model) -> Hidden:
        tracer = model._tree.trace_at(sys._getframe(1))
        assert tracer is not None
        return [model.block.output for _ in tracer.iter[:3]]

    return il.Model(net), torch.randn(2, 3), read, [net.block]


MODELS = [transformer, chain, experts, looped]


def total(output: Any) -> Tensor:
    return (output if isinstance(output, Tensor) else output.logits).square().sum()


def hooked(model: il.Model, x: Tensor, modules: list[nn.Module], scale: list[float]) -> list[Tensor]:
    """Gradients by hand-written hooks, each multiplied before it flows on; those of the parameters last."""
    found: list[Tensor] = []

    def forward(module: nn.Module, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output

        def flows(gradient: Tensor) -> Tensor:
            found.append(gradient * factors.pop())
            return found[-1]

        hidden.register_hook(flows)

    factors = list(scale)
    placed = [module.register_forward_hook(forward) for module in modules]
    model._module.zero_grad()
    total(model._module(x)).backward()  # type: ignore[no-untyped-call]
    for handle in placed:
        handle.remove()
    return found + [p.grad.clone() for p in model._module.parameters() if p.grad is not None]


@pytest.mark.parametrize("make", MODELS)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_gradients_equal_those_of_hooks(make: Any, data: st.DataObject) -> None:
    """Law 2, S-90: read, replaced and edited in place, at tensors, in the block and after it, bit for bit."""
    torch.manual_seed(0)
    model, x, read, modules = make()
    with model.trace(x) as tracer:
        kept = read(model)
    scale = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=len(kept), max_size=len(kept)))
    in_place, inside = data.draw(st.booleans()), data.draw(st.booleans())
    expected = hooked(model, x, modules, scale)
    model._module.zero_grad()

    def walk(loss: Tensor) -> list[Tensor]:
        found = []
        with il.backward(loss):
            for hidden, factor in zip(reversed(kept), reversed(scale), strict=True):
                if in_place:
                    hidden.grad *= factor
                else:
                    hidden.grad = hidden.grad * factor
                found.append(hidden.grad)
        return found

    with model.trace(x) as tracer:
        kept = read(model)
        if inside:
            found = walk(total(tracer.result))
    if not inside:
        found = walk(total(tracer.result))
    found += [p.grad for p in model._module.parameters() if p.grad is not None]
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("inside", [True, False])
def test_plain_torch_just_works(make: Any, inside: bool) -> None:
    """S-90: `backward`, `autograd.grad` and `retain_grad` are torch's own, in a block and after it."""
    model, x, read, modules = make()
    expected = hooked(model, x, modules, [1.0] * 9)
    model._module.zero_grad()

    def walk(loss: Tensor) -> None:
        grads = torch.autograd.grad(loss, list(reversed(kept)), retain_graph=True)
        for hidden in kept:
            hidden.retain_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        found = [*grads, *(p.grad for p in model._module.parameters() if p.grad is not None)]
        assert all(map(torch.equal, found, expected))
        assert all(torch.equal(h.grad, g) for h, g in zip(reversed(kept), grads, strict=True))

    with model.trace(x) as tracer:
        kept = read(model)
        if inside:
            walk(total(tracer.result))
    if not inside:
        walk(total(tracer.result))


@pytest.fixture
def read() -> tuple[il.Model, Hidden, Tensor]:
    model, x, reader, _ = transformer()
    with model.trace(x) as tracer:
        kept = reader(model)
    return model, kept, total(tracer.result)


def test_sites_mean_what_was_read(read: tuple[il.Model, Hidden, Tensor]) -> None:
    """S-90: `model.h[1].output` in the block is the tensor of the trace, open or over; also at inputs."""
    model, (_, kept, _), loss = read
    (expected,) = torch.autograd.grad(loss, kept, retain_graph=True)
    with il.backward(loss):
        assert model.h[1].output[0] is kept
        assert torch.equal(model.h[1].output[0].grad, expected)  # type: ignore[arg-type]
        with pytest.raises(NotReachedError, match=r"`model\.embed\.output` was not read with gradients"):
            model.embed.output  # noqa: B018
    with model.trace(ids()):
        given = model.h[1].mlp.input
        before = model.h[1].output
        loss = total(model.output)
        with il.backward(loss, retain_graph=True):
            assert model.h[1].output[0] is before[0]
            assert model.h[1].mlp.input.grad is not None
        (again,) = torch.autograd.grad(loss, given)
        assert model.output is not None
    assert again.abs().sum() > 0


def test_a_container_is_walked_as_it_was() -> None:
    """S-90: unpacked, counted and indexed from its end, with parts that have no gradient."""
    net = nn.Sequential(nn.Linear(2, 2), Pairs())
    model = il.Model(net)
    with model.trace(torch.ones(1, 2)):
        kept: Any = model[1].output
        loss = kept[0].sum() + kept[2]["deep"].sum()
    with il.backward(loss):
        first, none, last = model[1].output
        assert len(model[1].output) == 3
        assert first is kept[0]
        assert model[1].output[-3] is kept[0]
        assert last["deep"] is kept[2]["deep"]
        with pytest.raises(NotReachedError, match=r"`model\[1\]\.output\[1\]` has no gradient"):
            none.grad  # noqa: B018
        with pytest.raises(NotReachedError, match=r"`model\[1\]\.output\[1\]` has no gradient"):
            model[1].output[1]
        with pytest.raises(IndexError):
            model[1].output[3]
        with pytest.raises(TypeError, match="dict"):
            list(last)
        assert last["deep"].grad.eq(1).all()


class Pairs(nn.Module):
    """Returns a nest, a part of which has no gradient."""

    def forward(self, x: Tensor) -> tuple[Tensor, None, dict[str, Tensor]]:
        return x * 2, None, {"deep": x * 3}


def test_only_what_was_asked_for_is_remembered(read: tuple[il.Model, Hidden, Tensor]) -> None:
    """S-90: an output without its input, an input at either port, nothing that has no gradient."""
    model = read[0]
    embed = model.embed._module
    with model.trace(ids()):
        tokens = model.embed.input
        given = model.h[1].input
        before = model.h[1].mlp.output  # at whose output its input can still be had
        late = model.h[1].mlp.input
        model.h[2].output  # noqa: B018
        loss = total(model.output)
    with il.backward(loss):
        with pytest.raises(NotReachedError, match=r"`model\.h\[2\]\.input` was not read with gradients"):
            model.h[2].input  # noqa: B018
        with pytest.raises(NotReachedError, match=r"`model\.embed\.input` was not read with gradients"):
            model.embed.input  # noqa: B018
        assert model.h[1].mlp.output is before
        assert model.h[1].mlp.input is late
        assert model.h[1].input is given
    assert not tokens.requires_grad
    assert embed.weight.grad is not None
    with torch.no_grad(), model.trace(ids()) as tracer:
        model.h[1].output  # noqa: B018
        reads = tracer._model_run.reads
        model.output  # noqa: B018
    assert not reads


def test_a_site_whose_tensor_is_gone_or_is_another_says_so() -> None:
    """S-90."""
    model = il.Model(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)).eval())
    with model.trace(torch.randn(2, 3)):
        model[1].output  # noqa: B018
        loss = model.output.sum() * 1
    with (
        pytest.raises(
            NotReachedError, match=r"not in memory any more: nothing kept it\.\nKeep it under a name"
        ),
        il.backward(loss),
    ):
        model[1].output  # noqa: B018
    kept, losses = [], []
    for _ in range(2):
        with model.trace(torch.randn(2, 3)):
            kept.append(model[0].output)
            losses.append(model.output.sum())
    with il.backward(losses[0], retain_graph=True):  # the earlier trace, by its graph
        assert model[0].output is kept[0]
    with pytest.raises(TraceError, match="was read by 2 blocks"), il.backward(losses[0] + losses[1]):
        model[0].output  # noqa: B018
    with pytest.raises(OutsideTraceError):
        model[0].output  # noqa: B018


def test_replaced_values_at_a_site_are_what_the_model_went_on_with(
    read: tuple[il.Model, Hidden, Tensor],
) -> None:
    """S-90."""
    model = read[0]
    with model.trace(ids()):
        new = model.h[0].mlp.output * 2
        model.h[0].mlp.output = new
        loss = total(model.output)
    with il.backward(loss):
        assert model.h[0].mlp.output is new
        assert new.grad is not None


@pytest.mark.parametrize("form", ["function", "with"])
def test_each_invoke_has_the_gradients_of_its_rows(form: str) -> None:
    """Law 3, S-90: two invokes go backward, and each gets what it would get alone, by tensor and by site."""
    model, x, reader, _ = transformer()
    alone = []
    for rows in (x[:1], x[1:]):
        with model.trace(rows) as tracer:
            kept = reader(model)
        alone.append(torch.autograd.grad(total(tracer.result), kept[1])[0])
    if form == "with":
        with model.trace() as tracer:
            with tracer.invoke(x[:1]):
                first = model.h[1].output[0]
                loss = total(model.output)
                with il.backward(loss, retain_graph=True):
                    one = first.grad
            with tracer.invoke(x[1:]):
                kept = model.h[1].output
                loss2 = total(model.output)
                with il.backward(loss2):
                    two = model.h[1].output[0].grad
    else:
        found = []
        with model.trace() as tracer:
            for n in range(2):

                def block(n: int = n) -> None:
                    hidden = model.h[1].output[0]
                    with il.backward(total(model.output), retain_graph=n == 0):
                        found.append(hidden.grad)

                tracer.invoke(x[n : n + 1])(block)
        one, two = found
    torch.testing.assert_close(one, alone[0])
    torch.testing.assert_close(two, alone[1])


def test_order_and_dependence_are_told_at_the_line(read: tuple[il.Model, Hidden, Tensor]) -> None:
    """S-90, laws 5 and 11; after the error the backward is where it was."""
    model, (first, middle, last), loss = read
    weight = model._module.get_parameter("lm_head.weight")
    with il.backward(loss, retain_graph=True):
        middle.grad  # noqa: B018
        with pytest.raises(
            OrderError, match=r"has passed\.\nA backward runs from the end .* later tensors first"
        ):
            last.grad  # noqa: B018
        with pytest.raises(OrderError):
            weight.grad  # noqa: B018
        with pytest.raises(NotReachedError, match="does not depend on it"):
            (first * 2).grad  # noqa: B018
        with pytest.raises(NotReachedError, match=r"torch\.no_grad\(\)"):
            torch.ones(2).grad  # noqa: B018
        assert first.grad is not None
        assert model._module.get_parameter("embed.weight").grad is not None
    with il.backward(loss, inputs=[first]), pytest.raises(NotReachedError):
        model._module.get_parameter("embed.weight").grad  # noqa: B018


def test_what_cannot_be_walked_says_why() -> None:
    """S-90: no graph to walk is an error that says why and what to write."""
    x = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        silent = x.sum()
    with torch.inference_mode():
        inferred = x.sum()
    cases: list[tuple[Any, str]] = [
        (silent, r"no graph to walk backward .*no_grad"),
        (x.sum().detach(), "was detached"),
        (inferred, r"inference mode"),
        (torch.tensor(3), "int64 values have no gradients"),
        (x * 2, r"begins at one number, .*\nReduce it"),
        ("loss", "begins at a tensor"),
    ]
    for value, message in cases:
        with pytest.raises(InputError, match="(?s)" + message), il.backward(value):
            pass
    y = x * 2
    with il.backward(y, gradient=torch.full((3,), 5.0)):
        assert torch.equal(y.grad, torch.full((3,), 5.0))  # type: ignore[arg-type]
    assert torch.equal(x.grad, torch.full((3,), 10.0))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="second time"), il.backward(_used(x)):
        pass


def _used(x: Tensor) -> Tensor:
    loss = x.exp().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def test_writes_are_checked(read: tuple[il.Model, Hidden, Tensor]) -> None:
    """S-90, law 11."""
    _, (first, middle, last), loss = read
    with il.backward(loss):
        for bad in (torch.zeros(1), last.detach().double()):
            with pytest.raises(WriteError, match=r"`tensor\.grad` cannot be replaced"):
                last.grad = bad
        with pytest.raises(WriteError, match=r"write zeros"):
            last.grad = None
        middle.grad = torch.ones_like(middle)
        assert torch.equal(middle.grad, torch.ones_like(middle))
        assert first.grad is not None


def test_a_write_in_one_branch_leaves_the_other_alone() -> None:
    """S-90: branches may share one buffer in torch; an edit in place must not reach the other."""
    x = torch.ones(3, requires_grad=True)
    a, b = x * 2, x * 3
    with il.backward((a + b).sum()):
        b.grad[:] = 0  # type: ignore[index]
        assert torch.equal(a.grad, torch.ones(3))  # type: ignore[arg-type]
    assert torch.equal(x.grad, torch.full((3,), 2.0))  # type: ignore[arg-type]


def test_higher_orders_and_several_times() -> None:
    """S-90: `create_graph` and `retain_graph`."""
    x = torch.tensor([2.0], requires_grad=True)
    y = x**2
    loss = (y**2).sum()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of cycles between a parameter and its gradient
        with il.backward(loss, create_graph=True):
            slope = y.grad
    with il.backward(slope.sum(), retain_graph=True):  # type: ignore[union-attr]
        assert torch.equal(y.grad, torch.tensor([2.0]))  # type: ignore[arg-type]
    first = x.grad
    assert first is not None
    with il.backward(loss, retain_graph=True):
        with il.backward(loss * 3, retain_graph=True):
            assert torch.equal(y.grad, torch.tensor([24.0]))  # type: ignore[arg-type]
        assert torch.equal(y.grad, torch.tensor([8.0]))  # type: ignore[arg-type]


def parked(loss: Tensor, hidden: Tensor) -> Generator[Any, None, None]:
    with il.backward(loss, retain_graph=True):
        yield hidden.grad
        yield hidden.grad


def test_blocks_in_generators_and_threads_do_not_mix(read: tuple[il.Model, Hidden, Tensor]) -> None:
    """Law 9: a parked block serves nobody else; torch's engine can go on with the innermost only, and we say so."""
    _, (first, middle, last), loss = read
    (expected,) = torch.autograd.grad(loss, middle, retain_graph=True)
    one = parked(loss, middle)
    assert torch.equal(next(one), expected)
    leaf = torch.ones(2, requires_grad=True)
    (leaf * 3).sum().backward()  # type: ignore[no-untyped-call]
    assert torch.equal(leaf.grad, torch.full((2,), 3.0))  # type: ignore[arg-type]
    with il.backward(loss, retain_graph=True):
        assert last.grad is not None
        assert torch.equal(next(one), expected)  # asked again for where it is
    assert list(one) == []
    two, three = parked(loss, middle), parked(loss, first)
    next(two)
    next(three)
    with pytest.raises(TraceError, match="opened after this one is not over"):
        list(two)
    three.close()
    assert torch._C._current_graph_task_id() == -1  # `two` waited for `three`, and ended with it
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(parked(loss, middle)))
    thread.start()
    thread.join()
    assert torch.equal(found[0], expected)
    assert torch._C._len_torch_function_stack() == 0


def test_errors_return_and_break_unwind(read: tuple[il.Model, Hidden, Tensor]) -> None:
    """S-90, law 11: the user's exception is unchanged, the backward ends where it is, hooks are gone."""
    model, (_, middle, last), loss = read
    with contextlib.suppress(KeyError), il.backward(loss, retain_graph=True):
        last.grad  # noqa: B018
        raise KeyError
    assert model._module.get_parameter("embed.weight").grad is None

    def returns() -> Any:
        with il.backward(loss, retain_graph=True):
            return last.grad

    for _ in range(2):
        with il.backward(loss, retain_graph=True):
            break
    assert returns() is not None
    assert not last._backward_hooks
    assert not middle._backward_hooks
    with il.backward(loss):
        assert middle.grad is not None


class Stop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Fails.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise ArithmeticError("the model's own")


def test_an_error_of_the_backward_surfaces_where_it_is_waited_for() -> None:
    """Law 11."""
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    loss = Stop()(y).sum()
    with il.backward(loss, retain_graph=True), pytest.raises(ArithmeticError, match="the model's own"):
        y.grad  # noqa: B018
    with pytest.raises(ArithmeticError), il.backward(loss):
        pass


def test_each_side_keeps_its_world(read: tuple[il.Model, Hidden, Tensor]) -> None:
    """Law 8: modes, grad mode and autograd's threads of the block are the block's."""
    _, (_, middle, last), loss = read
    seen: list[Any] = []
    last.register_hook(lambda gradient: seen.append((torch.is_grad_enabled(), torch.empty(1).device.type)))  # type: ignore[no-untyped-call]
    with torch.no_grad(), il.backward(loss), torch.device("meta"):
        middle.grad  # noqa: B018
        assert not torch.is_grad_enabled()
        assert torch.empty(1).is_meta
        assert torch._C._is_multithreading_enabled()
    assert seen == [(False, "cpu")]


def _good(loss: Tensor, hidden: Tensor) -> None:
    with il.backward(loss):
        hidden.grad[:] = 1  # type: ignore[index]


def _fails(loss: Tensor, hidden: Tensor) -> None:
    with contextlib.suppress(KeyError), il.backward(loss):
        hidden.grad  # noqa: B018
        raise KeyError


def _parked(loss: Tensor, hidden: Tensor) -> None:
    next(parked(loss, hidden))


def _never_left(loss: Tensor, hidden: Tensor) -> None:
    opened = il.backward(loss)
    opened.__enter__()
    hidden.grad  # noqa: B018


def _refused(loss: Tensor, hidden: Tensor) -> None:
    with il.backward(loss), contextlib.suppress(NotReachedError):
        (hidden * 2).grad  # noqa: B018


@pytest.mark.parametrize("use", [_good, _fails, _parked, _never_left, _refused])
def test_reference_counting_alone_frees_everything(use: Callable[[Tensor, Tensor], None]) -> None:
    """Law 10."""
    gc.collect()
    gc.disable()
    try:
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        model, module = il.Model(net), weakref.ref(net)
        with model.trace(torch.randn(2, 3)):
            hidden = model[0].output
            loss = model.output.sum()
        use(loss, hidden)
        seen = [weakref.ref(hidden), weakref.ref(loss)]
        del hidden, loss, model, net
        assert [ref() for ref in seen] == [None, None]
        assert module() is None
        assert torch._C._len_torch_function_stack() == 0
    finally:
        gc.enable()


def test_training_beside_traces_is_unchanged_to_the_bit() -> None:
    """S-90, law 7: the same weights after training with traces around and beside the steps as without any."""

    def train(traced: bool) -> list[Tensor]:
        torch.manual_seed(0)
        net = Tied()
        model = il.Model(net)
        optimizer = torch.optim.Adam(net.parameters())
        for _ in range(4):
            x = torch.randn(5, 3)
            if traced:
                with model.trace(x) as tracer:
                    model.a.output  # noqa: B018
                loss = tracer.result.square().sum()
                with il.backward(loss):
                    pass
            else:
                net(x).square().sum().backward()
            if traced:
                with torch.no_grad(), model.trace(x):
                    model.head.output[:] = 0
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach().clone() for p in net.parameters()]

    assert all(map(torch.equal, train(True), train(False)))
    assert type(Tensor.backward).__name__ == "function"
    assert Tensor.backward.__module__ == "torch._tensor"
    assert Tensor.grad is torch._C.TensorBase.grad

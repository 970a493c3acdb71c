"""Values at the ports of modules: reading, replacing, editing in place, skipping, calling on the side."""

# ruff: noqa: A006, B018, C901, E501, PT012, PT031, SIM117

import gc
import warnings
import weakref
from collections.abc import Callable
from importlib.resources import files
from threading import Thread
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import interlace as il
from interlace.errors import (
    InterlaceError,
    InterlaceWarning,
    NotReachedError,
    OrderError,
    OutsideTraceError,
    ThreadError,
    TraceError,
    WriteError,
)
from interlace.site import Visit
from interlace.trees import tensors
from tests.models import (
    Bert,
    Encoded,
    EncoderDecoder,
    Experts,
    Looped,
    Odd,
    Tied,
    Transformer,
    ids,
    sequential,
)


@pytest.fixture
def net() -> nn.Sequential:
    return sequential()


@pytest.fixture
def model(net: nn.Sequential) -> il.Model:
    return il.Model(net)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3)


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "sequential": (sequential, lambda: torch.randn(2, 3)),
    "transformer": (Transformer, ids),
    "looped": (Looped, lambda: torch.randn(2, 3)),
    "experts": (Experts, lambda: torch.randn(5, 3)),
    "encoder-decoder": (EncoderDecoder, lambda: torch.randn(2, 3)),
    "bert": (Bert, lambda: torch.randn(2, 3)),
    "tied": (Tied, lambda: torch.randn(2, 3)),
}
zoo = pytest.mark.parametrize("name", ZOO)


def same(one: Any, other: Any) -> bool:
    """Bit for bit."""
    left, right = list(tensors(one)), list(tensors(other))
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def by_hooks(net: nn.Module, x: Any, hooks: list[tuple[nn.Module, Callable[..., Any]]]) -> Any:
    """A call with hand-written forward hooks."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        return net(x)
    finally:
        for handle in handles:
            handle.remove()


def run_order(net: nn.Module, x: Any) -> list[nn.Module]:
    """Modules in the order in which their calls first end."""
    seen: dict[nn.Module, None] = {}
    handles = [module.register_forward_hook(lambda m, a, o: seen.setdefault(m)) for module in net.modules()]
    net(x)
    for handle in handles:
        handle.remove()
    return list(seen)


def value(envoy: il.Envoy) -> Any:
    """The output, whatever a submodule is called."""
    return envoy.nns_output if "output" in envoy._module._modules else envoy.output


# -- law 1 and 2 ----------------------------------------------------------------------------------------------------


@zoo
@pytest.mark.filterwarnings("ignore:.*is a submodule")
def test_reading_changes_nothing(name: str) -> None:
    """Law 1: reads, and writing back what was read, give bit-identical outputs."""
    make, given = ZOO[name]
    net, x = make(), given()
    expected = net(x)
    model = il.Model(net)
    by_module = {envoy._module: envoy for _, envoy in reversed(model.named_modules())}
    order = run_order(net, x)
    with model.trace(x) as tracer:
        for module in order:
            value(by_module[module])
    assert same(tracer.result, expected)
    with model.trace(x) as tracer:
        for module in order:
            envoy = by_module[module]
            if "output" in module._modules:
                envoy.nns_output = envoy.nns_output
            else:
                envoy.output = envoy.output
    assert same(tracer.result, expected)
    with model.trace(x) as tracer:
        by_module[order[0]].inputs = by_module[order[0]].inputs
    assert same(tracer.result, expected)


@zoo
@pytest.mark.filterwarnings("ignore:.*is a submodule")
def test_reads_are_what_hooks_see(name: str) -> None:
    """Law 2, S-23: value for value, the first visit of each."""
    make, given = ZOO[name]
    net, x = make(), given()
    seen: dict[nn.Module, Any] = {}

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.setdefault(module, output)

    by_hooks(net, x, [(module, keep) for module in net.modules()])
    model = il.Model(net)
    by_module = {envoy._module: envoy for _, envoy in reversed(model.named_modules())}
    with model.trace(x):
        for module in seen:
            assert same(value(by_module[module]), seen[module])


Action = tuple[str, int, float]
actions = st.lists(
    st.tuples(
        st.sampled_from(["read", "edit", "slice", "replace", "input", "skip", "scale"]),
        st.integers(0, 8),
        st.floats(-2, 2, allow_nan=False, width=16),
    ),
    max_size=6,
    unique_by=lambda action: action[1],
)


class Chain(nn.Module):
    """Nine blocks with a residual stream, some with a tuple, some with a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(9))

    def forward(self, x: Tensor) -> Tensor:
        for n, block in enumerate(self.blocks):
            x = x + (block(input=x) if n % 3 == 1 else block(x)).tanh()
        return x


def _native(model: il.Model, x: Tensor, program: list[Action]) -> tuple[Tensor, list[Tensor]]:
    reads = []
    with model.trace(x):
        for kind, at, amount in sorted(program, key=lambda action: action[1]):
            block = model.blocks[at]
            if kind == "read":
                reads.append(block.output)
            elif kind == "edit":
                block.output[:] = block.output * amount
            elif kind == "slice":
                block.output[0, 1:] = amount
            elif kind == "scale":
                out = block.output
                out *= amount
            elif kind == "replace":
                block.output = block.output + amount
            elif kind == "input":
                block.input = block.input * amount
            else:
                block.skip(block.input * amount)
        out = model.output
    return out, reads


def _hooked(net: Chain, x: Tensor, program: list[Action]) -> tuple[Tensor, list[Tensor]]:
    reads: list[Tensor] = []
    handles: list[Any] = []
    saved = []

    def output(kind: str, amount: float) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> Any:
            if kind == "read":
                reads.append(out)
                return None
            if kind == "edit":
                out[:] = out * amount
            elif kind == "slice":
                out[0, 1:] = amount
            elif kind == "scale":
                out *= amount
            else:
                return out + amount
            return out

        return hook

    def scaled(amount: float) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return tuple(a * amount for a in args), {name: a * amount for name, a in kwargs.items()}

        return hook

    for kind, at, amount in program:
        block = net.blocks[at]
        if kind == "input":
            handles.append(block.register_forward_pre_hook(scaled(amount), with_kwargs=True))
        elif kind == "skip":
            saved.append(block)
            block.forward = lambda input, amount=amount: input * amount
        else:
            handles.append(block.register_forward_hook(output(kind, amount)))
    try:
        return net(x), reads
    finally:
        for handle in handles:
            handle.remove()
        for block in saved:
            del block.forward


@hypothesis.given(program=actions)
@hypothesis.settings(deadline=None, max_examples=150)
def test_any_program_equals_its_hooks(program: list[Action]) -> None:
    """Law 2, S-24, S-28, S-29, S-31: random programs, value for value and gradient for gradient."""
    torch.manual_seed(0)
    net = Chain()
    x = torch.randn(2, 3, requires_grad=True)
    ours, read = _native(il.Model(net), x, program)
    mine = torch.autograd.grad(ours.square().sum(), [x, *net.parameters()], allow_unused=True)
    hooked, seen = _hooked(net, x, program)
    theirs = torch.autograd.grad(hooked.square().sum(), [x, *net.parameters()], allow_unused=True)
    assert torch.equal(ours, hooked)
    assert same(read, seen)
    for one, other in zip(mine, theirs, strict=True):
        assert same(one, other)


def test_gradients_flow_through_what_was_written(net: nn.Sequential, model: il.Model, x: Tensor) -> None:
    """Law 2: a replacement with a graph of its own."""
    direction = torch.randn(4, requires_grad=True)
    with model.trace(x):
        model[0].output = model[0].output + direction
        loss = model.output.sum()
    torch.autograd.backward(loss)
    expected = torch.randn(4, requires_grad=True)
    expected.data.copy_(direction.data)
    net[2](net[1](net[0](x) + expected)).sum().backward()
    assert direction.grad is not None
    assert expected.grad is not None
    assert torch.equal(direction.grad, expected.grad)


@pytest.mark.parametrize("grad", [True, False])
def test_a_fused_path_is_left_only_when_asked_below(grad: bool) -> None:
    """Law 2: `nn.TransformerEncoderLayer` in eval; asking below it does what a hook would do, for that run."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    net, x = nn.Sequential(layer), torch.randn(1, 3, 4)
    model = il.Model(net)
    with torch.set_grad_enabled(grad):
        fused = net(x)
        with model.trace(x):
            out = model[0].output
        assert torch.equal(out, fused)
        seen: list[Tensor] = []
        hooked = by_hooks(net, x, [(layer.linear1, lambda m, a, o: seen.append(o))])
        with model.trace(x) as tracer:
            inner = model[0].linear1.output
        assert torch.equal(inner, seen[0])
        assert torch.equal(tracer.result, hooked)
        assert not layer.linear1._forward_pre_hooks
        assert torch.equal(net(x), fused)


# -- reading --------------------------------------------------------------------------------------------------------


def test_a_value_is_the_live_object(model: il.Model, x: Tensor) -> None:
    """S-23, S-81: asked for again, it is the same object."""
    with model.trace(x):
        hidden = model[0].output
        assert model[0].output is hidden
        passed_on = model[1].input
    assert passed_on is hidden


def test_inputs_are_the_arguments_of_the_call() -> None:
    """S-25, S-27."""
    net, x = EncoderDecoder(), torch.randn(2, 3)
    model = il.Model(net)
    with model.trace(x):
        args, kwargs = model.encoder.inputs
        first = model.encoder.input
        encoded = model.encoder.output
        both = model.decoder.inputs
    assert args == ()
    assert kwargs.keys() == {"x"}
    assert first is x
    assert isinstance(encoded, Encoded)
    assert both[0] == (x,)
    assert both[1]["encoded"] is encoded


def test_the_input_is_at_hand_after_the_output(model: il.Model, x: Tensor) -> None:
    """S-25: of the same visit."""
    with model.trace(x):
        out = model[2].output
        given = model[2].input
        args, kwargs = model[2].inputs
    assert out.shape == (2, 2)
    assert args[0] is given
    assert kwargs == {}


def test_a_module_called_with_nothing_has_no_input() -> None:
    """S-27."""
    model = il.Model(Odd())
    with model.trace(torch.ones(1, 3)):
        assert model.constant.inputs == ((), {})
        with pytest.raises(
            IndexError, match=r"`model\.constant` was called with no arguments.* see `inputs`"
        ):
            model.constant.input
        with pytest.raises(IndexError, match=r"no `input` to replace"):
            model.constant.input = torch.ones(3)
        value = model.constant.output
    assert value.eq(2).all()


def test_none_is_a_value() -> None:
    """S-03, S-23: a module that returned None was reached."""
    model = il.Model(Odd())
    with model.trace(torch.ones(1, 3)):
        nothing = model.silent.output
        after = model.inner.output
    assert nothing is None
    assert after is not None


def test_interleaving_is_true_while_a_run_is_in_progress(model: il.Model, x: Tensor) -> None:
    """S-22."""
    assert model.interleaving is False
    with model.trace(x):
        model[0].output
        assert model.interleaving
        assert model[2].interleaving
    assert model.interleaving is False


def test_waiting_discards_the_value(model: il.Model, x: Tensor) -> None:
    """S-30."""
    with model.trace(x):
        assert model[1].wait_for_input() is None
        with pytest.raises(OrderError):
            model[0].output
        assert model[1].wait_for_output() is None
        with pytest.raises(OrderError):
            model[0].output


# -- writing --------------------------------------------------------------------------------------------------------


def test_an_assignment_replaces_the_value(net: nn.Sequential, model: il.Model, x: Tensor) -> None:
    """S-24."""
    with model.trace(x):
        model[0].output = torch.ones(2, 4)
        assert model[0].output.eq(1).all()
        out = model.output
    assert torch.equal(out, net[2](torch.ones(2, 4)))


def test_the_output_of_the_model_is_replaced_for_the_caller(model: il.Model, x: Tensor) -> None:
    """S-24, S-86."""
    with model.trace(x) as tracer:
        model.output = torch.zeros(2, 2)
    assert not tracer.result.any()


def test_inputs_are_replaced_as_a_whole() -> None:
    """S-26."""
    net, x = EncoderDecoder(), torch.randn(2, 3)
    model = il.Model(net)
    with model.trace(x) as tracer:
        args, kwargs = model.decoder.inputs
        model.decoder.inputs = ((args[0] * 0,), kwargs)
        assert not model.decoder.input.any()
    assert same(tracer.result, net.decoder(x * 0, encoded=net.encoder(x=x)))


def test_the_first_argument_is_replaced_and_the_others_kept() -> None:
    """S-28: positional, and the first keyword when the call has keywords only."""
    net, x = EncoderDecoder(), torch.randn(2, 3)
    model = il.Model(net)
    with model.trace(x) as tracer:
        model.encoder.input = x * 2
        model.decoder.input = x * 3
    assert same(tracer.result, net.decoder(x * 3, encoded=net.encoder(x=x * 2)))


def test_a_written_input_leaves_the_callers_object_alone() -> None:
    """S-28: the dict that a caller passed on may be used again."""
    shared: dict[str, Tensor] = {}

    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            shared["input"] = x
            return self.inner(**shared)  # type: ignore[no-any-return]

    model, x = il.Model(Calls()), torch.ones(1, 2)
    with model.trace(x):
        model.inner.input = x * 2
    assert shared["input"] is x


def test_edits_in_place_reach_the_model(net: nn.Sequential, model: il.Model, x: Tensor) -> None:
    """S-29."""
    with torch.no_grad(), model.trace(x):
        model[0].output[:, 0] = 0
        model[0].output *= 2
        out = model.output
    hidden = net[0](x).detach()
    hidden[:, 0] = 0
    assert torch.equal(out, net[2](net[1](hidden * 2)))


def test_an_item_of_a_tuple_cannot_be_assigned() -> None:
    """S-29: Python's own error; a new tuple works."""
    net = Transformer()
    model = il.Model(net)
    with model.trace(ids()):
        with pytest.raises(TypeError, match="item assignment"):
            model.h[0].output[0] = 0
        model.h[0].output = (torch.zeros(2, 5, 8),)
        out = model.h[1].input
    assert not out.any()


def test_a_late_write_to_an_input_is_refused(net: nn.Sequential, model: il.Model, x: Tensor) -> None:
    """S-26, S-28, law 5."""
    with model.trace(x):
        model[0].output
        writes: list[Callable[[], Any]] = [
            lambda: setattr(model[0], "input", x),
            lambda: setattr(model[0], "inputs", ((x,), {})),
        ]
        for write in writes:
            with pytest.raises(
                OrderError, match=r"`model\[0\]\.input` cannot be changed any more.*\nWrite it before"
            ):
                write()
        with pytest.raises(OrderError, match=r"cannot be skipped any more.*\nSkip it before"):
            model[0].skip(torch.zeros(2, 4))
        out = model.output
    assert torch.equal(out, net(x))


REFUSED = {
    "shape": (torch.zeros(2, 5), r"its shape is \(2, 5\), the model has \(2, 4\) there"),
    "dtype": (
        torch.zeros(2, 4, dtype=torch.float64),
        r"its dtype is torch\.float64, the model has torch\.float32",
    ),
    "device": (torch.zeros(2, 4, device="meta"), r"its device is meta, the model has cpu there"),
    "structure": (
        (torch.zeros(2, 4),),
        r"it is \(Tensor\(2, 4\) float32 cpu\), the model has Tensor\(2, 4\)",
    ),
    "none": (None, r"it is None, the model has Tensor\(2, 4\) float32 cpu there"),
    "number": (0.0, r"it is float, the model has Tensor"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_write_that_does_not_fit_is_refused(
    net: nn.Sequential, model: il.Model, x: Tensor, kind: str
) -> None:
    """Law 11, S-24, bad input: at the line that wrote it, and nothing is changed."""
    wrong, message = REFUSED[kind]
    with model.trace(x):
        with pytest.raises(
            WriteError, match=rf"^`model\[0\]\.output` cannot be replaced: {message}"
        ) as caught:
            model[0].output = wrong
        out = model.output
    assert torch.equal(out, net(x))
    assert "il.insist(value)" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("port", ["input", "inputs"])
def test_an_input_that_does_not_fit_is_refused(
    net: nn.Sequential, model: il.Model, x: Tensor, port: str
) -> None:
    """Law 11, S-26, S-28."""
    wrong: Any = torch.zeros(1, 4) if port == "input" else ((torch.zeros(1, 4),), {})
    with model.trace(x):
        with pytest.raises(
            WriteError, match=rf"^`model\[2\]\.{port}` cannot be replaced: its shape.* is \(1, 4\)"
        ):
            setattr(model[2], port, wrong)
        out = model.output
    assert torch.equal(out, net(x))


@pytest.mark.parametrize("wrong", [torch.zeros(2, 4), [(), {}], ((), []), ((1,), {}, 3)])
def test_inputs_are_a_pair(model: il.Model, x: Tensor, wrong: Any) -> None:
    """S-26."""
    with model.trace(x):
        with pytest.raises(
            WriteError, match=r"`model\[2\]\.inputs` takes `\(args, kwargs\)`, a tuple and a dict"
        ):
            model[2].inputs = wrong


def test_insisting_passes_the_checks(net: nn.Sequential, model: il.Model, x: Tensor) -> None:
    """Law 11: the one documented way."""
    with model.trace(x):
        model[0].output = il.insist(torch.ones(5, 4))
        assert model[0].output.shape == (5, 4)
        out = model.output
    assert out.shape == (5, 2)
    with model.trace(x):
        model[2].input = il.insist(torch.ones(5, 4))
        out = model.output
    assert out.shape == (5, 2)
    with model.trace(x):
        model[2].inputs = il.insist(((torch.ones(5, 4),), {}))
        out = model.output
    assert out.shape == (5, 2)
    with model.trace(x):
        model[0].skip(il.insist(torch.ones(5, 4)))
        out = model.output
    assert out.shape == (5, 2)


def test_checks_can_be_switched_off(model: il.Model, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law 11, S-91."""
    monkeypatch.setattr(il.config, "checks", False)
    with model.trace(x):
        model[0].output = torch.ones(5, 4)
        out = model.output
    assert out.shape == (5, 2)


# -- skip -----------------------------------------------------------------------------------------------------------


def test_a_skipped_module_does_not_run(net: nn.Sequential, model: il.Model, x: Tensor) -> None:
    """S-31."""
    ran: list[nn.Module] = []
    handle = net[2].register_forward_hook(lambda m, a, o: ran.append(m))
    with model.trace(x):
        model[2].skip(torch.ones(2, 2))
        out = model.output
        assert model.output is out
    handle.remove()
    assert out.eq(1).all()
    assert ran == []


def test_the_replacement_is_the_output_of_the_visit(model: il.Model, x: Tensor) -> None:
    """S-31."""
    with model.trace(x):
        model[1].skip(model[1].input)
        out = model[1].output
        given = model[1].input
    assert out is given


def test_modules_inside_a_skipped_one_are_not_reached() -> None:
    """S-31, bad input: asking for one says so."""
    model = il.Model(Transformer())
    with model.trace(ids()):
        model.h[0].skip((torch.zeros(2, 5, 8),))
        with pytest.raises(
            NotReachedError,
            match=r"`model\.h\[0\]\.mlp\.output` was not reached: .*`model\.h\[0\]\.output` was skipped\.\nAsk for it in a trace",
        ):
            model.h[0].mlp.output
    with model.trace(ids()):
        model.h[0].skip((torch.zeros(2, 5, 8),))
        assert not model.h[1].input.any()


def test_a_skip_of_the_wrong_structure_is_refused_after_a_scan(model: il.Model, x: Tensor) -> None:
    """S-31: what the last scan told is what a replacement must be like."""
    seen = Visit(id(model[0]._module), 0, (), {})
    seen.result = torch.zeros(2, 4)
    model._tree.shapes["model.0"] = seen
    with model.trace(x):
        with pytest.raises(
            WriteError, match=r"^`model\[0\]\.output` cannot be skipped with this: it is \(Tensor"
        ):
            model[0].skip((torch.zeros(2, 4),))
        out = model[0].output
    assert out.shape == (2, 4)
    with model.trace(torch.ones(7, 3)):
        model[0].skip(torch.zeros(7, 4))
        assert not model[0].output.any()


def test_a_skip_of_the_wrong_structure_is_refused_after_an_earlier_visit() -> None:
    """S-31: of that module in the run."""
    model, x = il.Model(Looped()), torch.ones(1, 3)
    with model.trace(x) as tracer:
        for step in tracer.iter[:2]:
            if step == 0:
                model.block.output
            else:
                with pytest.raises(
                    WriteError, match=r"`model\.block\.output` cannot be skipped with this: it is \(Tensor"
                ):
                    model.block.skip((torch.zeros(1, 3),))
                model.block.skip(torch.zeros(1, 3))
        out = model.output
    assert out.shape == (1, 2)


def test_an_error_of_the_model_after_a_skip_names_the_skip() -> None:
    """S-31: where nothing told what the output is like."""
    model = il.Model(Transformer())
    with pytest.raises(TypeError) as caught, model.trace(ids()):
        model.h[0].attn.skip(None)
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", ()))
    assert "`model.h[0].attn` was skipped" in told


# -- calling --------------------------------------------------------------------------------------------------------


def test_a_call_on_the_side_is_unseen(net: nn.Sequential, model: il.Model, x: Tensor) -> None:
    """S-32: it consumes no visit."""
    with model.trace(x):
        side = model[2](torch.ones(1, 4))
        whole = model(x * 2)
        out = model[2].output
    assert torch.equal(side, net[2](torch.ones(1, 4)))
    assert torch.equal(whole, net(x * 2))
    assert torch.equal(out, net(x))


def test_a_hooked_call_is_the_next_visit(net: nn.Sequential, model: il.Model, x: Tensor) -> None:
    """S-32: the live visit until the block's next request."""
    with model.trace(x):
        hidden = model[0].output
        side = model[2](hidden, hook=True)
        assert model[2].output is side
        assert model[2].input is hidden
        out = model.output
    assert torch.equal(out, net(x))


def test_a_hooked_call_that_raises_is_a_visit_without_an_output(model: il.Model, x: Tensor) -> None:
    """S-32: as a call of the model's own that raises."""
    with model.trace(x) as tracer:
        cache = tracer.cache([model[2]], include_inputs=True)
        model[0].output
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model[2](torch.ones(1, 7), hook=True)
        with pytest.raises(NotReachedError, match="that call raised an error"):
            model[2].output
    assert len(cache[2].inputs) == 2
    assert list(cache._values["output"][model[2]._site.key]) == [1]


def test_a_hooked_call_within_a_call_of_its_module_has_a_number_of_its_own(x: Tensor) -> None:
    """S-32: outputs are counted as they come, so the inner call's is the first."""
    net = nn.Sequential(nn.Sequential(nn.Linear(3, 3)))
    model = il.Model(net)
    with model.trace(x) as tracer:
        cache = tracer.cache([model[0]])
        model[0][0].output
        side = model[0](2 * x, hook=True)
    assert [torch.equal(one, side) for one in cache[0].output] == [True, False]


def test_a_call_outside_is_normal(net: nn.Sequential, model: il.Model, x: Tensor) -> None:
    """S-32."""
    assert torch.equal(model(x), net(x))
    assert torch.equal(model[2](torch.ones(1, 4)), net[2](torch.ones(1, 4)))
    with pytest.raises(
        OutsideTraceError, match=r"`model\[2\]\(\.\.\., hook=True\)` exists only inside a trace"
    ):
        model[2](torch.ones(1, 4), hook=True)


# -- outside of a trace ---------------------------------------------------------------------------------------------


GUARDED: dict[str, Callable[[il.Model], Any]] = {
    "output": lambda model: model[0].output,
    "input": lambda model: model[0].input,
    "inputs": lambda model: model[0].inputs,
    "output =": lambda model: setattr(model[0], "output", torch.zeros(1)),
    "input =": lambda model: setattr(model[0], "input", torch.zeros(1)),
    "inputs =": lambda model: setattr(model[0], "inputs", ((), {})),
    "skip()": lambda model: model[0].skip(torch.zeros(1)),
    "wait_for_input()": lambda model: model[0].wait_for_input(),
    "wait_for_output()": lambda model: model[0].wait_for_output(),
}


@pytest.mark.parametrize("feature", GUARDED)
def test_a_value_exists_only_inside_a_trace(model: il.Model, x: Tensor, feature: str) -> None:
    """S-23, S-24, S-26, S-33, bad input: the error names it and says what to write."""
    name = feature.removesuffix(" =").replace("()", r"\(\)")
    for _ in range(2):
        with pytest.raises(OutsideTraceError, match=rf"`model\[0\]\.{name}` .*inside a trace") as caught:
            GUARDED[feature](model)
        assert "with model.trace(...):" in str(caught.value)
        assert ("after a scan" in str(caught.value)) == (feature in ("output", "input", "inputs"))
        assert isinstance(caught.value, ValueError)
        with model.trace(x):
            model[0].output


@pytest.mark.parametrize("feature", ["iter", "all", "next"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_step_names_are_guarded(model: il.Model, feature: str) -> None:
    """S-33, S-45, S-46, S-47."""
    with pytest.raises(OutsideTraceError, match=rf"`model\.{feature}` exists only inside a trace"):
        found = getattr(model, feature)
        found()


def test_a_value_after_the_block_is_outside(model: il.Model, x: Tensor) -> None:
    """S-23."""
    with model.trace(x):
        pass
    with pytest.raises(OutsideTraceError):
        model.output


def test_a_block_serves_the_functions_that_it_calls(model: il.Model, x: Tensor) -> None:
    """Law 9: a request goes to the trace of the nearest owner on the asker's stack."""

    def read() -> Tensor:
        hidden: Tensor = model[0].output
        return hidden

    with model.trace(x):
        hidden = read()
        comprehended = [envoy.output for envoy in model]
    assert comprehended[0] is hidden


# -- bad input: order, reach, errors --------------------------------------------------------------------------------


def test_a_site_out_of_order_is_refused(net: nn.Sequential, model: il.Model, x: Tensor) -> None:
    """Law 5, bad input: what was asked, where the model is, what order works."""
    with model.trace(x):
        hidden = model[2].input
        with pytest.raises(
            OrderError,
            match=r"^`model\[0\]\.output` has passed; the model is paused at `model\[2\]\.input`\.\nA trace runs forward only",
        ):
            model[0].output
        out = model.output
    assert torch.equal(out, net(x))
    assert torch.equal(hidden, net[1](net[0](x)))


def test_visits_are_exact() -> None:
    """Law 5: counted from the start of the run, whoever asked for them."""
    net, x = Looped(), torch.randn(1, 3)
    model = il.Model(net)
    with model.trace(x):
        model.head.input
        with pytest.raises(
            OrderError, match=r"`model\.block\.output` has passed.*It has been called 5 times so far"
        ):
            model.block.output


def test_a_branch_not_taken_is_reported(model: il.Model) -> None:
    """Bad input: a site never reached."""
    odd = il.Model(Odd())
    net: Any = odd._module
    x = torch.ones(1, 3)
    with odd.trace(x):
        with pytest.raises(
            NotReachedError,
            match=r"^`model\.dead\.output` was not reached: the model has finished and never called it",
        ):
            odd.dead.output
    with odd.trace(x):
        out = odd.output
    assert torch.equal(out, net(x))


def test_an_unused_expert_is_reported() -> None:
    """Bad input."""
    net = Experts()
    with torch.no_grad():
        net.router.weight.zero_()
        net.router.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
    model, x = il.Model(net), torch.randn(2, 3)
    with model.trace(x):
        used = model.experts[0].output
        with pytest.raises(
            NotReachedError, match=r"(?s)`model\.experts\[3\]\.output` was not reached.*unused expert"
        ):
            model.experts[3].output
    assert used.shape == (2, 3)


def test_a_visit_beyond_the_last_is_reported() -> None:
    """Law 5."""
    model, x = il.Model(Looped(2)), torch.ones(1, 3)
    with model.trace(x) as tracer:
        model.block.output
        tracer.next()
        model.block.output
        with pytest.raises(
            NotReachedError, match=r"`model\.block\.\w+` \(visit 2\) was not reached.* after 2 visits of it"
        ):
            tracer.next()


def test_values_survive_a_request_that_failed(model: il.Model) -> None:
    """Law 11."""
    odd = il.Model(Odd())
    kept = None
    with pytest.raises(NotReachedError), odd.trace(torch.ones(1, 3)):
        kept = odd.inner.output
        odd.dead.output
    assert kept is not None
    assert kept.shape == (1, 3)


def test_an_error_of_the_model_surfaces_where_the_block_waits() -> None:
    """Law 11, bad input: at the line that was waiting, with the model's own traceback under it."""
    model, x = il.Model(Odd()), torch.ones(1, 3)
    with model.trace(x, fail=True):
        kept = model.inner.output
        with pytest.raises(ArithmeticError, match="the model's own") as caught:
            model.output
        with pytest.raises(NotReachedError, match=r"the model has failed with ArithmeticError"):
            model.output
    names = [entry.name for entry in caught.traceback]
    assert names[0] == "test_an_error_of_the_model_surfaces_where_the_block_waits"
    assert names[-1] == "forward"
    assert kept.shape == (1, 3)
    with model.trace(x):
        out = model.output
    assert out.shape == (1, 3)


def test_an_error_of_the_model_that_nobody_waits_for_leaves_the_block() -> None:
    """Law 11."""
    model = il.Model(Odd())
    with pytest.raises(ArithmeticError, match="the model's own"), model.trace(torch.ones(1, 3), fail=True):
        kept = model.inner.output
    assert kept.shape == (1, 3)


def test_an_error_of_the_user_leaves_unchanged(net: nn.Sequential, model: il.Model, x: Tensor) -> None:
    """Law 11, bad input."""
    mine = KeyError("mine")
    with pytest.raises(KeyError) as caught, model.trace(x):
        model[0].output
        raise mine
    assert caught.value is mine
    assert mine.__cause__ is None
    assert mine.__context__ is None
    assert not model.interleaving
    assert torch.equal(model(x), net(x))
    assert all("_compiled_call_impl" not in vars(module) for module in net.modules())


def test_the_model_unwinds_when_the_block_fails(x: Tensor) -> None:
    """Law 10, fact 7: its `finally` blocks run."""
    left = []

    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.inner(x)  # type: ignore[no-any-return]
            finally:
                left.append(True)

    model = il.Model(Careful())
    with pytest.raises(ZeroDivisionError), model.trace(x):
        model.inner.output
        assert not left
        1 / 0
    assert left == [True]


def test_another_thread_is_refused(net: nn.Sequential, model: il.Model, x: Tensor) -> None:
    """Bad input: the same envoy used from another thread than its trace."""
    told: list[BaseException] = []

    def ask() -> None:
        try:
            model[0].output
        except InterlaceError as error:
            told.append(error)

    with model.trace(x):
        model[0].output
        thread = Thread(target=ask)
        thread.start()
        thread.join()
        out = model.output
    assert isinstance(told[0], ThreadError)
    assert "`model[0].output` was asked for in another thread" in str(told[0])
    assert torch.equal(out, net(x))


def test_an_abandoned_generator_frees_its_trace(net: nn.Sequential, model: il.Model, x: Tensor) -> None:
    """Law 10, bad input: an abandoned generator that holds a trace."""

    def activations() -> Any:
        with model.trace(x):
            for layer in model:
                yield layer.output

    values = activations()
    first = weakref.ref(next(values))
    assert model.interleaving
    gc.disable()
    try:
        del values
        assert first() is None
    finally:
        gc.enable()
    assert not model.interleaving
    assert torch.equal(model(x), net(x))


def test_a_request_outside_of_a_parked_generator_is_refused(model: il.Model, x: Tensor) -> None:
    """Rule 10 of the design: a generator parked in its trace must not serve code outside."""

    def activations() -> Any:
        with model.trace(x):
            yield model[0].output

    values = activations()
    next(values)
    with pytest.raises(OutsideTraceError, match="A trace that is open belongs to another frame"):
        model[2].output
    values.close()


def test_a_request_from_a_hook_of_the_model_is_refused(
    net: nn.Sequential, model: il.Model, x: Tensor
) -> None:
    """Bad input: the model's own side cannot ask."""
    told = []

    def hook(module: nn.Module, args: Any, out: Any) -> None:
        try:
            model[2].output
        except InterlaceError as error:
            told.append(error)

    handle = net[0].register_forward_hook(hook)
    with model.trace(x):
        model[1].output
    handle.remove()
    assert isinstance(told[0], TraceError)
    assert "from inside the model's own run" in str(told[0])


def test_no_warning_is_given_on_the_good_path(model: il.Model, x: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.trace(x):
            model[0].output = model[0].output * 2
        with model.trace(x) as tracer:
            model[0].output
            tracer.stop()


def test_a_model_that_holds_back_the_end_is_reported(x: Tensor) -> None:
    """Fact 7: a forward with a bare `except:`."""

    net = sequential()
    model = il.Model(net)

    def stubborn(x: Tensor) -> Tensor:
        try:
            return net(x)  # type: ignore[no-any-return]
        except:  # noqa: E722
            return x

    tracer = model.trace(x, fn=stubborn)
    with (
        pytest.warns(InterlaceWarning, match=r"the model returned as if nothing were.*bare `except:`"),
        tracer,
    ):
        model[0].output
        tracer.stop()


def test_a_bare_except_in_a_module_cannot_hold_back_the_end(x: Tensor) -> None:
    """Fact 7: every tap raises again, so that nothing of the model runs on."""
    ran = []

    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.after = nn.Linear(3, 3), nn.Linear(3, 3)
            self.after.register_forward_hook(lambda m, a, o: ran.append(m))

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.inner(x)  # type: ignore[no-any-return]
            except:  # noqa: E722
                return self.after(x)  # type: ignore[no-any-return]

    model = il.Model(Stubborn())
    with model.trace(x) as tracer:
        model.inner.output
        tracer.stop()
    assert ran == []


# -- types and saving -----------------------------------------------------------------------------------------------


def test_everything_assigned_survives_the_block(model: il.Model, x: Tensor) -> None:
    """S-78: `save` returns its argument."""
    total = torch.zeros(())
    with model.trace(x):
        hidden = model[0].output
        total += hidden.detach().sum()
        nested = {"hidden": [hidden]}
        kept = hidden.save()
        also = il.save(nested)
    assert kept is hidden
    assert also is nested
    assert total == hidden.sum()


def test_the_types_ship() -> None:
    """S-77: a type checker reads them from the source, which is in Python whatever runs."""
    assert files("interlace").joinpath("py.typed").is_file()
    source = files("interlace").joinpath("envoy.py").read_text()
    assert 'def output(self) -> "Activation":' in source
    assert "What the module returned" in (il.Envoy.output.__doc__ or "")


def test_nothing_is_kept_alive_after_a_trace(net: nn.Sequential, model: il.Model, x: Tensor) -> None:
    """Law 10: reference counting alone frees what the block did not keep."""
    gc.collect()
    gc.disable()
    try:
        with model.trace(x) as tracer:
            dead = weakref.ref(model[0].output)
            model[2].output
        result = weakref.ref(tracer.result)
        del tracer
        assert dead() is None
        assert result() is None
    finally:
        gc.enable()

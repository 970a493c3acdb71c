"""Operations as a user of `envoy.source` meets them: values, writes, visits, depth, errors. (S-58 to S-70)"""

import copy
import functools
import gc
import pickle
import re
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import interlace as il
from interlace.errors import (
    InterlaceWarning,
    NameMissError,
    NotReachedError,
    OrderError,
    OutsideTraceError,
    SourceError,
    WriteError,
)
from interlace.source.running import Frame
from tests.source.architectures import build

X = torch.arange(6.0).reshape(2, 3)


def softly(x: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    scaled = x / temperature
    return deeper(scaled) + 1


def deeper(x: torch.Tensor) -> torch.Tensor:
    y = x.softmax(-1)
    return y.clone()


def doubling(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> torch.Tensor:
        doubled: torch.Tensor = function(*args, **kwargs) * 2
        return doubled

    return wrapper


@doubling
def decorated(x: torch.Tensor) -> torch.Tensor:
    return x + 3


class Scale:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mul(x, self.by)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(3, 3)
        self.scale = Scale(2.0)
        self.halved = functools.partial(softly, temperature=2.0)

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        return x.roll(1, -1) - x

    def forward(self, x: torch.Tensor, *, shift: float = 0.5) -> torch.Tensor:
        hidden = self.proj(x)
        hidden = hidden @ hidden.T @ x + shift
        hidden = softly(hidden, temperature=2.0)
        hidden = self.halved(hidden)
        hidden = self.mixed(hidden)
        hidden = self.scale(hidden)
        hidden = decorated(hidden)
        for i in range(3):
            hidden = hidden * (i + 1)
        return torch.relu(hidden)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = Block()
        self.second = Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        if x.sum() > 1e30:
            x = torch.tanh(x)
        return torch.add(self.second(x), self.first(x))


@pytest.fixture
def net() -> Net:
    return Net().eval()


@pytest.fixture
def model(net: Net) -> il.Model:
    return il.Model(net)


def test_reading_gives_the_values_and_changes_nothing(net: Net, model: il.Model) -> None:
    """S-58, S-63, S-64, S-65: outputs and inputs of calls, operators and variables."""
    plain = net(X)
    with model.trace(X):
        source = model.first.source
        projected = source.self_proj_0.output
        name = source.hidden_0.output
        left, right = source.matmul_0.inputs[0]
        product = source.matmul_0.output
        args, kwargs = source.softly_0.inputs
        soft = source.softly_0.output
        out = model.output
    assert torch.equal(out, plain)
    assert name is projected is left
    assert torch.equal(projected, net.first.proj(X))
    assert torch.equal(product, left @ right)
    assert (len(args), kwargs) == (1, {"temperature": 2.0})
    assert torch.equal(soft, softly(args[0], **kwargs))


def test_writing_back_changes_nothing(net: Net, model: il.Model) -> None:
    plain = net(X)
    with model.trace(X):
        for operation in model.first.source:
            try:
                operation.inputs = operation.inputs
                operation.output = operation.output
            except OrderError:
                pass
        out = model.output
    assert torch.equal(out, plain)


def test_writes_are_what_the_model_goes_on_with(net: Net, model: il.Model) -> None:
    """S-63, S-64, S-65: `output`, `inputs` and `input` can be assigned, and edited in place."""
    with model.trace(X):
        source = model.first.source
        source.self_proj_0.input = torch.zeros(2, 3)
        bias = source.self_proj_0.output
        source.hidden_1.output = torch.ones(2, 3)
        source.softly_0.inputs = ((torch.ones(2, 3) * 2,), {"temperature": 1.0})
        seen = source.softly_0.source.scaled_0.output
        source.self_mixed_0.output[:] = 7
        scaled = source.self_scale_0.output
        del source.self_scale_0.inputs
    assert torch.equal(bias, net.first.proj.bias.expand(2, 3))
    assert torch.equal(seen, torch.full((2, 3), 2.0))
    assert torch.equal(scaled, torch.full((2, 3), 14.0))


def test_the_input_of_a_call_by_keywords_only() -> None:
    """S-65: the setter keeps the other arguments."""

    class Keyword(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.add(input=x, other=x, alpha=2)

    model = il.Model(Keyword())
    with model.trace(X):
        model.source.torch_add_0.input = torch.zeros(2, 3)
        kwargs = model.source.torch_add_0.inputs[1]
        out = model.output
    assert list(kwargs) == ["input", "other", "alpha"]
    assert torch.equal(out, X * 2)


def test_skip(net: Net, model: il.Model) -> None:
    """S-67: the operation does not run, the value takes its place."""
    ran: list[int] = []
    net.first.scale = lambda x: ran.append(1)  # type: ignore[assignment]
    with model.trace(X) as tracer:
        model.first.source.self_scale_0.skip(torch.ones(2, 3))
        after = model.first.source.decorated_0.output
        with pytest.raises(OrderError):
            model.first.source.self_scale_0.skip(torch.ones(2, 3))
        tracer.stop()
    assert not ran
    assert torch.equal(after, torch.full((2, 3), 8.0))


def test_gradients_flow_through_what_was_read_and_written(net: Net, model: il.Model) -> None:
    with model.trace(X):
        hidden = model.first.source.hidden_1.output
        model.first.source.softly_0.output = hidden * 2
        halved = model.first.source.self_halved_0.source.scaled_0.output
    (gradient,) = torch.autograd.grad(halved.sum(), hidden)
    assert torch.equal(gradient, torch.ones(2, 3))


def test_visits_in_a_loop_are_counted(net: Net, model: il.Model) -> None:
    """S-70: an operation in a loop has a visit for each turn."""
    with model.trace(X) as tracer:
        source = model.first.source
        start = source.decorated_0.output
        got = [(source.i_0.output, source.mul_0.output) for _ in tracer.iter[:3]]
    assert [turn for turn, _ in got] == [0, 1, 2]
    assert torch.equal(got[2][1], start * 6)


def test_visits_of_a_module_called_twice(net: Net, model: il.Model) -> None:
    """S-70: a later call of the module is a later visit of its operations, also when first asked for then."""
    first = model.first
    with model.trace(X) as tracer:
        both = [(first.source.self_proj_0.output, first.output) for _ in tracer.iter[:]]
    assert len(both) == 2
    with model.trace(X) as tracer:
        for _ in tracer.iter[1]:
            late = model.first.source.softly_0.source.truediv_0.output
            out = model.first.output
    assert torch.equal(out, both[1][1])
    assert late.shape == (2, 3)


@pytest.mark.language
def test_generation_steps() -> None:
    """S-70: `tracer.iter` applies to operations."""
    network = build_lm()
    model = il.Model(network)
    attention = model.transformer.h[0].attn
    shapes = []
    with model.generate(torch.arange(6)[None], max_new_tokens=4, do_sample=False) as tracer:
        for step in tracer.iter[1:]:
            probabilities = attention.source.attention_interface_0.source.nn_functional_softmax_0.output
            shapes.append((step, tuple(probabilities.shape)))
    assert shapes == [(1, (1, 4, 1, 7)), (2, (1, 4, 1, 8)), (3, (1, 4, 1, 9))]


def build_lm(attention: str = "eager") -> Any:
    from transformers import AutoModelForCausalLM

    config: Any = build("gpt2", attention).config
    config.pad_token_id, config.eos_token_id = 0, None
    made: Any = AutoModelForCausalLM
    return made.from_config(config).eval()


def test_going_down(net: Net, model: il.Model) -> None:
    """S-66, S-68: into functions and what they call, partials, methods, callable objects, decorators."""
    plain = net(X)
    with model.trace(X):
        source = model.first.source
        inner = source.softly_0.source.deeper_0.source
        soft = inner.x_softmax_0.output
        outer = source.softly_0.output
        halved = source.self_halved_0.source.truediv_0.inputs[0]
        rolled = source.self_mixed_0.source.x_roll_0.output
        factor = source.self_scale_0.source.torch_mul_0.inputs[0][1]
        added = source.decorated_0.source.add_0.output
        twice = source.decorated_0.output
        out = model.output
    assert torch.equal(out, plain)
    assert torch.equal(outer, soft + 1)
    assert halved[1] == 2.0
    assert rolled.shape == (2, 3)
    assert factor == 2.0
    assert torch.equal(twice, added * 2)  # the decorator ran


def test_only_the_module_that_asked_is_instrumented(net: Net, model: il.Model) -> None:
    """S-58: functions that several modules call are rewritten for the one that was asked."""
    with model.trace(X):
        model.first.source.softly_0.source.scaled_0.output = X * 7
        mine = model.first.source.softly_0.output
        other = model.second.source.softly_0.output
        assert "forward" not in vars(net.first.proj)
    assert torch.equal(mine, (X * 7).softmax(-1) + 1)
    assert not torch.allclose(other, mine)


def test_nothing_stays(net: Net, model: il.Model) -> None:
    """S-58: inert outside a trace, and removed without trace, whatever ended it."""
    before = {name: dict(vars(module)) for name, module in net.named_modules()}
    pickled = pickle.dumps(net.first.proj)
    with model.trace(X):
        _ = model.first.source.hidden_1.output
    with pytest.raises(ZeroDivisionError), model.trace(X):
        _ = model.first.source.softly_0.source.scaled_0.output / (1 // 0)
    with pytest.raises(RuntimeError), model.trace(torch.zeros(5, 7)):
        _ = model.first.source.hidden_1.output
    with model.trace(X) as tracer:
        _ = model.first.source.hidden_1.output
        tracer.stop()
    assert {name: dict(vars(module)) for name, module in net.named_modules()} == before
    assert pickle.dumps(net.first.proj) == pickled


def test_a_forward_set_on_the_instance_is_kept(net: Net, model: il.Model) -> None:
    """Other libraries (accelerate) patch `forward` on the instance."""
    plain, original = net(X), net.first.forward

    def patched(x: torch.Tensor) -> torch.Tensor:
        moved = x + 0
        return original(moved)

    net.first.forward = patched  # type: ignore[method-assign, assignment]
    with model.trace(X):
        moved = model.first.source.moved_0.output
        product = model.first.source.original_0.source.matmul_0.output
        out = model.output
    assert torch.equal(moved, X)
    assert product.shape == (2, 2)
    assert torch.equal(out, plain)
    assert net.first.forward is patched


def test_a_copy_made_during_a_trace_stands_on_its_own(net: Net, model: il.Model) -> None:
    with model.trace(X):
        _ = model.first.source.hidden_0.output
        copied = copy.deepcopy(net)
    for parameter in copied.parameters():
        parameter.data.zero_()
    assert not torch.equal(copied(X), net(X))


def test_traces_do_not_see_each_other(net: Net, model: il.Model) -> None:
    """A plain call, a second trace and a thread each run what is theirs."""
    plain = net(X)
    with model.trace(X):
        model.first.source.hidden_1.output = torch.zeros(2, 3)
        assert torch.equal(net(X), plain)
        with model.trace(X):
            inner = model.first.source.hidden_1.output
            assert torch.equal(model.output, plain)
        changed = model.output
    assert inner.abs().sum() > 0
    assert not torch.equal(changed, plain)

    failures: list[BaseException] = []

    def work(value: float) -> None:
        try:
            for _ in range(20):
                with model.trace(X):
                    model.first.source.hidden_1.output = torch.full((2, 3), value)
                    assert model.first.source.softly_0.inputs[0][0][0, 0] == value
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(float(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert "forward" not in vars(net.first)


def test_nothing_leaks() -> None:
    """Reference counting frees what was read and all that the run put in place."""
    gc.collect()
    gc.disable()
    try:
        model = il.Model(Net())
        with model.trace(X):
            value = model.first.source.softly_0.source.scaled_0.output
            _ = model.first.source.hidden_3.output
        with pytest.raises(ZeroDivisionError), model.trace(X):
            _ = model.first.source.softly_0.source.scaled_0.output / (1 // 0)
        seen = weakref.ref(value)
        del value
        assert seen() is None
        assert not [one for one in gc.get_objects() if type(one) is Frame]
    finally:
        gc.enable()


def test_sources_serve_the_module_that_takes_the_place_of_another(model: il.Model) -> None:
    """S-69: real weights come into the tree after a source was taken from it."""
    source = model.first.source
    real = Net().eval()
    model._tree.repoint(real)
    with model.trace(X):
        projected = source.self_proj_0.output
    assert torch.equal(projected, real.first.proj(X))


def test_the_object_that_source_returns(model: il.Model) -> None:
    """S-60: iteration, completion, `source`, `line_numbers`, `operations`; no trace is needed."""
    source = model.first.source
    names = [operation.name for operation in source]
    assert names[:3] == ["self_proj_0", "hidden_0", "matmul_0"]
    assert set(names) <= set(dir(source))
    assert list(source.operations) == list(source.line_numbers) == names
    assert len(source) == len(names)
    assert "matmul_0" in source
    assert "missing_0" not in source
    assert source.source.strip().startswith("def forward(self, x: torch.Tensor")
    operation = source.matmul_1
    assert (operation.name, operation.kind, operation.source_code) == (
        "matmul_1",
        "operator",
        "hidden @ hidden.T @ x",
    )
    assert operation.line_number == source.line_numbers["matmul_1"]


def test_printing(model: il.Model) -> None:
    """S-61, S-62."""
    rows = str(model.first.source).splitlines()
    row = next(n for n, row in enumerate(rows) if "matmul_0 ->" in row)
    assert rows[row].endswith("hidden = hidden @ hidden.T @ x + shift")
    assert rows[row + 1].split() == ["matmul_1", "+"]
    shown = str(model.first.source.matmul_1)
    assert shown.splitlines()[0] == "model.first.source.matmul_1"
    assert sum(line.startswith("->") for line in shown.splitlines()) == 1
    assert repr(model.first.source) == str(model.first.source)


# -- bad input: one clear error each


def test_no_such_operation(model: il.Model) -> None:
    """S-60: the nearest names; also what a name from another version of the code gets."""
    with pytest.raises(
        NameMissError, match=r"no operation `matmul_7`\. Did you mean `matmul_1` or `matmul_0`"
    ):
        _ = model.first.source.matmul_7
    with pytest.raises(NameMissError, match=r"cannot be assigned; write to its `.output`"):
        model.first.source.matmul_0 = 3
    with pytest.raises(
        NameMissError, match=r"An operation has no `outputs` to assign\. Did you mean `output`"
    ):
        model.first.source.matmul_0.outputs = 3


def test_outside_a_trace(model: Any) -> None:
    """S-58, S-66: there are no values, and nothing to go down into."""
    asks: tuple[Callable[[Any], Any], ...] = (
        lambda o: o.output,
        lambda o: o.inputs,
        lambda o: o.input,
        lambda o: o.source,
        lambda o: o.skip(1),
    )
    for ask in asks:
        with pytest.raises(
            OutsideTraceError, match=r"`model.first.source.softly_0.*` exists only inside a trace"
        ):
            ask(model.first.source.softly_0)
    with pytest.raises(OutsideTraceError):
        model.first.source.softly_0.output = X


def test_never_reached(model: il.Model) -> None:
    with (
        pytest.raises(NotReachedError, match=r"`model.source.torch_tanh_0.output` was not reached"),
        model.trace(X),
    ):
        _ = model.source.torch_tanh_0.output


def test_in_the_wrong_order(model: il.Model) -> None:
    with model.trace(X):
        _ = model.first.source.softly_0.output
        with pytest.raises(OrderError, match=r"`model.first.source.matmul_0.output` has passed"):
            _ = model.first.source.matmul_0.output
        with pytest.raises(
            OrderError, match=r"`model.first.source.softly_0.input` has passed|cannot be changed"
        ):
            _ = model.first.source.softly_0.source
        _ = model.second.proj.output
        with pytest.raises(OrderError, match=r"`model.second` is running already"):
            _ = model.second.source.matmul_0.output
        assert "matmul_0" in str(model.second.source)


def test_a_callee_that_is_a_module(model: il.Model) -> None:
    """S-66: the error points at that module's own `.source`."""
    with model.trace(X), pytest.raises(SourceError, match=r"`model.first.proj.source`"):
        _ = model.first.source.self_proj_0.source


def test_a_callee_without_python(model: il.Model) -> None:
    with model.trace(X):
        with pytest.raises(SourceError, match=r"`range` is a class"):
            _ = model.first.source.range_0.source
        with pytest.raises(SourceError, match=r"`relu` is not a Python function"):
            _ = model.first.source.torch_relu_0.source
    with pytest.raises(SourceError, match="is no call of a function"):
        _ = model.first.source.matmul_0.source


def test_a_wrong_replacement(model: il.Model) -> None:
    with model.trace(X), pytest.raises(WriteError, match=r"model.first.source.matmul_0.output"):
        model.first.source.matmul_0.output = torch.zeros(9)


def test_an_old_callee_in_a_new_trace(model: il.Model) -> None:
    with model.trace(X):
        inside = model.first.source.softly_0.source
    with model.trace(X), pytest.raises(OutsideTraceError, match="was found in another trace"):
        _ = inside.scaled_0.output


def test_compiled_modules(net: Net) -> None:
    """S-58: no readable Python code that runs: an error that says so."""
    compiled: Any = torch.compile(net.first, backend="eager")
    with pytest.raises(SourceError, match="its Python code does not run"):
        _ = il.Model(compiled).source
    scripted: dict[str, Any] = {"nn": nn}
    exec("class A(nn.Module):\n    def forward(self, x):\n        return x + 1\n", scripted)
    with pytest.raises(SourceError, match=r"`model.source` is not to be had: `A.forward` has no readable"):
        _ = il.Model(scripted["A"]()).source


def test_an_error_of_the_model_keeps_its_lines(net: Net, model: il.Model) -> None:
    """S-73: the traceback shows the model's own file and line."""
    with pytest.raises(RuntimeError) as caught, model.trace(torch.zeros(2, 7)):
        _ = model.first.source.hidden_1.output
    frames = [entry for entry in caught.traceback if entry.path == Path(__file__) and entry.name == "forward"]
    line = frames[-1].lineno + 1
    assert line == Block.forward.__code__.co_firstlineno + 1


# -- attention


@pytest.mark.language
def test_fused_attention_says_so() -> None:
    """Under `sdpa` the scores never exist; the error names the way to have them."""
    model = il.Model(build_lm("sdpa"))
    attention = model.transformer.h[0].attn
    with model.trace(torch.arange(6)[None]):
        inside = attention.source.attention_interface_0.source
        with pytest.raises(NameMissError, match=r'attn_implementation="eager"'):
            _ = inside.nn_functional_softmax_0
        with pytest.warns(
            InterlaceWarning, match=r"`model.transformer.h\[0\].attn.source.attn_weights_1.output` is None"
        ):
            assert attention.source.attn_weights_1.output is None


@pytest.mark.language
def test_attention_probabilities() -> None:
    """S-59, S-66: the names that the contract shows, and a row of probabilities that sums to one."""
    model = il.Model(build_lm())
    attention = model.transformer.h[0].attn
    assert {"self_c_proj_0", "attention_interface_0", "contiguous_0"} <= set(attention.source.operations)
    with model.trace(torch.arange(6)[None]):
        scores = attention.source.attention_interface_0.source
        probabilities = scores.nn_functional_softmax_0.output
        scores.nn_functional_softmax_0.output = torch.zeros_like(probabilities)
        mixed = scores.torch_matmul_1.output
    assert torch.allclose(probabilities.sum(-1), torch.ones(1, 4, 6))
    assert not mixed.any()


def test_a_notebook_shows_the_listing() -> None:
    """S-61: with the names of the operations in bold, and nothing that a browser would take for markup."""
    shown = il.Model(nn.Sequential(nn.Linear(2, 3)))[0].source._repr_html_()
    assert "<b>F_linear_0</b> -&gt;" in shown
    assert shown.count("<b>") == shown.count("</b>") == 1
    assert re.sub(r"</?b>|</?pre.*?>", "", shown).count("<") == 0


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.tanh(self.a(x) * 2)
        return self.b(z)  # type: ignore[no-any-return]


def test_operations_under_invokes_are_those_of_the_rows() -> None:
    """S-58, S-72, law 3: an invoke reads and writes the operations of its own rows."""
    net = Doubling()
    model = il.Model(net)
    one, two = torch.randn(1, 3), torch.randn(2, 3)
    with model.trace(one):
        alone = model.source.torch_tanh_0.output
    with model.trace() as tracer:
        with tracer.invoke(one):
            read = model.source.torch_tanh_0.output
            model.source.z_0.output = torch.zeros(1, 3)
            written = model.output
        with tracer.invoke(two):
            other = model.source.torch_tanh_0.output
            untouched = model.output
    torch.testing.assert_close(read, alone)
    assert other.shape == (2, 3)
    torch.testing.assert_close(written, net.b(torch.zeros(1, 3)))
    torch.testing.assert_close(untouched, net(two))


def test_an_edit_of_an_operation_stays() -> None:
    """S-58, S-39: in plain calls and in traces of the edited model; the original stays as it was."""
    net = Doubling()
    model = il.Model(net)
    x = torch.randn(2, 3)

    def silence(model: Any) -> None:
        model.source.z_0.output = torch.zeros(2, 3)

    edited = model.edit(silence)
    assert torch.equal(edited(x), net.b(torch.zeros(2, 3)))
    assert torch.equal(model(x), net(x))
    with edited.trace(x):
        read, out = edited.source.torch_tanh_0.output, edited.output
    assert torch.equal(read, torch.tanh(net.a(x) * 2))
    assert torch.equal(out, net.b(torch.zeros(2, 3)))

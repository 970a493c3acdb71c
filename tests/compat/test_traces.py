"""Programs as nnsight's documentation writes them, over plain modules: reads, writes, skips, errors."""

from typing import Any

import pytest
import torch

import interlace as il
import interlace.compat.nnsight as nnsight
from interlace.compat.nnsight import Envoy, NNsight
from interlace.compat.nnsight.intervention.interleaver import Mediator
from interlace.errors import NameMissError, OrderError
from tests.compat.hooks import changed, outputs
from tests.models import Transformer, ids, sequential


def test_values_are_saved() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(5, 10), torch.nn.Linear(10, 2))
    tiny_model = NNsight(net)
    x = torch.rand((1, 5))
    with outputs(net[0]) as seen:
        out = net(x)
    with tiny_model.trace(x) as tracer:
        l1_input = tiny_model[0].input.save()
        l1_output = tiny_model[0].output.save()
        width = tiny_model[0].output.shape[-1].save()
        l2_args, l2_kwargs = tiny_model[1].inputs.save()
        output = tiny_model.output.save()
    assert torch.equal(l1_input, x)
    assert torch.equal(l1_output, seen[0])
    assert torch.equal(l2_args[0], seen[0])
    assert torch.equal(output, out)
    assert torch.equal(tracer.result, out)
    assert l2_kwargs == {}
    assert width == 10


def test_functions_methods_and_operations(net: Transformer, model: Any) -> None:
    with outputs(net.h[0]) as seen:
        net(ids())
    with model.trace(ids()):
        value = model.h[0].output[0].sum()
        doubled = (value + model.h[0].output[0].sum()).save()
        best = max(value.item(), 0.0).save()
        rows = [row.mean() for row in model.h[0].output[0]].save()
    assert doubled == 2 * seen[0][0].sum()
    assert best == max(seen[0][0].sum().item(), 0.0)
    assert torch.equal(torch.stack(rows), seen[0][0].mean((1, 2)))


def test_setting(net: Transformer, model: Any) -> None:
    with changed(net.h[0], lambda out: (0 * out[0],)):
        zeroed = net(ids()).logits
    with changed(net.h[0], lambda out: (torch.ones_like(out[0]),)):
        ones = net(ids()).logits
    with model.trace(ids()):
        before = model.h[0].output[0].clone().save()
        model.h[0].output[0][:] = 0
        after = model.h[0].output[0].save()
        logits = model.lm_head.output.save()
    assert before.abs().sum() > 0
    assert after.abs().sum() == 0
    assert torch.equal(logits, zeroed)
    with model.trace(ids()):
        model.h[0].output = (torch.ones_like(model.h[0].output[0]),)
        logits = model.output.logits.save()
    assert torch.equal(logits, ones)


def test_setting_an_input(net: Transformer, model: Any) -> None:
    with changed(net.ln_f, lambda out: net.ln_f.forward(torch.ones(2, 5, 8))):
        want = net(ids()).logits
    with model.trace(ids()):
        model.ln_f.input = torch.ones(2, 5, 8)
        first = model.output.logits.save()
    with model.trace(ids()):
        model.ln_f.inputs = ((torch.ones(2, 5, 8),), {})
        second = model.output.logits.save()
    assert torch.equal(first, want)
    assert torch.equal(second, want)


def test_conditions_and_loops(model: Any) -> None:
    kept = []
    with model.trace(ids()):
        for layer in model.h:
            hidden = layer.output[0]
            if hidden.mean() > -100:
                kept.append(hidden.save())
        names = [layer.path for layer in model.h].save()
    assert len(kept) == 2
    assert names == ["model.h.0", "model.h.1"]


def test_skipping(net: Transformer, model: Any) -> None:
    with changed(net.h[1], lambda out: None), outputs(net.h[0]) as seen:
        net(ids())
    with model.trace(ids()):
        model.h[1].skip(model.h[0].output)
        logits = model.output.logits.save()
    assert torch.equal(logits, net.lm_head(net.ln_f(seen[0][0])))


def test_logit_lens(net: Transformer, model: Any) -> None:
    probs = []
    with model.trace(ids()):
        for layer in model.h:
            probs.append(model.lm_head(model.ln_f(layer.output[0])).softmax(-1).save())
        last = model.output.logits.softmax(-1).save()
    assert torch.equal(probs[-1], last)
    assert probs[0].shape == (2, 5, 11)


def test_a_module_that_was_attached_counts_with_hook(net: Transformer, model: Any) -> None:
    model.h[0].adapter = torch.nn.Linear(8, 8)
    with model.trace(ids()):
        hidden = model.h[0].output[0]
        model.h[0].adapter(hidden, hook=True)
        seen = model.h[0].adapter.output.save()
        model.h[0].output = (seen,)
        logits = model.output.logits.save()
    with changed(net.h[0], lambda out: (net.h[0].adapter(out[0]),)):
        assert torch.equal(net(ids()).logits, logits)


def test_stopping(model: Any) -> None:
    with model.trace(ids()) as tracer:
        first = model.h[0].output[0].save()
        tracer.stop()
    with outputs(model.h[1]._module) as seen, model.trace(ids()) as tracer:
        model.h[0].output.save()
        tracer.stop()
    assert first.shape == (2, 5, 8)
    assert seen == []


def test_sessions_share_values(net: Transformer, model: Any) -> None:
    with outputs(net.h[0]) as seen:
        net(ids())
    with model.session() as session:
        with model.trace(ids()):
            hidden = model.h[0].output[0].save()
        with model.trace(torch.zeros(2, 5, dtype=torch.long)):
            model.h[0].output[0][:] = hidden
            logits = model.output.logits.save()
    assert session.model is model
    assert torch.equal(hidden, seen[0][0])
    assert torch.equal(logits, net(ids()).logits)
    with model.session(remote=False):
        pass


def test_without_a_block(net: Transformer, model: Any) -> None:
    assert torch.equal(model.trace(ids(), trace=False).logits, net(ids()).logits)
    assert torch.equal(model(ids()).logits, net(ids()).logits)
    with model.trace(ids(), trace=True):
        logits = model.output.logits.save()
    assert torch.equal(logits, net(ids()).logits)


def test_options_that_say_where_it_runs(model: Any) -> None:
    with model.trace(ids(), remote=False, scan=False, validate=False):
        here = model.output.logits.save()
    with model.trace(ids(), remote="local"):
        assert torch.equal(model.output.logits, here)
    with pytest.raises(
        NotImplementedError, match=r"`trace\(remote=True\)` asks for another machine"
    ) as raised:
        model.trace(ids(), remote=True)
    assert "the model runs here" in str(raised.value)
    for opened in (lambda: model.session(remote=True), lambda: model.trace(ids(), backend="https://example")):
        with pytest.raises(nnsight.NNsightException, match="asks for another machine"):
            opened()
    with pytest.warns(DeprecationWarning, match="`validate=` is an old form"):
        model.trace(ids(), validate=True)


def test_errors_of_requests(model: Any) -> None:
    with pytest.raises(Mediator.OutOfOrderError), model.trace(ids()):
        model.h[1].output.save()
        model.h[0].output.save()
    with pytest.raises(Mediator.MissedProviderError), model.trace(ids()):
        model.h[1].output.save()
        model.h[0].output.save()
    assert Mediator.OutOfOrderError is OrderError
    with pytest.raises(ValueError, match="only inside a trace"):
        model.h[0].output
    with pytest.raises(ValueError, match="without an input"), model.trace():
        model.output.save()


def test_the_tree(model: Any) -> None:
    assert isinstance(model, Envoy)
    assert isinstance(model.h[0], Envoy)
    assert issubclass(NNsight, il.Model)
    assert model.get("h.0.mlp.up").path == "model.h.0.mlp.up"
    assert [path for path, _ in model.named_modules(lambda envoy: "ln" in envoy.path)] == [
        "model.h.0.ln_1",
        "model.h.0.ln_2",
        "model.h.1.ln_1",
        "model.h.1.ln_2",
        "model.ln_f",
    ]
    assert "(h)" in repr(model)


def test_renaming() -> None:
    model = NNsight(
        Transformer(), rename={"h": "layers", "attn": ["attention", "self_attn"], ".lm_head": ".unembed"}
    )
    with model.trace(ids()):
        one = model.layers[0].attention.output[0].save()
    with model.trace(ids()):
        same = model.h[0].attn.output[0].save()
        logits = model.unembed.output.save()
    assert torch.equal(one, same)
    assert logits.shape == (2, 5, 11)


def test_a_subclass_and_a_method() -> None:
    class Twice(NNsight):
        def __nnsight_encode__(self, x: Any) -> Any:
            return self._module(2 * x)

    net = sequential()
    net.encode = lambda x: net(x)  # type: ignore[assignment]
    model: Any = Twice(net)
    with model.encode(torch.ones(1, 3)):
        out = model[2].output.save()
    assert torch.equal(out, net(2 * torch.ones(1, 3)))


def test_what_is_not_here_says_what_to_write() -> None:
    for name, why in (("VLLM", "NNsight"), ("ndif_status", "none"), ("stop", r"tracer\.stop")):
        with pytest.raises(NameMissError, match=f"`nnsight.{name}` is not here.*{why}"):
            getattr(nnsight, name)
    with pytest.raises(AttributeError, match=r"no `LanguagModel`\. Did you mean `LanguageModel`"):
        nnsight.LanguagModel
    assert {"NNsight", "LanguageModel", "save"} <= set(dir(nnsight))

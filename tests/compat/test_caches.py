"""`tracer.cache` in the forms of nnsight's documentation."""

from typing import Any

import pytest
import torch

from interlace.compat.nnsight import NNsight
from tests.compat.hooks import changed, first, outputs
from tests.models import Transformer, ids


def test_everything(net: Transformer, model: Any) -> None:
    with outputs(net.h[0].mlp) as mlp, outputs(net.h[1]) as block:
        net(ids())
    with model.trace(ids()) as tracer:
        cache = tracer.cache().save()
    assert torch.equal(cache["model.h.0.mlp"].output, mlp[0])
    assert torch.equal(cache.model.h[0].mlp.output, mlp[0])
    assert torch.equal(cache["model.h.1"].output[0], block[0][0])
    assert torch.equal(cache.model.h[1].output[0], block[0][0])
    assert {"model", "model.h.0", "model.lm_head"} <= set(cache.keys())
    assert [key for key, _ in cache.items()] == list(cache)


def test_some_modules_and_their_inputs(net: Transformer, model: Any) -> None:
    with outputs(net.h[0]) as seen:
        net(ids())
    with model.trace(ids()) as tracer:
        cache = tracer.cache(modules=[model.h[1], "model.ln_f"], include_inputs=True)
    assert set(cache) == {"model.h.1", "model.ln_f"}
    assert torch.equal(cache["model.h.1"].input, seen[0][0])
    args, kwargs = cache["model.h.1"].inputs
    assert torch.equal(args[0], seen[0][0])
    assert list(kwargs) == ["mask"]
    with model.trace(ids()) as tracer:
        only_inputs = tracer.cache(modules=[model.ln_f], include_output=False, include_inputs=True)
    assert torch.equal(only_inputs.model.ln_f.input, cache["model.ln_f"].input)


def test_after_interventions(net: Transformer, model: Any) -> None:
    with changed(net.h[0].mlp, lambda out: 0 * out), outputs(net.h[1]) as seen:
        net(ids())
    with model.trace(ids()) as tracer:
        cache = tracer.cache(device=torch.device("cpu"), dtype=torch.float64, detach=True)
        model.h[0].mlp.output[:] = 0
    assert cache["model.h.0.mlp"].output.abs().sum() == 0
    assert torch.equal(cache["model.h.1"].output[0], seen[0][0].double())
    assert not cache["model.h.1"].output[0].requires_grad


def test_under_other_names(net: Transformer) -> None:
    model: Any = NNsight(net, rename={"h": "layers", "mlp": "feed"})
    with model.trace(ids()) as tracer:
        cache = tracer.cache()
    assert torch.equal(cache.model.layers[0].feed.output, cache["model.h.0.mlp"].output)


def test_a_prompt_of_several(net: Transformer, model: Any) -> None:
    with outputs(net.h[0]) as seen:
        net(torch.tensor([[4, 5, 6]]))
    with model.trace() as tracer:
        with tracer.invoke(torch.tensor([[1, 2, 3]])):
            one = model.h[0].output[0].save()
        with tracer.invoke(torch.tensor([[4, 5, 6]])):
            cache = tracer.cache(modules=[model.h[0]])
    assert torch.allclose(cache["model.h.0"].output[0], seen[0][0])
    assert one.shape == (1, 3, 8)


@pytest.mark.language
def test_a_generation(lm: Any) -> None:
    with (
        outputs(lm._module.transformer.h[0]) as seen,
        lm.generate("a b c", max_new_tokens=3, min_new_tokens=3) as tracer,
    ):
        cache = tracer.cache(modules=[lm.transformer.h[0]])
    entry = cache["model.transformer.h.0"]
    assert len(entry.output) == len(seen) == 3
    for number, want in enumerate(seen):
        assert torch.equal(first(entry[number].output), first(want))

"""Several prompts in one forward, in the forms of nnsight's documentation."""

from typing import Any

import torch

from tests.compat.hooks import changed, outputs
from tests.models import Transformer, ids

CLEAN, CORRUPTED = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5, 6]])


def test_two_prompts_and_the_whole_batch(net: Transformer, model: Any) -> None:
    with outputs(net.h[0]) as seen:
        first, second = net(CLEAN).logits, net(CORRUPTED).logits
    with model.trace() as tracer:
        with tracer.invoke(CLEAN):
            hidden = model.h[0].output[0].save()
            one = model.lm_head.output.save()
        with tracer.invoke(CORRUPTED):
            two = model.lm_head.output.save()
        with tracer.invoke():
            both = model.lm_head.output.save()
    assert torch.allclose(hidden, seen[0][0])
    assert torch.allclose(one, first)
    assert torch.allclose(two, second)
    assert torch.allclose(both, torch.cat([first, second]))


def test_activation_patching(net: Transformer, model: Any) -> None:
    """A value of one prompt goes into another by a plain variable."""
    with outputs(net.h[0]) as seen:
        net(CLEAN)
    with changed(net.h[0], lambda out: (seen[0][0],)):
        want = net(CORRUPTED).logits
    with model.trace() as tracer:
        with tracer.invoke(CLEAN):
            clean_hs = model.h[0].output[0]
        with tracer.invoke(CORRUPTED):
            model.h[0].output = (clean_hs,)
            logits = model.output.logits.save()
    assert torch.allclose(logits, want)


def test_a_barrier(net: Transformer, model: Any) -> None:
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(CLEAN):
            embeddings = model.embed.output
            barrier()
            one = model.output.logits.save()
        with tracer.invoke(CORRUPTED):
            barrier()
            model.embed.output = embeddings
            two = model.output.logits.save()
    assert torch.allclose(one, net(CLEAN).logits)
    assert torch.allclose(two, one)


def test_a_loop_of_prompts(net: Transformer, model: Any) -> None:
    """Every pair of a token and a layer in one forward."""
    results = []
    with model.trace() as tracer:
        for layer in range(2):
            with tracer.invoke(CLEAN):
                model.h[layer].mlp.output[:] = 0
                results.append(model.output.logits[0, -1].save())
    for layer in range(2):
        with changed(net.h[layer].mlp, lambda out: 0 * out):
            assert torch.allclose(results[layer], net(CLEAN).logits[0, -1])


def test_a_batch_is_one_prompt(net: Transformer, model: Any) -> None:
    with model.trace() as tracer:
        with tracer.invoke(ids(3, 3)):
            three = model.output.logits.save()
        with tracer.invoke(CLEAN):
            one = model.output.logits.save()
    assert torch.allclose(three, net(ids(3, 3)).logits)
    assert torch.allclose(one, net(CLEAN).logits)


def test_text(lm: Any) -> None:
    """Prompts of several lengths are padded, and each gets what it would get alone."""
    with lm.trace("a b c d"):
        first = lm.lm_head.output[:, -1].save()
    with lm.trace("e f"):
        second = lm.lm_head.output[:, -1].save()
    with lm.trace() as tracer:
        with tracer.invoke("a b c d"):
            one = lm.lm_head.output[:, -1].save()
        with tracer.invoke("e f"):
            two = lm.lm_head.output[:, -1].save()
    with lm.trace(["a b c d", "e f"]):
        both = lm.lm_head.output[:, -1].save()
    assert torch.allclose(one, first, atol=1e-5)
    assert torch.allclose(two, second, atol=1e-5)
    assert torch.allclose(both, torch.cat([first, second]), atol=1e-5)

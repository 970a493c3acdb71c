"""Gradients in the forms of nnsight's documentation."""

from typing import Any

import pytest
import torch

from tests.compat.hooks import first
from tests.models import Transformer, ids


def gradients(net: Transformer) -> dict[str, torch.Tensor]:
    """The gradient of the sum of the logits at each block, had with hooks."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        block.register_forward_hook(
            lambda m, args, out, name=name: (
                out[0].register_hook(lambda grad: found.__setitem__(name, grad)) and None
            )
        )
        for name, block in net.h.named_children()
    ]
    net(ids()).logits.sum().backward()
    for hook in hooks:
        hook.remove()
    net.zero_grad()
    return found


def test_they_are_read(net: Transformer, model: Any) -> None:
    want = gradients(net)
    with model.trace(ids()):
        one = model.h[0].output[0]
        second = model.h[1].output[0]
        loss = model.output.logits.sum()
        with loss.backward():
            grad_second = second.grad.save()
            grad_first = one.grad.save()
    assert torch.equal(grad_second, want["1"])
    assert torch.equal(grad_first, want["0"])


def test_after_the_trace(net: Transformer, model: Any) -> None:
    want = gradients(net)
    with model.trace(ids()):
        hidden = model.h[0].output[0].save()
        loss = model.output.logits.sum().save()
    with loss.backward():
        grad = hidden.grad.save()
    assert torch.equal(grad, want["0"])


def test_they_are_changed(net: Transformer, model: Any) -> None:
    def weight_gradient(change: Any) -> torch.Tensor:
        hook = net.h[1].register_forward_hook(lambda m, args, out: out[0].register_hook(change) and None)
        net(ids()).logits.sum().backward()
        hook.remove()
        found = net.h[0].mlp.up.weight.grad.clone()
        net.zero_grad()
        return found

    doubled, zeroed = weight_gradient(lambda grad: 2 * grad), weight_gradient(lambda grad: 0 * grad)
    with model.trace(ids()):
        hidden = model.h[1].output[0]
        with model.output.logits.sum().backward():
            hidden.grad = hidden.grad * 2
    assert torch.allclose(net.h[0].mlp.up.weight.grad, doubled)
    net.zero_grad()
    with model.trace(ids()):
        hidden = model.h[1].output[0]
        with model.output.logits.sum().backward():
            hidden.grad[:] = 0
    assert torch.equal(net.h[0].mlp.up.weight.grad, zeroed)


def test_twice_over_one_graph(net: Transformer, model: Any) -> None:
    want = gradients(net)
    with model.trace(ids()):
        hidden = model.h[0].output[0]
        logits = model.output.logits
        with logits.sum().backward(retain_graph=True):
            one = hidden.grad.save()
        with (2 * logits.sum()).backward():
            two = hidden.grad.save()
    assert torch.equal(one, want["0"])
    assert torch.allclose(two, 2 * want["0"])


def test_a_plain_backward(net: Transformer, model: Any) -> None:
    with model.trace(ids()):
        model.h[0].output[0].retain_grad()
        hidden = model.h[0].output[0].save()
        model.output.logits.sum().backward()
    assert hidden.grad is not None
    assert net.h[0].mlp.up.weight.grad is not None


def test_attribution_patching(net: Transformer, model: Any) -> None:
    """A clean prompt's values times the gradients of another prompt's metric."""
    clean, other = ids(), (ids() + 3) % 11
    with model.trace(clean):
        kept = [layer.output[0].detach().save() for layer in model.h]
    with model.trace(other):
        values = [layer.output[0] for layer in model.h]
        metric = model.output.logits[:, -1, 0].sum()
        with metric.backward():
            grads = [value.grad.save() for value in reversed(values)][::-1]
    effects = [((a - b.detach()) * g).sum() for a, b, g in zip(kept, values, grads, strict=True)]
    want = torch.autograd.grad(net(other).logits[:, -1, 0].sum(), net.h[0].mlp.up.weight)
    assert all(torch.isfinite(effect) for effect in effects)
    assert torch.allclose(net.h[0].mlp.up.weight.grad, want[0])


def test_prompts(net: Transformer, model: Any) -> None:
    """Two prompts may both go backward."""
    a, b = torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5, 6]])
    alone = []
    for prompt in (a, b):
        with model.trace(prompt):
            hidden = model.h[0].output[0]
            with model.output.logits.sum().backward():
                alone.append(hidden.grad.save())
    with model.trace() as tracer:
        with tracer.invoke(a):
            hidden_a = model.h[0].output[0]
            with model.output.logits.sum().backward(retain_graph=True):
                grad_a = hidden_a.grad.save()
        with tracer.invoke(b):
            hidden_b = model.h[0].output[0]
            with model.output.logits.sum().backward():
                grad_b = hidden_b.grad.save()
    assert torch.allclose(grad_a, alone[0])
    assert torch.allclose(grad_b, alone[1])


@pytest.mark.language
def test_the_gradients_of_a_language_model(lm: Any) -> None:
    with lm.trace("a b c"):
        hidden = first(lm.transformer.h[0].output)
        with lm.output.logits[0, -1, 5].backward():
            grad = hidden.grad.save()
    assert grad.shape == (1, 3, 8)
    assert grad.abs().sum() > 0

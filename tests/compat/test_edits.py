"""Edits, bound as either generation binds them."""

from typing import Any

import pytest
import torch

from tests.compat.hooks import changed
from tests.models import Transformer, ids


def silent(net: Transformer) -> torch.Tensor:
    with changed(net.h[0].mlp, lambda out: 0 * out):
        found: torch.Tensor = net(ids()).logits
        return found


def test_a_copy_edited_by_the_names_of_the_original(net: Transformer, model: Any) -> None:
    with model.edit() as model_edited:
        model.h[0].mlp.output[:] = 0
    with model.trace(ids()):
        out = model.output.logits.save()
    with model_edited.trace(ids()):
        edited_out = model_edited.output.logits.save()
    assert torch.equal(out, net(ids()).logits)
    assert torch.equal(edited_out, silent(net))


def test_an_edited_copy_traced_and_read_by_the_names_of_the_original(net: Transformer, model: Any) -> None:
    """In a block, in one prompt of several, and in a trace of the original around it or beside it."""
    with model.edit() as model_edited:
        model.h[0].mlp.output[:] = 0
    with model_edited.edit() as twice:
        model_edited.h[1].mlp.output[:] = 0
    want = silent(net)
    with model_edited.trace(ids()):
        mlp = model.h[0].mlp.output.clone().save()
        own = model_edited.h[1].output[0].save()
        out = model.output.logits.save()
    assert torch.equal(out, want)
    assert mlp.abs().sum() == 0
    assert own.shape == (2, 5, 8)
    with model_edited.trace() as tracer:
        with tracer.invoke(ids(1)):
            one = model.output.logits.save()
        with tracer.invoke(ids(1)):
            model.lm_head.output[:] = 0
            other = model_edited.output.logits.save()
    assert torch.equal(one, want[:1])
    assert other.abs().sum() == 0
    with twice.trace(ids()):
        deep = (model.h[0].mlp.output.abs().sum() + model.h[1].mlp.output.abs().sum()).save()
    assert deep == 0
    with model.trace(ids()):
        with model_edited.trace(ids()):
            inner = model.output.logits.save()
        around = model.output.logits.save()
    assert torch.equal(inner, want)
    assert torch.equal(around, net(ids()).logits)
    with pytest.raises(ValueError, match="only inside a trace"):
        model.h[0].output


def test_a_copy_edited_by_its_own_names(net: Transformer, model: Any) -> None:
    with model.edit() as edited:
        edited.h[0].mlp.output[:] = 0
    assert torch.equal(edited(ids()).logits, silent(net))
    assert torch.equal(model(ids()).logits, net(ids()).logits)


def test_in_place_and_cleared(net: Transformer, model: Any) -> None:
    with model.edit(inplace=True) as same:
        model.h[0].mlp.output[:] = 0
    assert same is model
    with model.trace(ids()):
        out = model.output.logits.save()
    assert torch.equal(out, silent(net))
    model.clear_edits()
    with model.trace(ids()):
        out = model.output.logits.save()
    assert torch.equal(out, net(ids()).logits)


def test_an_attached_module_seen_by_later_traces(net: Transformer, model: Any) -> None:
    """An autoencoder in the stream, whose value later traces read."""
    model.h[0].sae = torch.nn.Linear(8, 8)
    with model.edit() as edited:
        hidden = model.h[0].output[0]
        model.h[0].output = (model.h[0].sae(hidden, hook=True),)
    with edited.trace(ids()):
        acts = edited.h[0].sae.output.save()
        logits = edited.output.logits.save()
    with changed(net.h[0], lambda out: (net.h[0].sae(out[0]),)):
        want = net(ids()).logits
    assert torch.equal(logits, want)
    assert acts.shape == (2, 5, 8)


def test_edits_stack(net: Transformer, model: Any) -> None:
    with model.edit() as one:
        model.h[0].mlp.output[:] = 0
    with one.edit() as two:
        one.h[1].mlp.output[:] = 0
    with changed(net.h[1].mlp, lambda out: 0 * out):
        want = silent(net)
    assert torch.equal(two(ids()).logits, want)
    assert torch.equal(one(ids()).logits, silent(net))


def test_a_later_trace_changes_the_attached_module(net: Transformer, model: Any) -> None:
    """The value that an edit computed with a module of its own is read and changed before the edit goes on."""
    model.h[0].sae = torch.nn.Linear(8, 8)
    with model.edit(inplace=True):
        model.h[0].output = (model.h[0].sae(model.h[0].output[0], hook=True),)
    with model.trace(ids()):
        x = model.h[0].sae.input.save()
        model.h[0].sae.output = torch.zeros(2, 5, 8)
        logits = model.output.logits.save()
    with changed(net.h[0], lambda out: (0 * out[0],)):
        want = net(ids()).logits
    assert x.shape == (2, 5, 8)
    assert torch.equal(logits, want)

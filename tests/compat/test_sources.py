"""`.source` in the forms of nnsight's documentation."""

from typing import Any

import pytest
import torch

from tests.compat.hooks import first
from tests.models import Transformer, ids


def test_operations_are_read_and_changed(net: Transformer, model: Any) -> None:
    with model.trace(ids()):
        scores = model.h[0].attn.source.scores_softmax_0.output.save()
        pattern = model.h[0].attn.output[1].save()
    assert torch.equal(scores, pattern)
    assert "scores_softmax_0" in str(model.h[0].attn.source)
    with model.trace(ids()):
        model.h[0].attn.source.scores_softmax_0.output[:] = 0
        out = model.h[0].attn.output[0].save()
    assert torch.equal(out, net.h[0].attn.proj.bias.expand_as(out))
    with model.trace(ids()):
        args, kwargs = model.h[0].attn.source.scores_softmax_0.inputs.save()
    assert args == (-1,)
    assert kwargs == {}


@pytest.mark.language
def test_inside_the_attention_of_transformers(lm: Any) -> None:
    attn = lm.transformer.h[0].attn
    with lm.trace("a b c"):
        inner = attn.source.attention_interface_0.output.save()
        out = first(attn.output).save()
    assert inner[0].shape == (1, 3, 2, 4)
    with lm.trace("a b c"):
        attn.source.attention_interface_0.output[0][:] = 0
        silent = first(attn.output).save()
    assert torch.equal(silent, attn.c_proj.bias.expand_as(out))
    assert not torch.equal(silent, out)
    with lm.trace("a b c"):
        names = [name for name in attn.source.attention_interface_0.source.operations].save()  # noqa: C416
    assert names

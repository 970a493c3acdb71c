"""`model.scan` in the forms of nnsight's documentation."""

from typing import Any

import pytest

import interlace.compat.nnsight as nnsight
from tests.compat.hooks import first
from tests.models import ids


def test_shapes_without_a_run(model: Any) -> None:
    with model.scan(ids()):
        width = model.h[0].output[0].shape[-1].save()
        shape = nnsight.save(model.lm_head.output.shape)
    assert width == 8
    assert shape == (2, 5, 11)
    assert model.h[1].mlp.output.shape == (2, 5, 8)


def test_a_trace_that_scans_first(model: Any) -> None:
    with model.trace(ids(), scan=True):
        logits = model.output.logits.save()
    assert logits.shape == (2, 5, 11)
    assert model.h[0].mlp.output.shape == (2, 5, 8)


def test_what_is_out_of_bounds_is_an_error(model: Any) -> None:
    with pytest.raises(IndexError), model.scan(ids()):
        model.h[0].output[0][:, 10] = 0


@pytest.mark.language
def test_text(lm: Any) -> None:
    with lm.scan("a b c"):
        shape = first(lm.transformer.h[0].output).shape.save()
    assert shape == (1, 3, 8)

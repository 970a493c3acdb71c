"""Plans: what a block asks for, what it costs, and whether it works, before anything runs. (S-37)"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import interlace as il
from interlace.errors import CaptureError, InputError, ScanError
from interlace.fakes import active, has_no_values
from tests import models


@pytest.fixture
def model() -> il.Model:
    return il.Model(models.Transformer())


def test_a_block_that_works(model: il.Model) -> None:
    """Each request in order, with its kind, shape, dtype, device, bytes and line."""
    with torch.no_grad(), model.explain(models.ids()) as plan:
        kept = model.h[0].output[0]
        model.h[1].mlp.down.input  # noqa: B018
        model.h[1].mlp.output[:, 0] = 0
        model.ln_f.output = model.ln_f.output * 2
        model.lm_head.skip(torch.zeros(2, 5, 11))
    assert plan.works
    assert plan.problems == []
    assert has_no_values(kept)
    assert [(request.site, request.kind) for request in plan.requests] == [
        ("model.h[0].output", "read"),
        ("model.h[1].mlp.down.input", "read"),
        ("model.h[1].mlp.output", "edit"),
        ("model.ln_f.output", "write"),
        ("model.lm_head.skip()", "skip"),
    ]
    first = plan.requests[0]
    assert (first.shape, first.dtype, first.device) == ((2, 5, 8), torch.float32, torch.device("cpu"))
    assert first.bytes == 2 * 5 * 8 * 4
    assert first.line.startswith(f"{__file__}:")
    assert not first.late


def test_a_request_behind_the_model() -> None:
    """The input of a visit can be read at its output, so that is no problem; written it cannot be."""
    model = il.Model(models.Transformer())
    with model.explain(models.ids()) as plan:
        model.h[0].mlp.output  # noqa: B018
        model.h[0].mlp.input  # noqa: B018
    assert plan.works
    with model.explain(models.ids()) as plan:
        model.h[0].mlp.output  # noqa: B018
        model.h[0].mlp.input = torch.zeros(2, 5, 8)
        done = True
    assert done
    assert [request.late for request in plan.requests] == [False, True]
    assert "cannot be changed any more: the call has been made" in plan.problems[0]


def test_an_order_that_does_not_work(model: il.Model) -> None:
    """Every late request is told, not the first alone, and an order in which all of them work."""
    with model.explain(models.ids()) as plan:
        late = [model.h[n].mlp.output.shape for n in (1, 0)]
        late.append(model.embed.output.shape)
        final = model.lm_head.output
    assert final.shape == (2, 5, 11)
    assert late == [(2, 5, 8)] * 3
    assert not plan.works
    assert [request.late for request in plan.requests] == [False, True, True, False]
    assert len(plan.problems) == 2
    assert "`model.h[0].mlp.output` has passed" in plan.problems[0]
    assert [request.site for request in plan.order] == [
        "model.embed.output", "model.h[0].mlp.output", "model.h[1].mlp.output", "model.lm_head.output",
    ]  # fmt: skip
    with model.trace(models.ids()):
        for request in plan.order:
            model.get(request.site.replace("[", ".").replace("]", "").partition(".")[2])


def test_the_table(model: il.Model) -> None:
    """The repr has a row for each request, the bytes, and what works."""
    with model.explain(models.ids()) as plan:
        model.h[1].output  # noqa: B018
        model.h[0].mlp.output[:] = 0
    lines = repr(plan).split("\n")
    assert lines[0].split() == ["request", "value", "bytes", "kept", "line"]
    assert lines[1].startswith("0       model.h[1].output      read  (Tensor(2, 5, 8) float32 cpu)")
    assert lines[2].startswith("1 late  model.h[0].mlp.output  edit  Tensor(2, 5, 8) float32 cpu")
    assert lines[3].startswith("Kept when the block ends: ")
    assert lines[4].startswith(
        "Problem: `model.h[0].mlp.output` has passed; the model is paused at `model.h[1].output`"
    )
    assert lines[-2] == "An order that works: `model.h[0].mlp.output`, `model.h[1].output`."
    assert lines[-1] == "If what is written late depends on what was read before it, it takes a second trace."
    with model.explain(models.ids()) as plan:
        model.h[1].output  # noqa: B018
    assert repr(plan).endswith("The block works as it is written.")
    assert repr(model.explain(models.ids())).startswith(
        "A plan of nothing yet: `with model.explain(x) as plan:`"
    )


def test_what_is_kept(model: il.Model) -> None:
    """Bytes that the block holds when it ends, against the sizes of real tensors."""
    size = 2 * 5 * 8 * 4
    with torch.no_grad():
        with model.explain(models.ids()) as plan:
            for n in range(2):
                model.h[n].mlp.output  # noqa: B018
        assert plan.kept_bytes == 0
        assert [request.kept_bytes for request in plan.requests] == [0, 0]
        with model.explain(models.ids()) as plan:
            held = [model.h[n].mlp.output for n in range(2)]
        assert len(held) == 2
        assert plan.kept_bytes == 2 * size
        assert [request.kept_bytes for request in plan.requests] == [size, size]
        with model.explain(models.ids()) as plan:
            row = model.h[0].output[0][0]  # a view keeps all that it is a view of
            copied = model.h[1].mlp.output[0].clone()
        assert (row.shape, copied.shape) == ((5, 8), (5, 8))
        assert plan.kept_bytes == size + size // 2
        assert plan.peak_bytes >= plan.kept_bytes
    with model.explain(models.ids()) as plan:
        graph = model.h[1].mlp.output
    assert graph.requires_grad
    assert plan.kept_bytes > 10 * size  # a value holds what its backward pass needs


def test_a_function(model: il.Model) -> None:
    """Of the model, or of the model and the trace; what it returns is what is kept."""

    def patterns(model: Any) -> list[torch.Tensor]:
        return [model.h[n].attn.output[1] for n in range(2)]

    with torch.no_grad():
        plan = model.explain(patterns, models.ids())
    assert plan.works
    assert plan.kept_bytes == 2 * (2 * 2 * 5 * 5 * 4)
    assert [tuple(value.shape) for value in plan.returned] == [(2, 2, 5, 5)] * 2

    def steps(model: Any, tracer: Any) -> None:
        for _ in tracer.iter[:2]:
            model.lm_head.output  # noqa: B018

    plan = model.explain(steps, models.ids(), fn="generate")
    assert [(str(request), request.shape) for request in plan.requests] == [
        ("`model.lm_head.output`", (2, 5, 11)),
        ("`model.lm_head.output` (visit 1)", (2, 6, 11)),
    ]


def test_several_prompts(model: il.Model) -> None:
    """Each block has an order of its own."""
    with model.explain() as plan:
        with plan.invoke(models.ids(1)):
            first = model.h[1].output[0]
            model.h[0].output  # noqa: B018
        with plan.invoke(models.ids(2)):
            second = model.h[0].output[0]
    assert (first.shape, second.shape) == ((1, 5, 8), (2, 5, 8))
    late = {request.site: request.block for request in plan.requests if request.late}
    assert list(late) == ["model.h[0].output"]
    assert late["model.h[0].output"].startswith("the block at line ")
    assert len({request.block for request in plan.requests}) == 2
    assert not plan.works


def test_what_is_never_reached_and_what_does_not_fit(model: il.Model) -> None:
    """Both are lines of the plan; what follows them in the block does not run."""
    odd = il.Model(models.Odd())
    with odd.explain(torch.ones(2, 3)) as plan:
        odd.inner.output  # noqa: B018
        odd.dead.output  # noqa: B018
        raise AssertionError
    assert "`model.dead.output` was not reached" in plan.problems[0]
    assert [request.site for request in plan.requests] == ["model.inner.output"]
    with model.explain(models.ids()) as plan:
        model.h[0].mlp.output = torch.zeros(3)
    assert "`model.h[0].mlp.output` cannot be replaced: its shape is (3,)" in plan.problems[0]


def test_other_errors_leave_the_block(model: il.Model) -> None:
    """Law 11: the user's, the model's, and what a scan cannot do."""
    with pytest.raises(KeyError), model.explain(models.ids()):
        raise KeyError
    with pytest.raises(ScanError), il.Model(models.Experts()).explain(torch.ones(2, 3)):
        pass
    message = r"`model\.explain\(\)` was opened without an input\.\nWrite `with model\.explain\(x\):`"
    with pytest.raises(InputError, match=message), model.explain():
        pass
    with pytest.raises(ZeroDivisionError):
        model.explain(lambda model: 1 / 0, models.ids())
    assert not active()


def test_a_function_that_would_only_be_begun_is_refused(model: il.Model) -> None:
    """A plan of nothing would say that it works."""

    def yields(model: il.Envoy) -> Iterator[object]:
        yield model.output

    with pytest.raises(CaptureError, match=r"yields` is to run later.*\nNothing has run"):
        model.explain(yields, models.ids())
    with pytest.raises(
        TypeError, match=r"`explain` takes a function of the model, or of the model and the trace, not"
    ):
        model.explain(lambda one, two, three: None, models.ids())
    assert not active()


def test_nothing_runs(model: il.Model) -> None:
    """No weights are needed, and the shapes are there afterwards as after a scan."""
    bare = il.Model(models.Transformer().to("meta"))
    plan = bare.explain(lambda model: model.h[0].output, models.ids())
    assert plan.works
    assert bare.h[1].mlp.output.shape == (2, 5, 8)
    assert next(bare._module.parameters()).is_meta

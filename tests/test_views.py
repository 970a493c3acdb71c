"""Own values of an Envoy subclass: derived from a site, and going back to it."""

# ruff: noqa: B018

from typing import Any

import pytest
import torch
from torch import Tensor

import interlace as il
from interlace.errors import OrderError, OutsideTraceError, TraceError, WriteError
from interlace.site import Visit
from tests.models import Attention, Mlp, Transformer, ids


class ByHead(il.Envoy):
    """Attention by head: `proj.input` has the heads side by side, `output` is `(output, pattern)`."""

    @il.view("proj.input")
    def heads(self, mixed: Tensor) -> Tensor:
        """What each head read: batch pos head d_head."""
        return mixed.unflatten(-1, (self.n_head, -1))  # type: ignore[no-any-return, no-untyped-call]

    @heads.back
    def _(self, mixed: Tensor, heads: Tensor) -> Tensor:
        return heads.flatten(-2)

    @il.view("output")
    def first_heads(self, output: Any) -> Tensor:
        """A copy, heads first: head batch pos d_head."""
        return output[0].unflatten(-1, (self.n_head, -1)).movedim(-2, 0).contiguous()  # type: ignore[no-any-return]

    @first_heads.back
    def _(self, output: Any, heads: Tensor) -> Any:
        return heads.movedim(0, -2).flatten(-2), *output[1:]

    @il.view("output")
    def norm(self, output: Any) -> Tensor:
        """Length of the output, only to be read."""
        return output[0].norm(dim=-1)  # type: ignore[no-any-return]

    @il.view("output")
    def broken(self, output: Any) -> Any:
        return self.no_such_thing

    @il.view("qkv.output")
    def q(self, qkv: Tensor) -> Tensor:
        """Queries, a copy."""
        return qkv.chunk(3, dim=-1)[0].clone()

    @q.back
    def _(self, qkv: Tensor, q: Tensor) -> Tensor:
        return torch.cat([q, *qkv.chunk(3, dim=-1)[1:]], dim=-1)

    @il.view("qkv.output")
    def k(self, qkv: Tensor) -> Tensor:
        """Keys, a copy."""
        return qkv.chunk(3, dim=-1)[1].clone()

    @k.back
    def _(self, qkv: Tensor, k: Tensor) -> Tensor:
        q, _, v = qkv.chunk(3, dim=-1)
        return torch.cat([q, k, v], dim=-1)


@pytest.fixture
def net() -> Transformer:
    return Transformer()


@pytest.fixture
def model(net: Transformer) -> il.Model:
    return il.Model(net, envoys={Attention: ByHead})


def test_a_view_is_read(model: il.Model) -> None:
    """S-98."""
    with model.trace(ids()):
        heads = model.h[0].attn.heads
        mixed = model.h[0].attn.proj.input
        copy = model.h[0].attn.first_heads
        assert model.h[0].attn.first_heads is copy
        out = model.h[0].attn.output[0]
    assert heads.shape == (2, 5, 2, 4)
    assert torch.equal(heads.flatten(-2), mixed)
    assert torch.equal(copy.movedim(0, -2).flatten(-2), out)


def test_reading_a_view_changes_nothing(net: Transformer, model: il.Model) -> None:
    """S-98, law 1."""
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            with model.trace(ids()):
                model.h[0].attn.heads
                model.h[0].attn.first_heads
                model.h[1].attn.norm
                logits = model.output.logits
            assert torch.equal(logits, net(ids()).logits)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["in place", "assigned", "augmented"])
@pytest.mark.parametrize("name", ["heads", "first_heads"])
def test_an_edited_view_goes_back(model: il.Model, name: str, kind: str, mode: Any) -> None:
    """S-98: in place with and without shared memory, by assignment, by `*=`; the same as by hand."""
    at = (slice(None), slice(None), 1) if name == "heads" else (1,)
    factor = torch.ones(2, 5, 2, 4) if name == "heads" else torch.ones(2, 2, 5, 4)
    factor[at] = 0
    with mode():
        with model.trace(ids()):
            attn = model.h[0].attn
            if kind == "in place":
                getattr(attn, name)[at] = 0
            elif kind == "assigned":
                setattr(attn, name, getattr(attn, name) * factor)
            elif name == "heads":
                attn.heads *= factor
            else:
                attn.first_heads *= factor
            ours = model.output.logits
        with model.trace(ids()):
            if name == "heads":
                model.h[0].attn.proj.input[..., 4:] = 0
            else:
                model.h[0].attn.output[0][..., 4:] = 0
            theirs = model.output.logits
    assert torch.equal(ours, theirs)


def test_an_edit_goes_back_when_the_block_ends(net: Transformer, model: il.Model) -> None:
    """S-98: when nothing is asked for after it."""
    with model.trace(ids()) as tracer:
        model.h[0].attn.first_heads[:] = 0
    with model.trace(ids()) as other:
        model.h[0].attn.output[0][:] = 0
    assert torch.equal(tracer.result.logits, other.result.logits)
    assert not torch.equal(tracer.result.logits, net(ids()).logits)


def test_two_views_of_one_site_are_both_edited(model: il.Model) -> None:
    """S-98: read first and edited later, in any order."""
    with model.trace(ids()):
        q, k = model.h[0].attn.q, model.h[0].attn.k
        q[..., 0] = 1
        k[..., 1] = 2
        q[..., 2] = 3
        after = model.h[0].attn.proj.input
    with model.trace(ids()):
        qkv = model.h[0].attn.qkv.output
        qkv[..., 0], qkv[..., 9], qkv[..., 2] = 1, 2, 3
        expected = model.h[0].attn.proj.input
    assert torch.equal(after, expected)


def test_gradients_flow_through_a_view(net: Transformer, model: il.Model) -> None:
    """S-98, law 2."""
    for name in ("heads", "first_heads"):
        scale = torch.ones((), requires_grad=True)
        with model.trace(ids()):
            setattr(model.h[0].attn, name, getattr(model.h[0].attn, name) * scale)
            loss = model.output.logits.square().sum()
        (grad,) = torch.autograd.grad(loss, [scale])
        assert grad.abs() > 0


def test_the_repr_describes_views(model: il.Model) -> None:
    """S-98, S-49."""
    text = repr(model.h[0].attn)
    assert ".heads: What each head read: batch pos head d_head." in text
    assert ".norm: Length of the output, only to be read." in text
    assert "# .heads" not in repr(model.h[0].mlp)


@pytest.mark.parametrize(
    "value", [torch.zeros(2, 5, 4, 2), torch.zeros(2, 5, 8), torch.zeros(2, 5, 2, 4, dtype=torch.int64), None]
)
def test_a_value_that_does_not_fit_is_refused(net: Transformer, model: il.Model, value: Any) -> None:
    """S-98, law 11."""
    with model.trace(ids()):
        with pytest.raises(WriteError, match=r"^`model\.h\[0\]\.attn\.heads` cannot be replaced: it"):
            model.h[0].attn.heads = value
        logits = model.output.logits
    assert torch.equal(logits, net(ids()).logits)


def test_a_shape_that_cannot_go_back_is_refused(net: Transformer) -> None:
    """S-98, law 11: the way back gives another shape, or fails."""

    class Odd(il.Envoy):
        @il.view("output")
        def short(self, output: Tensor) -> Tensor:
            """Comes back too short."""
            return output[..., 1:].clone()

        @short.back
        def _(self, output: Tensor, short: Tensor) -> Tensor:
            return short

        @il.view("output")
        def fails(self, output: Tensor) -> Tensor:
            """Fails on its way back."""
            return output.clone()

        @fails.back
        def _(self, output: Tensor, value: Tensor) -> Tensor:
            return value.reshape(7, 7)

    model = il.Model(net, envoys={Mlp: Odd})
    with model.trace(ids()):
        mlp = model.h[0].mlp
        with pytest.raises(
            WriteError,
            match=r"`model\.h\[0\]\.mlp\.short \(on its way back\)` cannot be replaced: its shape is \(2, 5, 7\)",
        ):
            mlp.short = mlp.short * 2
        with pytest.raises(
            WriteError, match=r"`model\.h\[0\]\.mlp\.fails` cannot go back: RuntimeError: shape"
        ):
            mlp.fails = mlp.fails * 2
        logits = model.output.logits
    assert torch.equal(logits, net(ids()).logits)
    with pytest.raises(WriteError, match=r"on its way back"), model.trace(ids()):
        model.h[0].mlp.short[:] = 0
    assert not model.interleaving
    assert torch.equal(model(ids()).logits, net(ids()).logits)


def test_a_view_without_a_way_back_can_only_be_read(model: il.Model) -> None:
    """S-98: an edit that would be lost is an error."""
    with model.trace(ids()):
        with pytest.raises(
            WriteError,
            match=r"`model\.h\[0\]\.attn\.norm` can only be read: its class declares no `@norm\.back`",
        ):
            model.h[0].attn.norm = torch.zeros(2, 5)
        model.h[0].attn.norm[:] = 0
        with pytest.raises(WriteError, match=r"can only be read"):
            model.output


def test_an_edit_and_a_replacement_do_not_mix(model: il.Model) -> None:
    """S-98: one of the two would be lost."""
    with model.trace(ids()):
        heads = model.h[0].attn.first_heads
        model.h[0].attn.output = (torch.zeros(2, 5, 8), model.h[0].attn.output[1])
        heads[:] = 1
        with pytest.raises(WriteError, match=r"first_heads` was edited in place.*replaced"):
            model.output


def test_a_view_outside_of_a_trace(model: il.Model) -> None:
    """S-98, S-33: readable after a scan."""
    with pytest.raises(OutsideTraceError, match=r"attn\.norm` exists only inside a trace"):
        model.h[0].attn.norm
    with pytest.raises(OutsideTraceError, match=r"`model\.h\[0\]\.attn\.heads` exists only inside a trace"):
        model.h[0].attn.heads = torch.zeros(1)
    with pytest.raises(OutsideTraceError, match=r"`model\.h\[0\]\.attn\.heads` exists .* or after a scan"):
        model.h[0].attn.heads
    seen = Visit(None, 0, (), {})
    seen.result = (torch.zeros(2, 5, 8), None)
    model._tree.shapes["model.h.0.attn"] = seen
    assert model.h[0].attn.norm.shape == (2, 5)


def test_a_view_in_a_backward_is_of_what_was_read_at_its_port(net: Transformer) -> None:
    """S-98, S-90: a view of an output is derived from the output that a trace has read."""

    class Pattern(il.Envoy):
        @il.view("output")
        def pattern(self, output: Any) -> Tensor:
            """Batch head query_pos key_pos."""
            return output[1]  # type: ignore[no-any-return]

    model = il.Model(net, envoys={Attention: Pattern})
    with model.trace(ids()):
        output = model.h[0].attn.output
        loss = model.output.logits.sum()
    (expected,) = torch.autograd.grad(loss, output[1], retain_graph=True)
    with il.backward(loss):
        assert torch.equal(model.h[0].attn.pattern.grad, expected)


def test_a_view_obeys_the_order(model: il.Model) -> None:
    """S-98, law 5."""
    with model.trace(ids()):
        model.h[0].attn.output
        with pytest.raises(OrderError, match=r"proj\.input` has passed"):
            model.h[0].attn.heads
    with model.trace(ids()):
        model.h[0].attn.proj.output
        with pytest.raises(OrderError, match=r"cannot be changed any more"):
            model.h[0].attn.heads = torch.zeros(2, 5, 2, 4)


def test_an_error_inside_a_view_is_told(model: il.Model) -> None:
    """S-98, law 11."""
    with (
        model.trace(ids()),
        pytest.raises(TraceError, match=r"attn\.broken` cannot be seen: .*no_such_thing"),
    ):
        model.h[0].attn.broken


def test_a_view_is_of_a_port() -> None:
    """S-98."""
    with pytest.raises(ValueError, match=r"of an `output`, an `input` or the `inputs`.*'weight'"):
        il.view("weight")(lambda self, value: value)


def test_both_functions_may_have_one_name() -> None:
    """S-98: as a property's."""

    class Own(il.Envoy):
        @il.view("output")
        def twice(self, output: Tensor) -> Tensor:
            """Twice the output."""
            return output * 2

        @twice.back  # type: ignore[no-redef]
        def twice(self, output: Tensor, twice: Tensor) -> Tensor:
            return twice / 2

    model = il.Model(Transformer(), envoys={"ln_f": Own})
    with model.trace(ids()):
        model.ln_f.twice += 2
        given = model.lm_head.input
    with model.trace(ids()):
        expected = model.ln_f.output + 1
    assert torch.allclose(given, expected)
    assert isinstance(Own.twice, il.views.View)

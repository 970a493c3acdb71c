"""Edits that stay."""

from __future__ import annotations

import contextvars
from typing import Any

import pytest
import torch
from torch import nn

import interlace as il
from tests.models import Constant

X = torch.ones(2, 4)


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), nn.Linear(4, 4))


@pytest.fixture
def model(net: nn.Sequential) -> il.Model:
    return il.Model(net)


def test_a_copy_is_edited_and_the_original_stays_clean(model: il.Model, net: nn.Sequential) -> None:
    """S-39, S-100: by a plain call, by a trace, in both forms."""
    value = 2.0
    with model.edit() as edited:
        model[2].output[:] = value
    value = 3.0

    def change(model: il.Envoy) -> None:
        model[2].output[:] = 2.0

    for changed in (edited, model.edit(change)):
        assert (changed(X) == 2).all()
        with changed.trace(X):
            traced = changed.output
        assert (traced == 2).all()
    torch.testing.assert_close(model(X), net(X))


@pytest.mark.parametrize("what", [3, lambda: None, lambda model, more: None])
def test_what_is_no_edit_is_refused(model: il.Model, what: Any) -> None:
    """S-39: where it is written, and not in every later run."""
    with pytest.raises(
        TypeError, match=r"function of one argument, the model, not .*\nWrite `model.edit\(lambda"
    ):
        model.edit(what)
    assert not model._tree.edits


def test_edits_stack_in_order_and_are_cleared(model: il.Model, net: nn.Sequential) -> None:
    """S-39, S-40."""
    with model.edit(inplace=True):
        model[2].output[:] = 1
    with model.edit(inplace=True):
        model[2].output += 1
    assert (model(X) == 2).all()
    model.clear_edits()
    torch.testing.assert_close(model(X), net(X))


def test_an_edit_reads_its_names_as_they_were(model: il.Model) -> None:
    """S-87: a loop variable does not change under an edit."""
    for at in (0, 1):
        with model.edit(inplace=True):
            model[2].output[:, at] = at + 5
    out = model(X)
    assert out[0, :2].tolist() == [5, 6]


def test_an_edit_of_a_child_acts_when_the_root_runs(model: il.Model) -> None:
    """S-39."""
    model[2].edit(lambda last: last.output.zero_(), inplace=True)
    assert (model(X) == 0).all()
    model.clear_edits()
    assert (model(X) == 0).all()
    model[2].clear_edits()
    assert (model(X) != 0).any()


def test_an_edit_elsewhere_does_not_disturb_a_trace_of_a_part(model: il.Model, net: nn.Sequential) -> None:
    model.edit(lambda model: model[0].output.zero_(), inplace=True)
    with model[1].trace(X):
        out = model[1].output
    torch.testing.assert_close(out, net[1](X))


def test_edits_come_before_other_blocks(model: il.Model) -> None:
    """S-89."""
    model.edit(lambda model: model[0].output.fill_(7), inplace=True)
    with model.trace() as tracer:
        with tracer.invoke(X):
            seen = model[0].output.clone()
        with tracer.invoke(X):
            model[0].output[:] = 1
            own = model[0].output.clone()
    assert (seen == 7).all()
    assert (own == 1).all()


def test_a_function_may_use_the_model_around_it(model: il.Model, net: nn.Sequential) -> None:
    """S-39, S-87: as a block does, on the copy that it edits, and on copies of that."""

    def change(_: il.Envoy) -> None:
        model[1].output[:] = 0

    edited = model.edit(change)
    again = edited.edit(lambda _: model[2].output.add_(1))
    expected = net[2](torch.zeros(2, 4))
    torch.testing.assert_close(edited(X), expected)
    torch.testing.assert_close(again(X), expected + 1)
    torch.testing.assert_close(model(X), net(X))


def test_an_edit_out_of_order_says_where_the_model_is(model: il.Model, net: nn.Sequential) -> None:
    """Law 11: in a plain call too, and the model is as it was."""
    edited = model.edit(lambda m: (m[2].output, m[0].output))
    with pytest.raises(
        il.errors.OrderError,
        match=r"`model\[0\].output` has passed; the model is paused at `model\[2\].output`",
    ):
        edited(X)
    torch.testing.assert_close(model(X), net(X))


def test_plain_calls_of_every_form() -> None:
    """S-100: the model, its `generate`, `trace=False`; in both forms of an edit."""
    model = il.demo_model()
    with model.edit() as block:
        model.lm_head.output[..., 5] = 1e4

    @model.edit
    def function(model: il.Envoy) -> None:
        model.lm_head.output[..., 5] = 1e4

    for edited in (block, function):
        assert edited.generate("a b", max_new_tokens=3, do_sample=False)[0, -3:].tolist() == [5, 5, 5]
        assert (edited("a b").logits.argmax(-1) == 5).all()
        assert (edited.trace("a b", trace=False).logits.argmax(-1) == 5).all()
    assert (model("a b").logits.argmax(-1) != 5).any()
    block.clear_edits()
    assert torch.equal(block("a b").logits, model("a b").logits)


def test_a_model_that_takes_nothing_is_called_with_its_edits() -> None:
    """S-100."""
    net = Constant(3)
    edited = il.Model(net).edit(lambda model: model.output.add_(1))
    assert torch.equal(edited(), net.value * 2 + 1)
    assert torch.equal(edited.interleave(), net.value * 2 + 1)


def test_an_edit_acts_in_every_forward_of_a_generation() -> None:
    """S-39, S-100."""
    model = il.demo_model()
    width = model.lm_head.weight.shape[0]

    def favor(model: il.Envoy) -> None:
        model.lm_head.output[..., 5] = 1e4

    edited = model.edit(favor)
    assert width > 5
    with edited.generate("a b", max_new_tokens=3, do_sample=False) as tracer:
        ids = tracer.result
    assert ids[0, -3:].tolist() == [5, 5, 5]


def test_prompts_of_different_lengths_are_padded() -> None:
    """S-71, S-72 on a language model, in a forward and in a generation."""
    model = il.demo_model()
    short, long = "a b", "one two three four five six"

    def alone(prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
        with model.trace(prompt):
            logits = model.output.logits[:, -1]
        with model.generate(prompt, max_new_tokens=3, do_sample=False) as tracer:
            ids = tracer.result
        return logits, ids[:, -3:]

    with model.trace() as tracer:
        with tracer.invoke(short):
            first = model.output.logits[:, -1]
        with tracer.invoke(long):
            second = model.output.logits[:, -1]
    with model.generate(max_new_tokens=3, do_sample=False) as tracer:
        with tracer.invoke(short):
            ids = tracer.result[:, -3:]
        with tracer.invoke(long):
            steps = [model.lm_head.output[:, -1].argmax(-1) for _ in tracer.iter[:]]
    for found, expected in zip((first, second), (alone(short)[0], alone(long)[0]), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert ids.tolist() == alone(short)[1].tolist()
    assert torch.stack(steps, 1).tolist() == alone(long)[1].tolist()


def test_a_call_on_the_side_of_an_edit_is_seen_by_all(model: il.Model, net: nn.Sequential) -> None:
    """S-32: by the block of a trace, which changes it before the edit goes on, by prompts and by caches."""
    extra = nn.Linear(4, 4)
    model[0].extra = extra

    def detour(model: il.Model) -> None:
        model[0].output = model[0].extra(model[0].output, hook=True)

    model.edit(detour, inplace=True)
    with torch.no_grad():
        want = extra(net[0](X))
        with model.trace(X) as tracer:
            cache = tracer.cache("0.extra")
            given = model[0].extra.input
            read = model[0].extra.output.clone()
            model[0].extra.output = torch.zeros(2, 4)
            out = model.output
        with model.trace() as tracer:
            with tracer.invoke(X):
                one = model[0].extra.output
            with tracer.invoke(X):
                model[0].extra.output[:] = 0
                two = model.output
    assert torch.equal(given, net[0](X))
    assert torch.equal(read, want)
    assert torch.equal(out, net[2](net[1](torch.zeros(2, 4))))
    assert cache["0.extra"].output.abs().sum() == 0
    assert torch.allclose(one, want)
    assert torch.allclose(two, out)


def test_a_call_on_the_side_before_the_model_begins(model: il.Model) -> None:
    """S-32."""
    model[0].extra = nn.Linear(4, 4)
    seen = []
    with model.trace() as tracer:
        with tracer.invoke(X):
            seen.append(model[0].extra(X, hook=True))
            hidden = model[0].output
        with tracer.invoke(X):
            first = model[0].output
    assert seen[0].shape == hidden.shape == first.shape


# -- an edit that is alone is the block of a plain call ------------------------------------------------------


def lone(change: Any) -> tuple[nn.Sequential, il.Envoy]:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    return net, il.Model(net).edit(change)


def test_what_a_lone_edit_sets_is_its_own() -> None:
    """Law 8: context variables and torch's state, as of several edits, which have stacks of their own."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    def change(model: il.Envoy) -> None:
        variable.set(1)
        torch.set_grad_enabled(False)
        model[0].output

    _, edited = lone(change)
    assert edited(X).requires_grad
    assert (variable.get(), torch.is_grad_enabled()) == (0, True)


@pytest.mark.parametrize("stacked", [False, True])
def test_the_models_error_is_not_for_an_edit_to_see(stacked: bool) -> None:
    """Law 11: it is the caller's, whatever the edit makes of it."""
    seen: list[BaseException] = []

    def change(model: il.Envoy) -> None:
        try:
            model[2].output
        except BaseException as error:
            seen.append(error)
            raise ValueError("made of it") from error

    _, edited = lone(change)
    if stacked:
        edited = edited.edit(lambda model: model[0].output)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        edited(torch.ones(2, 3))
    assert [type(error).__name__ for error in seen] == ["RunEnded"]


def test_what_a_lone_edit_calls_is_no_visit_of_a_run_around_it() -> None:
    """Law 5: the edited model is called inside of another model's run, which calls the same modules later."""
    inner = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    edited = il.Model(inner).edit(lambda model: model[0](torch.full((2, 4), 9.0)))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = edited(x) + self.part(x)
            return result

    outer = il.Model(Outer())
    with outer.trace(X):
        first = outer.part[0].output
    torch.testing.assert_close(first, inner[0](X))


def test_a_lone_edit_inside_a_transform_of_torch_func_says_where_it_can_ask() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.func.vmap(self.inner)(x)  # type: ignore[no-any-return]

    edited = il.Model(Mapped()).edit(lambda model: model.inner.output.mul_(0))
    with pytest.raises(il.errors.TraceError, match="inside a transform of torch") as caught:
        edited(X)
    assert any("with model.trace(...):" in note for note in caught.value.__dict__["__notes__"])
    with edited.trace(X) as tracer:
        pass
    assert (tracer.result == 0).all()


def test_a_lone_edit_that_fails_leaves_nothing_open() -> None:
    """Law 10: neither in its own tree nor in those that it descends from."""
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = il.Model(net)

    def change(_: il.Envoy) -> None:
        model[0].output
        raise KeyboardInterrupt

    edited = model.edit(change)
    with pytest.raises(KeyboardInterrupt):
        edited(X)
    assert not model._tree._open
    assert not edited._tree._open
    assert all("_compiled_call_impl" not in vars(module) for module in net.modules())

"""Blocks inside blocks that run later: traces, invokes, edits and sessions, in both forms (law 9, S-39, S-44, S-80)."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest
import torch
from torch import nn

import interlace as il
from interlace.errors import TraceError
from interlace.session import Session

X, Y = torch.ones(2, 4), torch.full((3, 4), -1.0)


@pytest.fixture
def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))


@pytest.fixture
def model(net: nn.Sequential) -> il.Model:
    return il.Model(net)


def test_prompts_inside_a_prompt(model: il.Model, net: nn.Sequential) -> None:
    """Law 9: each inner block has its rows, reads the names around it, and leaves its own there."""
    scale, count = 2, 0
    with model.trace() as tracer:
        with tracer.invoke(X):
            hidden = model[0].output
            with model.trace() as inner:
                with inner.invoke(Y) as opened:
                    first = model[0].output * scale
                    count += 1
                with inner.invoke(X):
                    second = first.sum() + hidden.sum()
                    count += 1
                    own = model[2].output
            after = second * 2
            last = model[3].output
        with tracer.invoke(Y):
            third = after + 1
            count += 1
    torch.testing.assert_close(first, net[0](Y) * 2)
    torch.testing.assert_close(own, net[:3](X))
    torch.testing.assert_close(second, first.sum() + net[0](X).sum())
    torch.testing.assert_close(third, second * 2 + 1)
    torch.testing.assert_close(last, net(X))
    assert count == 3
    assert opened is not tracer


def test_prompts_inside_a_prompt_as_functions(model: il.Model, net: nn.Sequential) -> None:
    """Law 9: functions in functions, and functions in a captured block."""
    with model.trace() as tracer:

        @tracer.invoke(X)  # type: ignore[untyped-decorator]
        def outer() -> object:
            with model.trace() as inner:

                @inner.invoke(Y)  # type: ignore[untyped-decorator]
                def deep() -> object:
                    return model[0].output

                with inner.invoke(X):
                    mixed = model[2].output
            return deep, mixed, model[3].output

        with tracer.invoke(Y):
            with model.trace() as again:

                @again.invoke(X)  # type: ignore[untyped-decorator]
                def low() -> object:
                    return model[0].output

                again.invoke(Y)(lambda: None)
            high = low.sum()
    for found, expected in zip(outer, (net[0](Y), net[:3](X), net(X)), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(high, net[0](X).sum())
    assert isinstance(low, torch.Tensor)


def test_a_function_in_a_block_opens_blocks(model: il.Model, net: nn.Sequential) -> None:
    """Law 4: its own names, those of the block, and those of the frame."""
    scale = 3.0
    with model.trace() as tracer:
        with tracer.invoke(X):
            shift = model[0].output.sum()

            def study(by: float) -> object:
                mine = by * 2
                with model.trace() as inner:
                    with inner.invoke(Y):
                        found = model[0].output * mine + shift * scale
                return found

            out = study(5.0)
    torch.testing.assert_close(out, net[0](Y) * 10 + net[0](X).sum() * 3)


def test_an_edit_inside_a_prompt(model: il.Model, net: nn.Sequential) -> None:
    """S-39, S-87: it reads its names as they were; the trace around is not disturbed."""
    with model.trace() as tracer:
        with tracer.invoke(X):
            level = model[0].output.mean()
            with model.edit() as edited:
                model[2].output[:] = level
            level = None
            out = edited(X)
            own = model[2].output
            again = model.edit(lambda model: model[2].output.zero_())(X)
    torch.testing.assert_close(out, net[3](net[0](X).mean().expand(2, 4)))
    torch.testing.assert_close(own, net[:3](X))
    torch.testing.assert_close(again, net[3](torch.zeros(2, 4)))


def test_a_trace_inside_an_edit(model: il.Model, net: nn.Sequential) -> None:
    """Law 9: the edited model runs another trace of the clean one at every run."""

    def change(edited: il.Envoy) -> None:
        with model.trace() as inner:
            with inner.invoke(Y):
                other = model[0].output.mean(0)
            with inner.invoke(X):
                pass
        edited[0].output[:] = other

    edited = model.edit(change)
    expected = net[1:](net[0](Y).mean(0).expand(2, 4))
    with torch.no_grad():
        torch.testing.assert_close(edited(X), expected)
        torch.testing.assert_close(edited(X), expected)


def test_sessions_and_traces_nest_to_any_depth(model: il.Model, net: nn.Sequential) -> None:
    """S-44, law 9."""
    with model.session(), model.trace() as tracer:
        with tracer.invoke(X):
            with model.session():
                with model.trace(Y):
                    first = model[0].output
                    with model.trace() as inner:
                        with inner.invoke(X):
                            with model.trace(Y):
                                deep = model[2].output
                            mid = model[2].output + first.sum()
                    rest = model[3].output
            own = model[3].output
    torch.testing.assert_close(deep, net[:3](Y))
    torch.testing.assert_close(mid, net[:3](X) + net[0](Y).sum())
    torch.testing.assert_close(rest, net(Y))
    torch.testing.assert_close(own, net(X))


def test_a_subclass_of_the_session_takes_its_place(model: il.Model) -> None:
    """S-44: and knows the envoy that it was opened on."""

    class Own(Session):
        def named(self) -> str:
            return f"a session of {self.model.path}"

    with model[0].session(tracer_cls=Own) as session:
        assert isinstance(session, Own)
        assert session.named() == "a session of model.0"


@pytest.mark.parametrize(
    "given", [3, "a prompt", torch.ones(1), Session(None), int, lambda model: Session(model)]
)
def test_a_session_takes_no_input(model: il.Model, given: object) -> None:
    """S-44."""
    kind = type(given).__name__
    with pytest.raises(
        TypeError, match=rf"takes a subclass of Session, not {kind}\.\nWrite `with model\.session"
    ):
        model.session(given)  # type: ignore[arg-type]


def test_a_session_shares_values_between_blocks_of_its_traces(model: il.Model, net: nn.Sequential) -> None:
    """S-44: accumulators and values, from one trace to the next."""
    total = 0.0
    with model.session():
        for at in (0, 2):
            with model.trace() as tracer:
                with tracer.invoke(X):
                    total += model[at].output.sum()
                with tracer.invoke(Y):
                    total += model[at].output.sum()
    both = torch.cat([X, Y])
    torch.testing.assert_close(total, net[0](both).sum() + net[:3](both).sum())


def test_an_inner_block_cannot_wait_for_a_block_around_it(model: il.Model) -> None:
    """S-74: what the outer blocks have yet to make is read above the inner trace."""
    with pytest.raises(TraceError, match=r"(?s)`late` is made by another block.*above the inner trace"):
        with model.trace() as tracer:
            with tracer.invoke(X):
                late = model[3].output
            with tracer.invoke(Y):

                def low() -> object:
                    return late

                with model.trace() as inner:
                    inner.invoke(X)(low)


def test_errors_of_an_inner_block_end_all_and_nothing_is_kept(model: il.Model) -> None:
    """Laws 10 and 11."""
    gc.collect()
    gc.disable()
    try:
        kept: list[weakref.ref[torch.Tensor]] = []
        line = sys._getframe().f_lineno
        with pytest.raises(ZeroDivisionError) as raised:
            with model.trace() as tracer:
                with tracer.invoke(X):
                    hidden = model[0].output
                    kept.append(weakref.ref(hidden))
                    with model.trace() as inner:
                        with inner.invoke(Y):
                            hidden.shape[0] / 0
                with tracer.invoke(Y):
                    model[3].output
        assert raised.traceback[-1].lineno + 1 == line + 8
        del hidden, raised, tracer, inner
        assert [ref() for ref in kept] == [None]
    finally:
        gc.enable()
    with model.trace(X):
        assert model[0].output.shape == (2, 4)

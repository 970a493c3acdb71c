"""Steps of a repeated run: which visits they are, and that loops over them end when the model does."""

# ruff: noqa: B018, PERF401, PT012, SIM117

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interlace as il
from interlace.errors import NotReachedError, OrderError, TraceError
from tests.models import Looped, Transformer, ids, sequential

TIMES = 5


@pytest.fixture
def net() -> Looped:
    return Looped(TIMES)


@pytest.fixture
def model(net: Looped) -> il.Model:
    return il.Model(net)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(1, 3)


@pytest.fixture
def visits(net: Looped, x: Tensor) -> list[Tensor]:
    """What the block gives at each visit."""
    seen: list[Tensor] = []
    handle = net.block.register_forward_hook(lambda m, a, o: seen.append(o))
    net(x)
    handle.remove()
    return seen


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# -- a module that is called several times ----------------------------------------------------------------------------


def test_every_call_is_a_step(model: il.Model, net: Looped, x: Tensor, visits: list[Tensor]) -> None:
    """S-81, law 6: a block called five times in one forward has five steps; the loop ends with the model."""
    steps, ours = [], []
    after = False
    with model.trace(x) as tracer:
        for step in tracer.iter[:]:
            steps.append(step)
            ours.append(model.block.output)
        after = True
    assert steps == list(range(TIMES))
    assert equal(ours, visits)
    assert after
    assert torch.equal(tracer.result, net(x))


def test_a_loop_that_asks_for_more_than_there_is_ends_normally(
    model: il.Model, x: Tensor, visits: list[Tensor]
) -> None:
    """Law 6: `[:10]` when the model stops at 5."""
    ours = []
    with model.trace(x) as tracer:
        for _ in tracer.iter[:10]:
            ours.append(model.block.output)
        done = True
    assert done
    assert equal(ours, visits)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (slice(None), [0, 1, 2, 3, 4]),
        (slice(2), [0, 1]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2, 4]),
        (slice(1, None, 3), [1, 4]),
        (slice(3, 99), [3, 4]),
        (slice(0), []),
        (3, [3]),
        ([0, 2], [0, 2]),
        ([4], [4]),
        ((1, 3, 9), [1, 3]),
        ([], []),
    ],
)
def test_steps_are_chosen_as_from_a_list(
    model: il.Model, net: Looped, x: Tensor, visits: list[Tensor], which: Any, expected: list[int]
) -> None:
    """S-81: int, slice, list."""
    steps, ours = [], []
    with model.trace(x) as tracer:
        for step in tracer.iter[which]:
            ours.append(model.block.output)
            steps.append(step)
    assert steps == expected
    assert equal(ours, [visits[n] for n in expected])
    assert torch.equal(tracer.result, net(x))


@pytest.mark.parametrize(
    "which", [-1, slice(-2, None), slice(None, -1), slice(None, None, -1), slice(None, None, 0)]
)
def test_steps_are_not_counted_from_the_end(model: il.Model, x: Tensor, which: Any) -> None:
    """S-81: nobody knows the end while the model runs."""
    with model.trace(x) as tracer:
        with pytest.raises(TraceError, match=r"[Ss]teps"):
            for _ in tracer.iter[which]:
                model.block.output
        out = model.output
    assert out.shape == (1, 2)


@pytest.mark.parametrize("which", [[2, 1], [1, 1], ["a"], [True, 1.0]])
def test_chosen_steps_come_in_order(model: il.Model, x: Tensor, which: Any) -> None:
    """S-81."""
    with model.trace(x) as tracer:
        with pytest.raises(TraceError, match=r"Steps are counted from 0 and come in order, each once"):
            for _ in tracer.iter[which]:
                model.block.output


def test_all_is_every_step(model: il.Model, x: Tensor, visits: list[Tensor]) -> None:
    """S-81."""
    with model.trace(x) as tracer:
        ours = [model.block.output for _ in tracer.all()]
    assert equal(ours, visits)
    with model.trace(x) as tracer:
        ours = [model.block.output for _ in tracer.iter]
    assert equal(ours, visits)


def test_a_step_holds_the_first_visit_within_it(
    net: Looped, model: il.Model, x: Tensor, visits: list[Tensor]
) -> None:
    """S-81: asking again for the live visit returns the same object; its input is at hand."""
    with model.trace(x) as tracer:
        for step in tracer.iter[:]:
            given = model.block.input
            out = model.block.output
            assert model.block.output is out
            assert model.block.input is given
            assert torch.equal(out, visits[step])


def test_edits_in_steps_reach_the_model(net: Looped, model: il.Model, x: Tensor) -> None:
    """S-81: in every step, and in one."""
    with model.trace(x) as tracer:
        for step in tracer.iter[:]:
            model.block.output = model.block.output * 0 + step
    assert torch.equal(tracer.result, net.head(torch.full((1, 3), 4.0).tanh()))
    with model.trace(x) as tracer:
        for _ in tracer.iter[4]:
            model.block.output[:] = 0
    assert torch.equal(tracer.result, net.head(torch.zeros(1, 3)))


def test_sites_after_the_loop_can_be_read(
    net: Looped, model: il.Model, x: Tensor, visits: list[Tensor]
) -> None:
    """Law 6: reached later than the loop's last step, when it took all or some of them."""
    with model.trace(x) as tracer:
        ours = [model.block.output for _ in tracer.iter[:2]]
        head = model.head.output
        out = model.output
    assert equal(ours, visits[:2])
    assert torch.equal(head, net(x))
    assert out is head
    with model.trace(x) as tracer:
        ours = [model.block.output for _ in tracer.iter[:TIMES]]
        head = model.head.output
    assert torch.equal(head, net(x))


def test_a_loop_may_be_left_early(net: Looped, model: il.Model, x: Tensor, visits: list[Tensor]) -> None:
    """Law 6: `break`, and going on where it stopped."""
    with model.trace(x) as tracer:
        for step in tracer.iter[:]:
            one = model.block.output
            if step == 1:
                break
        rest = [model.block.output for _ in tracer.iter[2:]]
        out = model.head.output if not rest else None
    assert torch.equal(one, visits[1])
    assert equal(rest, visits[2:])
    assert out is None


def test_outside_of_a_loop_a_request_means_the_first_visit(
    model: il.Model, x: Tensor, visits: list[Tensor]
) -> None:
    """S-81, law 5."""
    with model.trace(x) as tracer:
        assert torch.equal(model.block.output, visits[0])
        for _ in tracer.iter[2]:
            assert torch.equal(model.block.output, visits[2])
        with pytest.raises(OrderError, match=r"`model\.block\.output` has passed"):
            model.block.output


@pytest.mark.parametrize("alone", [True, False])
def test_a_loop_over_a_step_that_has_passed_leaves_the_order_as_it_was(
    model: il.Model, net: Looped, x: Tensor, alone: bool
) -> None:
    """Law 5: nothing is kept on the way to a step that nobody looks for any more."""
    refused = []

    def block(tracer: Any) -> None:
        for _ in tracer.iter[:2]:
            model.block.output
        with pytest.raises(OrderError, match=r"`model\.block\.input` has passed"):
            next(tracer.iter[0])
        out = model.head.output
        model.output
        with pytest.raises(OrderError, match=r"`model\.head\.output` has passed"):
            model.head.output
        refused.append(out)

    if alone:
        with model.trace(x) as tracer:
            block(tracer)
    else:
        with model.trace() as tracer:
            tracer.invoke(x)(lambda: block(tracer))
    assert torch.equal(refused[0], net(x))


def test_a_step_that_was_begun_before_an_invoke_belongs_to_no_run(
    model: il.Model, x: Tensor, visits: list[Tensor]
) -> None:
    """The run is made anew with the blocks of the invokes, and its steps with it."""
    with model.trace(x) as tracer:
        tracer.next()
        tracer.invoke()(lambda: None)
        first = model.block.output
    assert torch.equal(first, visits[0])
    with pytest.raises(TraceError, match="The body of this step loop asked for nothing"):
        with model.trace(x) as tracer:
            for _ in tracer.iter[:1]:
                tracer.invoke()(lambda: None)
                assert torch.equal(model.block.output, visits[0])


def test_next_goes_on_to_the_following_step(model: il.Model, x: Tensor, visits: list[Tensor]) -> None:
    """S-81: by one or by several; it returns the tracer."""
    with model.trace(x) as tracer:
        ours = [model.block.output]
        assert tracer.next() is tracer
        ours.append(model.block.output)
        tracer.next(2)
        ours.append(model.block.output)
    assert equal(ours, [visits[0], visits[1], visits[3]])


def test_next_names_the_following_visit_in_a_step(model: il.Model, x: Tensor, visits: list[Tensor]) -> None:
    """S-81: inside a loop."""
    pairs = []
    with model.trace(x) as tracer:
        for _ in tracer.iter[:4:2]:
            first = model.block.output
            tracer.next()
            pairs += [first, model.block.output]
    assert equal(pairs, visits[:4])


@pytest.mark.parametrize("step", [0, -1])
def test_next_goes_forward_only(model: il.Model, x: Tensor, step: int) -> None:
    """S-81."""
    with model.trace(x) as tracer:
        model.block.output
        with pytest.raises(TraceError, match=rf"next\({step}\) would go back; a trace runs forward only"):
            tracer.next(step)


def test_next_beyond_the_end_is_an_error(model: il.Model, x: Tensor) -> None:
    """S-81: outside of a loop nothing ends silently; the pace is what is asked for next."""
    with model.trace(x) as tracer:
        model.block.output
        tracer.next(TIMES)
        with pytest.raises(
            NotReachedError, match=r"`model\.block\.input` \(visit 5\) was not reached.* after 5 visits of it"
        ):
            model.block.output


def test_a_first_step_beyond_the_end_is_an_error(model: il.Model, x: Tensor) -> None:
    """S-81: nothing else sets the pace, so the body has to be entered to know what a step is."""
    with model.trace(x) as tracer, pytest.raises(NotReachedError, match=r"`model\.block\.input` \(visit 7\)"):
        for _ in tracer.iter[7:]:
            model.block.output
    writer = il.Model(Transformer())
    with writer.generate(ids(), steps=3) as tracer:
        assert list(tracer.iter[7:]) == []


def test_a_loop_that_asks_for_nothing_is_an_error(model: il.Model, x: Tensor) -> None:
    """S-81: nothing says where a step ends, and it must not run for ever."""
    with model.trace(x) as tracer:
        with pytest.raises(
            TraceError, match=r"The body of this step loop asked for nothing.*\nAsk for a value in it"
        ):
            for _ in tracer.iter[:]:
                pass


def test_a_site_that_is_not_in_every_step(x: Tensor) -> None:
    """Law 6: asking, in a step, for what is never reached any more ends with an error that says so."""
    model = il.Model(sequential())
    reached = []
    with model.trace(x) as tracer:
        for step in tracer.iter[:]:
            reached.append((step, model[0].output.shape))
    assert reached == [(0, (1, 4))]


def test_steps_of_a_model_called_once(x: Tensor) -> None:
    """S-81: one visit, one step. An open-ended loop has seen the model end, so its result is `tracer.result`."""
    net = sequential()
    model = il.Model(net)
    with model.trace(x) as tracer:
        steps = [(step, model[0].output is not None, model[2].output is not None) for step in tracer.iter[:]]
        out = tracer.result
        assert torch.equal(model.output, out)
    assert steps == [(0, True, True)]
    assert torch.equal(out, net(x))


@pytest.mark.parametrize("which", [slice(None), slice(10), slice(4), slice(2)], ids=str)
def test_sites_after_the_last_step_can_be_read(which: slice, x: Tensor) -> None:
    """Law 6: also when the loop saw the model end, in search of another step. They can be changed no more."""

    class Loop(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(4):
                x = self.block(x)
            return self.head(x)  # type: ignore[no-any-return]

    net = Loop()
    model = il.Model(net)
    with model.trace(x) as tracer:
        seen = [model.block.output for _ in tracer.iter[which]]
        head, last = model.head.output, model.head.input
        if which.stop in (None, 10):
            with pytest.raises(
                OrderError, match=r"`model\.head\.output` has passed: the model ran to its end"
            ):
                model.head.output = torch.zeros(1, 2)
        out = model.output
    assert len(seen) == min(4, which.stop or 4)
    assert torch.equal(head, net(x))
    assert torch.equal(out, head)
    assert torch.equal(net.head(last), head)


def test_iter_after_the_block_is_refused(model: il.Model, x: Tensor) -> None:
    """S-33."""
    with model.trace(x) as tracer:
        pass
    uses: list[Callable[[], Any]] = [
        lambda: tracer.iter,
        lambda: tracer.all(),
        lambda: tracer.next(),
        lambda: tracer.stop(),
    ]
    for use in uses:
        with pytest.raises(
            TraceError, match=r"This trace is not open: its `with` block has not begun, or is over"
        ):
            use()


# -- a method that calls the model several times ----------------------------------------------------------------------


@pytest.fixture
def writer() -> Transformer:
    return Transformer()


def forwards(net: Transformer, steps: int) -> list[Tensor]:
    seen: list[Tensor] = []
    handle = net.lm_head.register_forward_hook(lambda m, a, o: seen.append(o))
    net.generate(ids(), steps=steps)
    handle.remove()
    return seen


def test_the_traced_module_sets_the_pace_of_a_method(writer: Transformer) -> None:
    """S-81: a step is a forward of the generation, whatever the body asks for first."""
    model = il.Model(writer)
    told = forwards(writer, 3)
    with model.generate(ids(), steps=3) as tracer:
        logits, hidden = [], []
        for _ in tracer.iter[:]:
            hidden.append(model.h[1].output[0])
            logits.append(model.lm_head.output)
        after = True
    assert after
    assert equal(logits, told)
    assert [h.shape[1] for h in hidden] == [5, 6, 7]
    assert torch.equal(tracer.result, writer.generate(ids(), steps=3))


def test_steps_that_ask_for_nothing_are_passed(writer: Transformer) -> None:
    """S-81: the pacemaker is known, so the body may be empty."""
    model = il.Model(writer)
    with model.generate(ids(), steps=3) as tracer:
        steps = list(tracer.iter[:])
    assert steps == [0, 1, 2]
    assert tracer.result.shape == (2, 8)


def test_interventions_in_every_step_change_what_is_written(writer: Transformer) -> None:
    """S-81."""
    model = il.Model(writer)
    with model.generate(ids(), steps=3) as tracer:
        for step in tracer.iter[:]:
            logits = model.output.logits
            logits[:] = 0
            logits[..., step + 1] = 1
    assert tracer.result[:, 5:].tolist() == [[1, 2, 3]] * 2


def test_a_request_outside_of_a_loop_means_the_first_forward(writer: Transformer) -> None:
    """S-81; steps may be chosen after it."""
    model = il.Model(writer)
    told = forwards(writer, 3)
    with model.generate(ids(), steps=3) as tracer:
        first = model.lm_head.output
        later = [model.lm_head.output for _ in tracer.iter[1:]]
    assert torch.equal(first, told[0])
    assert equal(later, told[1:])


def test_next_in_a_generation(writer: Transformer) -> None:
    """S-81."""
    model = il.Model(writer)
    told = forwards(writer, 3)
    with model.generate(ids(), steps=3) as tracer:
        ours = [model.lm_head.output]
        tracer.next()
        ours.append(model.lm_head.output)
        tracer.next()
        ours.append(model.lm_head.output)
    assert equal(ours, told)


def test_a_block_of_a_step_that_has_passed_is_refused(writer: Transformer) -> None:
    """Law 5: within a step the order rule holds."""
    model = il.Model(writer)
    with model.generate(ids(), steps=3) as tracer:
        for step in tracer.iter[:]:
            model.h[1].output
            with pytest.raises(OrderError, match=r"`model\.h\[0\]\.output`.* has passed"):
                model.h[0].output
            assert step < 3


def test_the_loop_ends_when_the_model_ends_first(writer: Transformer) -> None:
    """Law 6: `[:10]` of three forwards; sites reached later still can be read."""
    model = il.Model(writer)
    with model.generate(ids(), steps=3) as tracer:
        count = sum(1 for _ in tracer.iter[:10])
        written = tracer.result
    assert count == 3
    assert written.shape == (2, 8)


def test_a_block_called_several_times_in_a_step() -> None:
    """S-81: the step's first visit of it, whatever its number since the start of the run."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loop = Looped(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.loop(x)  # type: ignore[no-any-return]

        def repeat(self, x: Tensor) -> list[Tensor]:
            return [self(x + n) for n in range(3)]

    net, x = Twice(), torch.randn(1, 3)
    model = il.Model(net)
    seen: list[Tensor] = []
    handle = net.loop.block.register_forward_hook(lambda m, a, o: seen.append(o))
    net.repeat(x)
    handle.remove()
    with model.repeat(x) as tracer:
        firsts = [model.loop.block.output for _ in tracer.iter[:]]
    assert equal(firsts, seen[::3])


# -- the older names, stop and result -----------------------------------------------------------------------------------


def test_iter_of_an_envoy_is_an_old_name(model: il.Model, x: Tensor, visits: list[Tensor]) -> None:
    """S-45: warns, then works."""
    with model.trace(x):
        with pytest.warns(
            DeprecationWarning, match=r"`envoy\.iter` is an old name; write `tracer\.iter`"
        ) as told:
            steps = model.block.iter[:]
        ours = [model.block.output for _ in steps]
    assert equal(ours, visits)
    assert told[0].filename == __file__


def test_all_of_an_envoy_is_an_old_name(model: il.Model, x: Tensor, visits: list[Tensor]) -> None:
    """S-46: warns, then works."""
    with model.trace(x):
        with pytest.warns(DeprecationWarning, match=r"`envoy\.all` is an old name") as told:
            steps = model.block.all()
        ours = [model.block.output for _ in steps]
    assert equal(ours, visits)
    assert told[0].filename == __file__


def test_next_of_an_envoy_is_an_old_name(model: il.Model, x: Tensor, visits: list[Tensor]) -> None:
    """S-47: warns, then works; returns the envoy."""
    with model.trace(x):
        model.block.output
        with pytest.warns(DeprecationWarning, match=r"`envoy\.next` is an old name") as told:
            second = model.block.next().output
        with pytest.warns(DeprecationWarning, match=r"`envoy\.next`"):
            fourth = model.block.next(2).output
    assert torch.equal(second, visits[1])
    assert torch.equal(fourth, visits[3])
    assert told[0].filename == __file__


def test_stop_ends_the_run(net: Looped, model: il.Model, x: Tensor) -> None:
    """S-83: values read are kept, the statements after it run, later requests say it was stopped."""
    ran: list[nn.Module] = []
    handle = net.head.register_forward_hook(lambda m, a, o: ran.append(m))
    with model.trace(x) as tracer:
        first = model.block.output
        tracer.stop()
        kept = first + 0
        with pytest.raises(
            NotReachedError,
            match=r"`model\.head\.output` was not reached: the run was stopped\.\nAsk for it before",
        ):
            model.head.output
        tracer.stop()
        with pytest.raises(TraceError, match=r"The traced call returned nothing: the run was stopped"):
            tracer.result
        after = True
    handle.remove()
    assert after
    assert ran == []
    assert torch.equal(kept, first)
    assert torch.equal(model(x), net(x))


def test_stop_ends_a_loop(model: il.Model, x: Tensor, visits: list[Tensor]) -> None:
    """S-83, law 6."""
    ours = []
    with model.trace(x) as tracer:
        for step in tracer.iter[:]:
            ours.append(model.block.output)
            if step == 2:
                tracer.stop()
        after = True
    assert after
    assert equal(ours, visits[:3])


def test_the_result_is_read_in_the_block_and_after_it(net: Looped, model: il.Model, x: Tensor) -> None:
    """S-86."""
    with model.trace(x) as tracer:
        model.block.output[:] = 0
        inside = tracer.result
        with pytest.raises(OrderError, match="the model has finished"):
            model.block.output
    assert tracer.result is inside
    assert inside.shape == (1, 2)
    assert not torch.equal(inside, net(x))

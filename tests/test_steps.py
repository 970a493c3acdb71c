"""Steps of a repeated run: which visits they are, and that loops over them end when the model does."""

# ruff: noqa: B018, PERF401, PT012, SIM117

import contextlib
import enum
import functools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interlace as il
from interlace.errors import InputError, NotReachedError, OrderError, TraceError
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


class Named(enum.IntEnum):
    THIRD = 2


@pytest.mark.parametrize(
    ("which", "expected"),
    [(Named.THIRD, [2]), ([0, Named.THIRD], [0, 2]), (slice(Named.THIRD, 3), [2]), (True, [1])],
)
def test_a_step_is_a_number_of_any_kind(
    model: il.Model, x: Tensor, visits: list[Tensor], writer: Transformer, which: Any, expected: list[int]
) -> None:
    """S-81: as an index of a list is, for a repeated module and for a method."""
    with model.trace(x) as tracer:
        ours = [model.block.output for _ in tracer.iter[which]]
    assert equal(ours, [visits[n] for n in expected])
    writing = il.Model(writer)
    with writing.generate(ids(), steps=4) as tracer:
        steps = [(step, writing.lm_head.output.shape[1]) for step in tracer.iter[which]]
    assert steps == [(n, ids().shape[1] + n) for n in expected]


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
        for step in tracer.iter[:2]:
            model.block.output
            if step == 1:
                with pytest.raises(OrderError, match=r"`model\.block\.input` has passed"):
                    next(tracer.iter[0])
        with pytest.raises(OrderError, match=r"`model\.block\.input` has passed"):
            for _ in tracer.iter[0]:
                model.block.output
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


# -- loops over one module after another ----------------------------------------------------------------------------


class Phases(nn.Module):
    """Calls `z`, `x` three times, then by turns `y` and `z`: once in vain before each `y`, twice after it."""

    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Linear(3, 3)
        self.y = nn.Sequential(nn.Linear(3, 3), nn.Tanh())
        self.z = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.z(x)
        for _ in range(3):
            x = self.x(x)
        for _ in range(4):
            with contextlib.suppress(RuntimeError):
                self.z(x[:, :2])
            x = self.z(self.z(self.y(x)))
        return self.head(x)  # type: ignore[no-any-return]


@pytest.fixture
def phases() -> Phases:
    return Phases()


@pytest.fixture
def told(phases: Phases, x: Tensor) -> dict[str, list[Tensor]]:
    """What each module gives at each of its calls."""
    seen: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda m, a, o, name=name: seen.setdefault(name, []).append(o))
        for name, module in phases.named_modules()
    ]
    phases(x)
    for handle in handles:
        handle.remove()
    return seen


Form = Callable[[il.Model, Tensor, Callable[[Any], Any]], Any]


def native(model: il.Model, x: Tensor, block: Callable[[Any], Any]) -> Any:
    with model.trace(x) as tracer:
        return block(tracer)


def beside_another(model: il.Model, x: Tensor, block: Callable[[Any], Any]) -> Any:
    """In a prompt of two, the other of which has a loop over the second module only."""
    found: list[Any] = []
    with model.trace() as tracer:
        tracer.invoke(x)(lambda: found.append(block(tracer)))
        tracer.invoke(torch.ones(2, 3))(lambda: [model.y.output for _ in tracer.iter[:]])
    return found[0]


def in_an_edited_model(model: il.Model, x: Tensor, block: Callable[[Any], Any]) -> Any:
    """Beside a stored edit that has a loop of its own."""

    def edit(edited: Any) -> None:
        with pytest.warns(DeprecationWarning, match=r"`envoy\.iter` is an old name"):
            steps = edited.y.iter[:]
        for _ in steps:
            edited.y.output

    model.edit(edit, inplace=True)
    try:
        return native(model, x, block)
    finally:
        model.clear_edits()


def as_an_edit(model: il.Model, x: Tensor, block: Callable[[Any], Any]) -> Any:
    """As a stored edit, by the names that it has there."""

    class Tracer:
        @property
        def iter(self) -> Any:
            with pytest.warns(DeprecationWarning, match=r"`envoy\.iter` is an old name"):
                return model.y.iter

    found: list[Any] = []
    model.edit(lambda edited: found.append(block(Tracer())), inplace=True)
    model(x)
    model.clear_edits()
    return found[0]


FORMS = pytest.mark.parametrize("form", [native, beside_another, in_an_edited_model, as_an_edit])


def near(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """The same up to rounding, for rows of a larger batch may be computed in another order."""
    return len(ours) == len(theirs) and all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))


@FORMS
@pytest.mark.parametrize(
    ("first", "second", "steps"),
    [
        (slice(None), slice(None), [0, 1, 2, 3]),
        (slice(9), slice(None), [0, 1, 2, 3]),
        (slice(2), slice(2), [0, 1]),
        (slice(3), slice(0, None), [0, 1, 2, 3]),
        (slice(None), slice(1, None, 2), [1, 3]),
        (slice(3), 2, [2]),
        ([0, 2], [1, 2], [1, 2]),
        (slice(None), [0, 3], [0, 3]),
    ],
)
def test_each_loop_takes_its_pace_from_its_own_body(
    phases: Phases, x: Tensor, told: dict[str, list[Tensor]], form: Form, first: Any, second: Any, steps: Any
) -> None:
    """S-81, law 6: whether the loop before ended with the model, or left it where it was."""
    model = il.Model(phases)

    def block(tracer: Any) -> Any:
        one = [model.x.output for _ in tracer.iter[first]]
        other = [(step, model.y.output) for step in tracer.iter[second]]
        return one, other, model.head.output

    one, other, head = form(model, x, block)
    assert near(one, [told["x"][n] for n in (first if isinstance(first, list) else range(3)[first])])
    assert [step for step, _ in other] == steps
    assert near([value for _, value in other], [told["y"][n] for n in steps])
    assert near([head], told["head"])


@FORMS
@pytest.mark.parametrize("first", [slice(3), slice(None)], ids=["bounded", "to the end"])
def test_steps_that_have_passed_are_read_like_live_ones(
    phases: Phases, x: Tensor, told: dict[str, list[Tensor]], form: Form, first: slice
) -> None:
    """Law 6: every site of a step, in it and around it, in loops that are left and gone on with."""
    model = il.Model(phases)

    def block(tracer: Any) -> Any:
        for _ in tracer.iter[first]:
            model.x.output
        rows, steps = [], []
        for step in tracer.iter[0:]:
            rows.append((model.y.input, model.y[0].output, model.y[1].input, model.y.output, model.z.output))
            if step == 1:
                break
        for step in tracer.iter[:]:
            steps.append(step)
            rows.append((model.y.input, model.y[0].output, model.y[1].input, model.y.output, model.z.output))
        return rows, steps, model.head.output

    rows, steps, head = form(model, x, block)
    firsts = [told["x"][-1], *told["z"][2::2]]
    assert steps == [2, 3]
    for n, row in enumerate(rows):
        assert near(
            list(row), [firsts[n], told["y.0"][n], told["y.0"][n], told["y"][n], told["z"][1 + 2 * n]]
        )
    assert len(rows) == 4
    assert near([head], told["head"])


@FORMS
def test_a_later_loop_may_be_over_what_an_earlier_one_went_past(
    phases: Phases, x: Tensor, told: dict[str, list[Tensor]], form: Form
) -> None:
    """Law 5: only forward, in what has passed too."""
    model = il.Model(phases)

    def block(tracer: Any) -> Any:
        for _ in tracer.iter[:]:
            model.x.output
        last = [model.y.output for _ in tracer.iter[3]]
        with pytest.raises(
            OrderError, match=r"`model\.y\.input` \(visit 1\) has passed: an earlier loop went on"
        ):
            for _ in tracer.iter[1]:
                model.y.output
        return last, [model.z.output for _ in tracer.iter[11:]], [model.head.output for _ in tracer.iter[:]]

    last, rest, heads = form(model, x, block)
    assert near(last, told["y"][3:])
    assert near(rest, told["z"][7:])
    assert near(heads, told["head"])


@FORMS
def test_a_loop_after_a_bounded_one_changes_the_model(phases: Phases, x: Tensor, form: Form) -> None:
    """S-81, law 11: one after a loop that saw the model end is told to bound it."""
    model = il.Model(phases)

    def changed(tracer: Any) -> Any:
        for _ in tracer.iter[:3]:
            model.x.output
        for _ in tracer.iter[:]:
            model.y.output = model.y.output * 0
        return model.head.output

    def late(tracer: Any) -> None:
        for _ in tracer.iter[:]:
            model.x.output
        for _ in tracer.iter[:]:
            with pytest.raises(
                OrderError, match=r"To change it, bound the loop: `for step in tracer\.iter\[:n\]:`"
            ):
                model.y.output = torch.zeros(1, 3)

    assert torch.allclose(form(model, x, changed), phases.head(phases.z(phases.z(torch.zeros(1, 3)))))
    form(model, x, late)


@FORMS
@pytest.mark.parametrize("left", ["bound", "break"])
def test_a_loop_goes_on_where_one_over_the_same_site_stopped(
    phases: Phases, x: Tensor, told: dict[str, list[Tensor]], form: Form, left: str
) -> None:
    """S-81: no step is repeated or lost, and the numbers go on."""
    model = il.Model(phases)

    def block(tracer: Any) -> Any:
        for step in tracer.iter[:2] if left == "bound" else tracer.iter[:]:
            model.y.output
            if step == 1:
                break
        return [(step, model.y.output) for step in tracer.iter[:]]

    rest = form(model, x, block)
    assert [step for step, _ in rest] == [2, 3]
    assert near([value for _, value in rest], told["y"][2:])


def test_another_site_after_a_bounded_loop_loses_no_step(
    phases: Phases, x: Tensor, told: dict[str, list[Tensor]]
) -> None:
    """S-81: the first turn has its number before its body has asked, as if the loop before went on."""
    model = il.Model(phases)
    with model.trace(x) as tracer:
        for _ in tracer.iter[:3]:
            model.x.output
        rest = [(step, model.y.output) for step in tracer.iter[:]]
    assert [step for step, _ in rest] == [3, 1, 2, 3]
    assert equal([value for _, value in rest], told["y"])


@FORMS
def test_a_loop_that_comes_too_late_says_so(phases: Phases, x: Tensor, form: Form) -> None:
    """Law 5: the first turn of a loop finds out whether there is one, at the line that asks."""
    model = il.Model(phases)

    def block(tracer: Any) -> None:
        for _ in tracer.iter[:2]:
            model.x.output
        with pytest.raises(OrderError, match=r"`model\.x\.input` has passed"):
            for _ in tracer.iter[:2]:
                model.x.output
        for _ in tracer.iter[:]:
            model.x.output
        with pytest.raises(
            NotReachedError, match=r"`model\.x\.input` \(visit 3\) was not reached.* 3 visits of it"
        ):
            for _ in tracer.iter[:]:
                model.x.output
        with pytest.raises(TraceError, match="The body of this step loop asked for nothing"):
            for _ in tracer.iter[:]:
                pass

    form(model, x, block)


def test_a_call_that_has_begun_is_no_lost_step(model: il.Model, x: Tensor, visits: list[Tensor]) -> None:
    """S-81: its input was read before the loop."""
    with model.trace(x) as tracer:
        model.block.input
        ours = [(step, model.block.output) for step in tracer.iter[:]]
    assert [step for step, _ in ours] == list(range(TIMES))
    assert equal([value for _, value in ours], visits)


def test_a_step_whose_input_was_read_before_has_its_own_visits_of_others(
    phases: Phases, x: Tensor, told: dict[str, list[Tensor]]
) -> None:
    """S-81: those that came before it are no part of it."""
    model = il.Model(phases)
    with model.trace(x) as tracer:
        model.y.input
        ours = [(model.y.output, model.z.output) for _ in tracer.iter[:2]]
    assert equal([a for a, _ in ours], told["y"][:2])
    assert equal([b for _, b in ours], told["z"][1:4:2])


def test_prompts_look_for_steps_beside_each_other(
    phases: Phases, x: Tensor, told: dict[str, list[Tensor]]
) -> None:
    """S-81, law 3: each goes on from where its own loop was."""
    model, found = il.Model(phases), {}

    def block(tracer: Any, first: str, second: str) -> None:
        for _ in tracer.iter[:]:
            model.get(first).output
        found[first, second] = [model.get(second).output for _ in tracer.iter[:]]

    pairs = [("x", "y"), ("y", "z"), ("y", "head")]
    with model.trace() as tracer:
        for first, second in pairs:
            tracer.invoke(x)(functools.partial(block, tracer, first, second))
    assert near(found["x", "y"], told["y"])
    assert near(found["y", "z"], told["z"][-2:])
    assert near(found["y", "head"], told["head"])


def test_a_loop_inside_another_keeps_its_pace(
    phases: Phases, x: Tensor, told: dict[str, list[Tensor]]
) -> None:
    """S-81: a step of both is a call of what the outer one asked for first."""
    model = il.Model(phases)
    with model.trace(x) as tracer:
        for _ in tracer.iter[:1]:
            model.y.output
            inner = [(step, model.z.output) for step in tracer.iter[:]]
        head = model.head.output
    assert [step for step, _ in inner] == [1, 2, 3]
    assert equal([value for _, value in inner], told["z"][3::2])
    assert equal([head], told["head"])


def test_next_between_loops(phases: Phases, x: Tensor, told: dict[str, list[Tensor]]) -> None:
    """S-81: outside of loops it has a pace of its own, which no loop takes over."""
    model = il.Model(phases)
    with model.trace(x) as tracer:
        first = [model.x.output for _ in tracer.iter[:1]]
        tracer.next()
        second = model.x.output
        loop = [(model.y.output, model.z.output) for _ in tracer.iter[0:2]]
        with pytest.raises(OrderError, match=r"`model\.x\.output` \(visit 1\) has passed"):
            model.x.output
        rest = [model.y.output for _ in tracer.iter[:]]
    assert equal([*first, second], told["x"][:2])
    assert equal([a for a, _ in loop], told["y"][:2])
    assert equal([b for _, b in loop], told["z"][1:4:2])
    assert equal(rest, told["y"][2:])
    with model.trace(x) as tracer:
        for _ in tracer.iter[:1]:
            model.x.output
        tracer.next()
        second = model.y.output
    assert equal([second], told["y"][1:2])


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


def test_what_a_block_calls_itself_is_no_step(model: il.Model, x: Tensor, visits: list[Tensor]) -> None:
    """S-32, law 6: such a loop would make a step in each of its turns, and never end."""
    turns = []
    with model.trace(x) as tracer:
        with pytest.raises(TraceError, match="asked for nothing, so nothing says where a step ends"):
            for step in tracer.iter[:]:
                turns.append(step)
                assert len(turns) < 2 * TIMES
                model.block(x, hook=True)
                beside = model.block.output
    assert turns == [0]
    assert torch.equal(beside, visits[0])


def test_a_step_that_a_block_has_made_itself_is_refused(writer: Transformer) -> None:
    """S-32: its call was the next visit of what sets the pace, for one block and for one beside others."""
    model = il.Model(writer)
    turns: list[int] = []

    def block() -> None:
        for step in tracer.iter[:]:
            turns.append(step)
            assert len(turns) < 20
            model(ids(), hook=True)

    with pytest.raises(OrderError, match=r"`model\.input` \(visit 1\) has passed"):
        with model.generate(ids(), steps=3) as tracer:
            block()
    with pytest.raises(OrderError, match=r"`model\.input` \(visit 1\) has passed"):
        with model.generate(steps=3) as tracer:
            tracer.invoke(ids())(block)
    assert turns == [0, 0]


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


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("not opened", "its `with` block has not begun"),
        ("stopped", "the run was stopped"),
        ("block", "the block ended with KeyError"),
        ("prompt", "the model has failed with KeyError"),
        ("model", "the model has failed with ArithmeticError"),
        ("model, at the end", "the model has failed with ArithmeticError"),
        ("model, caught", "the model has failed with ArithmeticError"),
        ("input", "the block ended with InputError"),
    ],
)
def test_no_result_is_an_error_that_says_why(net: Looped, x: Tensor, how: str, told: str) -> None:
    """S-86: None would be taken for what the model returned. Law 10: only the words are kept."""
    if how.startswith("model"):
        net.head.register_forward_hook(lambda m, a, o: 1 // 0)  # an ArithmeticError
        told = told.replace("ArithmeticError", "ZeroDivisionError")
    model = il.Model(net)
    tracer = model.trace() if how in ("prompt", "input") else model.trace(x)
    with contextlib.suppress(KeyError, ArithmeticError, InputError):
        if how != "not opened":
            with tracer:
                if how == "prompt":
                    tracer.invoke(x)(lambda: vars(net)["nothing"])
                elif how != "input":
                    seen = weakref.ref(model.block.output)
                if how == "stopped":
                    tracer.stop()
                if how == "block":
                    raise KeyError
                if how == "model":
                    model.output
                if how == "model, caught":
                    with contextlib.suppress(ArithmeticError):
                        model.output
    with pytest.raises(TraceError, match=rf"^The traced call returned nothing: {told}\.$"):
        tracer.result
    if how in ("stopped", "block", "model", "model, at the end", "model, caught"):
        assert seen() is None


def test_a_result_that_was_there_stays_when_the_block_fails(net: Looped, model: il.Model, x: Tensor) -> None:
    """S-86: in the block and after it."""
    with contextlib.suppress(KeyError), model.trace(x) as tracer:
        inside = tracer.result
        raise KeyError
    assert tracer.result is inside
    assert torch.equal(inside, net(x))


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

"""Several prompts in one forward, row by row of the contract; in the `with` form and as functions."""

from __future__ import annotations

import gc
import sys
import textwrap
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import interlace as il
from interlace.errors import CaptureError, InputError, NotReachedError, OrderError, TraceError
from tests.models import Looped, Odd
from tests.prompts.programs import run

X, Y = torch.ones(2, 4), torch.full((3, 4), -1.0)


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 4))


@pytest.fixture
def model(net: nn.Sequential) -> il.Model:
    return il.Model(net)


def test_each_prompt_has_its_rows_and_an_empty_one_all(model: il.Model, net: nn.Sequential) -> None:
    """S-72, S-80."""
    with model.trace() as tracer:
        with tracer.invoke(X):
            model[2].output[:] = 0
            first = model.output
        with tracer.invoke(Y):
            second = model.output
        with tracer.invoke():
            everything = model.output
    torch.testing.assert_close(first, net[3](torch.zeros(2, 4)))
    torch.testing.assert_close(second, net(Y))
    assert everything.shape == (5, 4)


def test_decorated_functions_become_what_they_return(model: il.Model, net: nn.Sequential) -> None:
    """S-80."""
    with model.trace() as tracer:

        @tracer.invoke(X)  # type: ignore[untyped-decorator]
        def first() -> object:
            return model[0].output

        late = tracer.invoke(Y)(lambda: model.output)
    assert isinstance(first, torch.Tensor)
    torch.testing.assert_close(first, net[0](X))
    torch.testing.assert_close(late, net(Y))


def test_blocks_are_served_in_the_order_of_the_model(model: il.Model, net: nn.Sequential) -> None:
    """S-80: the block written first may ask for what comes last."""
    with model.trace() as tracer:
        with tracer.invoke(X):
            late = model[3].output
        with tracer.invoke(X):
            early = model[0].output
    torch.testing.assert_close(late, net(X))
    torch.testing.assert_close(early, net[0](X))


def test_values_flow_between_blocks_by_plain_variables(model: il.Model, net: nn.Sequential) -> None:
    """S-74: a block waits for the name that an earlier one assigns."""
    hidden = None
    with model.trace() as tracer:
        with tracer.invoke(X):
            hidden = model[0].output
        with tracer.invoke(X * 2):
            model[2].output = hidden
            patched = model.output
    torch.testing.assert_close(patched, net[3](net[0](X)))


def test_a_name_of_a_later_block_is_waited_for_when_it_is_unbound(
    model: il.Model, net: nn.Sequential
) -> None:
    """S-74."""
    with model.trace() as tracer:
        with tracer.invoke(X):
            model[2].output = source  # type: ignore[has-type, used-before-def]
            patched = model.output
        with tracer.invoke(X):
            source = model[0].output
    torch.testing.assert_close(patched, net[3](net[0](X)))


def test_a_name_bound_before_and_by_a_later_block_is_ambiguous(model: il.Model) -> None:
    """S-74."""
    source = torch.zeros(2, 4)
    with pytest.raises(
        TraceError, match=r"(?s)`source` is bound before the trace and again by a later block"
    ):
        with model.trace() as tracer:
            with tracer.invoke(X):
                model[2].output = source
            with tracer.invoke(X):
                source = model[0].output
    assert source.shape == (2, 4)


def test_accumulators_lose_no_update(model: il.Model, net: nn.Sequential) -> None:
    """S-74: whatever the order in which the model passes the sites."""
    total, count = 0.0, 0
    with model.trace() as tracer:
        with tracer.invoke(X):
            total += model[3].output.sum()
            count += 1
        for _ in range(2):
            with tracer.invoke(Y):
                total += model[0].output.sum()
                count += 1
    torch.testing.assert_close(total, net(X).sum() + 2 * net[0](Y).sum())
    assert count == 3


def test_a_function_that_a_block_leaves_has_the_names_as_the_block_left_them(model: il.Model) -> None:
    """S-74: as the page of prompts says; in a module it goes on with those of the module."""
    text = (
        "n = 1\nwith model.trace() as tracer:\n    with tracer.invoke(x):\n        look = lambda: n\n        n += 1\n"
        "    with tracer.invoke(x):\n        n += 1\nn += 1\nfound = look()\n"
    )
    inside = f"def main():\n{textwrap.indent(text, '    ')}    return found\nfound = main()\n"
    assert run(text, {"model": model, "x": X})["found"] == 4
    assert run(inside, {"model": model, "x": X})["found"] == 2


def test_what_an_earlier_block_changed_in_place_is_not_looked_for_in_a_later_one(model: il.Model) -> None:
    """S-74: names follow program order, also where the earlier block bound the same object again."""
    total, best = torch.zeros(()), torch.zeros(())
    with model.trace() as tracer:
        with tracer.invoke(X):
            total += 1
        with tracer.invoke(X):
            best = total * 1
        with tracer.invoke(X):
            best = best + model[0].output.detach().sum() * 0
            total += 1
    assert (float(total), float(best)) == (2, 1)


@pytest.mark.parametrize("around", ["nothing", "loop", "function", "several lines"])
def test_what_is_changed_in_place_waits_for_the_blocks_before(
    model: il.Model, net: nn.Sequential, around: str
) -> None:
    """S-74, law 4: a block before still reads the object after the last time that it binds the name."""
    total = torch.zeros(())
    with model.trace() as tracer, torch.no_grad():
        if around == "nothing":
            with tracer.invoke(X):
                total += model[0].output.sum()
                late = model[3].output.sum()
                seen = total * late
        if around == "loop":
            with tracer.invoke(X):
                total += model[0].output.sum()
                for site in (1, 3):
                    seen = total * 1
                    late = model[site].output.sum()
                    seen = seen * late
        if around == "function":
            with tracer.invoke(X):
                total += model[0].output.sum()

                def product() -> object:
                    return total * late

                late = model[3].output.sum()
                seen = product()
        if around == "several lines":
            with tracer.invoke(X):
                total += model[0].output.sum()
                seen = (
                    model[3].output.sum()
                    * total
                )  # fmt: skip
        with tracer.invoke(X):
            total += 100
    with torch.no_grad():
        torch.testing.assert_close(seen, net[0](X).sum() * net(X).sum())
        torch.testing.assert_close(total, net[0](X).sum() + 100)


class Holds:
    """Something with an attribute."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __enter__(self) -> object:
        return self.value

    def __exit__(self, *error: object) -> None:
        KEPT.append(torch.as_tensor(self.value) * 1)


KEPT: list[torch.Tensor] = []

OTHER_NAMES = {
    "a view": ("late = model[3].output.sum()", "other = total.detach()"),
    "a list": ("late = model[3].output.sum()", "box.append(total); other = box[0:][0]"),
    "a comprehension": ("late = model[3].output.sum()", "[other] = [t for t in [total]]"),
    "an attribute": ("late = model[3].output.sum(); other = held.value", "setattr(held, 'value', total)"),
    "a method": ("late = model[3].output.sum(); other = f(1)", "f = total.mul"),
    "the code around": ("late = model[3].output.sum(); other = alias", "pass"),
    "a container around": ("late = model[3].output.sum(); other = around[0]['a']", "pass"),
    "a function around": ("late = model[3].output.sum(); other = outside()", "pass"),
    "the header of an `if`": (
        "if (other :=\n            total\n            * model[3].output.sum()\n        ): late = 1", "pass",
    ),
    "the header of a `with`": (
        "with Holds(total):\n            late = model[3].output.sum()\n        other = KEPT.pop()", "pass",
    ),
    "the subject of a `match`": (
        "match total:\n            case _ if (late := model[3].output.sum()) is None:\n                pass\n"
        "            case torch.Tensor() as other:\n                pass\n        other = other * 1",
        "pass",
    ),
}  # fmt: skip
"""Ways in which a block keeps another name of `total`: what it does after a wait, and before it."""


@pytest.mark.parametrize(
    "mine", ["total += 100", "t = total; t += 100", "for t in [total.view(())]: t += 100"]
)
@pytest.mark.parametrize("other", OTHER_NAMES)
def test_whatever_the_object_is_called(model: il.Model, net: nn.Sequential, other: str, mine: str) -> None:
    """S-74, law 4: the block before may know it by another name, and so may the one that changes it."""
    late, early = OTHER_NAMES[other]
    text = (
        "total, box, held = torch.zeros(()), [], Holds(None)\nalias, around = total, [{'a': total}]\n"
        "def outside(): return total * 1\n"
        "with model.trace() as tracer:\n    with tracer.invoke(X):\n        total += model[0].output.sum()\n"
        f"        {early}\n        {late}\n        seen = other * late\n"
        f"    with tracer.invoke(X):\n        {mine}\n"
    )
    with torch.no_grad():
        made = run(text, {"model": model, "torch": torch, "X": X, "Holds": Holds, "KEPT": KEPT})
        first, last = net[0](X).sum(), net(X).sum()
    torch.testing.assert_close(made["seen"], first * last)
    torch.testing.assert_close(made["total"], first + 100)


EARLY = {
    "of the block": "alias = total.detach()\n        total += model[3].output.sum()",
    "of the code around": "total += model[3].output.sum()",
    "of the block that changes it": "t = alias\n        t += model[3].output.sum()",
}


@pytest.mark.parametrize("alias", EARLY)
def test_an_object_that_a_block_after_has_read_is_not_changed_in_place(model: il.Model, alias: str) -> None:
    """S-74: it was to see the change, and has gone on without it."""
    text = (
        "total = torch.zeros(())\nalias = total\nwith model.trace() as tracer:\n    with tracer.invoke(X):\n"
        f"        {EARLY[alias]}\n"
        "    with tracer.invoke(X):\n        seen = alias * model[0].output.sum()\n"
    )
    with pytest.raises(
        CaptureError, match=r"in place here, and a block after has read it as `alias` already"
    ):
        run(text, {"model": model, "torch": torch, "X": X})


def test_nor_one_that_a_block_after_reads_while_a_block_waits(model: il.Model) -> None:
    """S-74: it waits for the use of the block before, and the block after has read on meanwhile."""
    text = (
        "total = torch.zeros(())\nwith model.trace() as tracer:\n    with tracer.invoke(X):\n"
        "        total += model[0].output.sum()\n        alias = total.detach()\n"
        "        seen = alias * model[3].output\n    with tracer.invoke(X):\n        alias = total\n"
        "        alias += model[0].output.sum()\n"
        "    with tracer.invoke(X):\n        total = total + model[0].output.sum()\n"
    )
    with torch.no_grad(), pytest.raises(CaptureError, match=r"a block after has read it as `total` already"):
        run(text, {"model": model, "torch": torch, "X": X})


@pytest.mark.parametrize("entry", ["found['n']", "found['inner'][0]", "found[key]", "held.value"])
def test_entries_and_attributes_add_up(model: il.Model, net: nn.Sequential, entry: str) -> None:
    """S-74, law 4: none is read before the right side has waited for the model, while others add to it."""
    text = "found, held, key = {'n': 0.0, 'inner': [0.0], (1, 2): 0.0}, Holds(0.0), (1, 2)\n"
    text += "with model.trace() as tracer:\n"
    for site in (3, 0, 3):
        text += f"    with tracer.invoke(X):\n        {entry} += float(model[{site}].output.sum())\n"
    with torch.no_grad():
        made = run(text + f"total = {entry}\n", {"model": model, "torch": torch, "X": X, "Holds": Holds})
        expected = float(net[0](X).sum() + 2 * net(X).sum())
    assert made["total"] == pytest.approx(expected)


def test_a_site_is_asked_for_before_what_is_added_to_it(model: il.Model) -> None:
    """Law 4: as where the block stands, where the first request is the one on the left."""
    with pytest.raises(OrderError, match=r"`model\.0\.output` has passed|`model\[0\]\.output` has passed"):
        with model.trace() as tracer:
            with tracer.invoke(X):
                model[3].output += model[0].output.sum()


def test_what_cannot_be_changed_in_place_waits_for_nobody(model: il.Model) -> None:
    """S-74: a number is another object after `+=`, and so is a tensor of the block's own."""
    count, total = 0, torch.zeros(())
    with model.trace() as tracer:
        with tracer.invoke(X):
            count += 1
            last = model[3].output.sum() + count
        with tracer.invoke(X):
            count += 1
            first = model[0].output
            total = total + first.sum()
            total += 1
            second = model[1].output
    assert count == 2
    assert first.shape == second.shape
    assert last.ndim == 0


def test_an_object_with_two_names_is_changed_when_neither_is_used(
    model: il.Model, net: nn.Sequential
) -> None:
    """S-74: the block before reads it as it left it, and afterwards both names mean the changed one."""
    total = torch.zeros(())
    with model.trace() as tracer, torch.no_grad():
        with tracer.invoke(X):
            total += model[0].output.sum()
            best = total
            late = best * model[3].output.sum()
        with tracer.invoke(X):
            total += 100
    with torch.no_grad():
        first = net[0](X).sum()
        torch.testing.assert_close(late, first * net(X).sum())
    assert best is total
    torch.testing.assert_close(total, first + 100)


def test_a_wait_for_a_use_that_cannot_be_met_names_both_lines(model: il.Model) -> None:
    total, line = torch.zeros(()), sys._getframe().f_lineno
    with pytest.raises(OrderError, match=rf"waited for `total` at line {line + 8}, which a block before uses up to"
                       rf" line {line + 6}"):  # fmt: skip
        with model.trace() as tracer:
            with tracer.invoke(X):
                total += 1
                total * model[3].output.sum()
            with tracer.invoke(X):
                total += model[0].output.sum()
                model[1].output


def test_the_last_line_of_a_block_may_edit_an_own_value_in_place(net: nn.Sequential) -> None:
    """S-71, S-39: what shares no memory with the site goes back when the block ends, as it does at the next line."""

    class Twice(il.Envoy):
        @il.view("output")
        def twice(self, output: torch.Tensor) -> torch.Tensor:
            return output * 2

        @twice.back  # type: ignore[no-redef]
        def twice(self, output: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return value / 2

    model = il.Model(net, envoys={"2": Twice})

    def change(root: il.Envoy) -> None:
        root[2].twice[:] = 6

    with model.trace() as tracer:
        with tracer.invoke(X):
            model[2].twice[:] = 6
        with tracer.invoke(Y):
            pass
        with tracer.invoke():
            both = model.output
    three = net[3](torch.full_like(net[2](X), 3.0))
    torch.testing.assert_close(both[: len(X)], three[: len(X)])
    torch.testing.assert_close(both[len(X) :], net(Y))
    torch.testing.assert_close(model.edit(change)(X), three)


def test_a_dependency_that_no_order_can_meet_names_both_blocks(model: il.Model) -> None:
    """S-80: the second block needs a value from below a site that it wants to write."""
    line = sys._getframe().f_lineno
    with pytest.raises(
        OrderError,
        match=rf"(?s)model\[0\].output. has passed; the model is at `model\[3\].output`.*"
        rf"waited for `late` at line {line + 10}, which line {line + 8} assigns",
    ):
        with model.trace() as tracer:
            with tracer.invoke(X):
                late = model[3].output
            with tracer.invoke(X):
                kept = late * 2
                model[0].output = kept


def test_a_barrier_holds_blocks_until_all_are_there(model: il.Model) -> None:
    """S-85."""
    order = []
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(X):
            barrier()
            order.append("first")
        with tracer.invoke(X):
            model[2].output
            order.append("second")
            barrier()
    assert order == ["second", "first"]


def test_a_barrier_that_never_opens_is_reported(model: il.Model) -> None:
    """S-85."""
    with pytest.raises(
        TraceError, match=r"waits for a barrier for 2 blocks, where 1 arrived, which never came"
    ):
        with model.trace() as tracer:
            barrier = tracer.barrier(2)
            with tracer.invoke(X):
                barrier()


def test_a_later_block_sees_what_an_earlier_one_wrote(model: il.Model) -> None:
    """S-89."""
    with model.trace() as tracer:
        with tracer.invoke(X):
            model[0].output[:] = 5
        with tracer.invoke(Y):
            pass
        with tracer.invoke():
            seen = model[0].output.clone()
    assert (seen[:2] == 5).all()
    assert (seen[2:] != 5).all()


def test_the_traces_own_block_sees_the_whole_batch_last(model: il.Model) -> None:
    with model.trace() as tracer:
        with tracer.invoke(X):
            model[0].output[:] = 5
        with tracer.invoke(Y):
            pass
        seen = model[0].output
    assert seen.shape == (5, 4)
    assert (seen[:2] == 5).all()


def test_skipping_some_rows_runs_the_others(model: il.Model, net: nn.Sequential) -> None:
    """S-31 under several prompts."""
    with model.trace() as tracer:
        with tracer.invoke(X):
            model[2].skip(torch.zeros(2, 4))
            first = model.output
        with tracer.invoke(Y):
            second = model.output
    torch.testing.assert_close(first, net[3](torch.zeros(2, 4)))
    torch.testing.assert_close(second, net(Y))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", ["sparse", "nested"])
def test_skipping_some_rows_of_a_value_that_cannot_be_cut_in_rows(kind: str) -> None:
    """S-31: what stands for it need not have rows either, and the call's own is not touched."""
    parts = [torch.ones(size) for size in range(1, 6)]
    strange = torch.eye(5).to_sparse() if kind == "sparse" else torch.nested.nested_tensor(parts)

    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * 2, strange

    class Passed(nn.Module):
        def forward(self, both: tuple[torch.Tensor, object]) -> tuple[torch.Tensor, object]:
            return both

    model = il.Model(nn.Sequential(Two(), Passed()))
    with model.trace() as tracer:
        with tracer.invoke(X):
            model[0].skip((torch.zeros(2, 4), None))
        with tracer.invoke(Y):
            pass
        tensor, other = model[1].output
    assert torch.equal(tensor, torch.cat([torch.zeros(2, 4), Y * 2]))
    assert other is None


@pytest.mark.parametrize("form", ["with", "function"])
@pytest.mark.parametrize("at", [0, 2])
def test_what_another_prompt_stopped_is_not_reached(model: il.Model, at: int, form: str) -> None:
    """S-83, law 11: whether it is asked for later in the same turn, or was waited for; the statements after run."""
    ran: list[object] = []
    message = r"`model\[3\]\.output` was not reached: the run was stopped\.\nAsk for it before"

    def stops() -> None:
        ran.append(model[at].output)
        tracer.stop()
        ran.append("stopped")

    def asks() -> None:
        ran.append(model[0].output)
        model[3].output
        ran.append("never")

    with pytest.raises(NotReachedError, match=message), model.trace() as tracer:
        if form == "function":
            tracer.invoke(X)(stops)
            tracer.invoke(Y)(asks)
        else:
            with tracer.invoke(X):
                ran.append(model[at].output)
                tracer.stop()
                ran.append("stopped")
            with tracer.invoke(Y):
                ran.append(model[0].output)
                model[3].output
                ran.append("never")
    assert "stopped" in ran
    assert "never" not in ran
    assert sum(isinstance(value, torch.Tensor) for value in ran) == 2


def test_a_prompt_that_catches_a_stop_goes_on_and_one_that_needs_no_more_ends_well(model: il.Model) -> None:
    """S-83."""
    with model.trace() as tracer:
        with tracer.invoke(X):
            model[0].output
            tracer.stop()
        with tracer.invoke(X):
            seen = model[0].output
            again = model[0].output
            try:
                seen = model[3].output
            except NotReachedError:
                after = seen.shape
        with tracer.invoke(X):
            last = model[0].output
    assert again is seen
    assert after == last.shape


def test_a_step_loop_beside_a_prompt_that_stops_ends_with_it() -> None:
    """S-83, law 6."""
    model = il.Model(Looped(5, 4))
    steps = []
    with model.trace() as tracer:
        with tracer.invoke(X):
            for step in tracer.iter[:]:
                model.block.output
                if step == 2:
                    tracer.stop()
        with tracer.invoke(Y):
            for step in tracer.iter[:]:
                model.block.output
                steps.append(step)
            steps.append(-1)
    assert steps == [0, 1, 2, -1]


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (2, 3, "2 and 3"),
        ("a", "b", "'a' and 'b'"),
        (None, 1, "None and 1"),
        (True, 1, "True and 1"),
        (torch.tensor(2.0), torch.tensor(3.0), r"tensor\(2.\) and tensor\(3.\)"),
        (torch.tensor(2.0), 2.0, r"tensor\(2.\) and 2.0"),
    ],
)
def test_one_call_cannot_take_two_values_of_what_has_no_rows(one: object, other: object, said: str) -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, by: Any = 1) -> torch.Tensor:
            return x if by is None or isinstance(by, str) else x * by

    model = il.Model(Scaled())
    with pytest.raises(
        InputError, match=f"argument 1 is {said}, and one call takes one of them.\nGive every invoke the same"
    ):
        with model.trace() as tracer:
            tracer.invoke(X, one)(lambda: model.output)
            tracer.invoke(Y, other)(lambda: model.output)
    with pytest.raises(InputError, match=f"`by` is {said}"), model.trace() as tracer:
        tracer.invoke(X, by=one)(lambda: model.output)
        tracer.invoke(Y, by=other)(lambda: model.output)
    with model.trace() as tracer:
        first = tracer.invoke(X, one)(lambda: model.output)
        tracer.invoke(Y, one)(lambda: model.output)
    torch.testing.assert_close(first, model._module(X, one))


def test_inputs_that_do_not_fit_name_the_invokes_and_the_field(model: il.Model) -> None:
    """S-71."""
    with pytest.raises(
        InputError, match=r"invoke 0 and invoke 1 cannot be combined: argument 0 is Tensor\(2, 4\)"
    ):
        with model.trace() as tracer:
            with tracer.invoke(X):
                pass
            with tracer.invoke(torch.ones(1, 3)):
                pass


def test_an_invoke_after_the_model_has_started_is_refused(model: il.Model) -> None:
    """S-80."""
    with pytest.raises(TraceError, match="before the model starts"), model.trace(X) as tracer:
        model[0].output
        tracer.invoke(Y)


def test_an_error_of_a_block_is_the_users_own_and_kept_values_survive(model: il.Model) -> None:
    """Law 11."""
    with pytest.raises(ZeroDivisionError) as raised, model.trace() as tracer:
        with tracer.invoke(X):
            kept = model[0].output
            kept.shape[0] / 0
        with tracer.invoke(X):
            model.output
    assert str(raised.traceback[-1].path).endswith("test_prompts.py")
    assert kept.shape == (2, 4)


def test_nothing_outlives_the_trace(model: il.Model) -> None:
    """Law 10."""
    gc.collect()
    gc.disable()
    try:
        with model.trace() as tracer:
            with tracer.invoke(X):
                seen = model[0].output
            with tracer.invoke(Y):
                other = model[0].output
        watched = [weakref.ref(seen), weakref.ref(other), weakref.ref(tracer)]
        del seen, other, tracer
        assert [ref() for ref in watched] == [None] * 3
    finally:
        gc.enable()


def test_the_older_step_loop_runs_its_block_once_a_step() -> None:
    """S-82."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = self.step(x)
            return x

    model = il.Model(Loop())
    seen, last = [], None
    with model.trace(X) as tracer, pytest.warns(DeprecationWarning, match="for step in tracer.iter"):
        with tracer.iter[0:2] as step:
            last = model.step.output
            seen.append(step)
    assert seen == [0, 1]
    assert last is not None


@pytest.mark.parametrize("steps", ["tracer.iter[:1]", "tracer.all()"])
def test_the_older_step_loop_without_source_names_the_newer(steps: str, model: il.Model) -> None:
    """S-82."""
    text = f"with model.trace(X) as tracer:\n    with {steps}:\n        ran.append(1)"
    ran: list[int] = []
    with (
        pytest.warns(DeprecationWarning, match="for step in tracer.iter"),
        pytest.raises(
            CaptureError, match=r"its source cannot be had.*\nWrite `for step in tracer\.iter\[\.\.\.\]:`"
        ),
    ):
        exec(text, {"model": model, "X": X, "ran": ran})
    assert ran == []


def test_a_session_shares_values_between_traces(model: il.Model, net: nn.Sequential) -> None:
    """S-44."""
    with model.session() as session:
        with model.trace(X):
            hidden = model[0].output
        with model.trace(X * 3):
            model[2].output = hidden
            out = model.output
    assert session.model is model
    torch.testing.assert_close(out, net[3](net[0](X)))


def test_a_trace_inside_a_block_is_its_own(model: il.Model, net: nn.Sequential) -> None:
    """Law 9."""
    with model.trace() as tracer:
        with tracer.invoke(X):
            with model.trace(Y):
                inner = model[0].output
            outer = model[2].output
        with tracer.invoke(Y):
            pass
    torch.testing.assert_close(inner, net[0](Y))
    torch.testing.assert_close(outer, net[:3](X))


@pytest.mark.parametrize("grad", [False, True])
def test_what_has_no_rows_is_seen_by_the_blocks_after_as_it_was_written(grad: bool) -> None:
    """S-72, S-89: a value without a batch dimension is every prompt's, replaced or edited in place."""
    net = Odd(4)
    model, x = il.Model(net), torch.ones(1, 4)
    with torch.set_grad_enabled(grad), model.trace() as tracer:
        with tracer.invoke(x):
            model.inner.input
            model.constant.output = model.constant.output * 0.5 + 1
        with tracer.invoke(x):
            model.inner.output[:] = 0
            seen = model.constant.output.clone()
            model.constant.output = model.constant.output * 3
        with tracer.invoke(x):
            last = model.constant.output
    assert torch.equal(seen, torch.full((4,), 2.0))
    assert torch.equal(last, torch.full((4,), 6.0))
    expected = torch.cat([net.inner(x) + 6, torch.full((1, 4), 6.0), net.inner(x) + 6])
    torch.testing.assert_close(tracer.result, expected)


def test_a_block_reads_the_input_of_a_call_and_replaces_its_output(
    model: il.Model, net: nn.Sequential
) -> None:
    """S-72: its rows of the one and of the other port of one visit."""
    with model.trace() as tracer:
        with tracer.invoke(X):
            kept = model.output
        with tracer.invoke(X):
            model[3].input
            model[3].output = model[3].output * 0
    assert torch.equal(kept, tracer.result[:2])
    assert not tracer.result[2:].any()
    torch.testing.assert_close(kept, net(X))


# -- the same as functions -------------------------------------------------------------------------------------------


def test_functions_have_their_rows_and_see_what_those_before_them_wrote(
    model: il.Model, net: nn.Sequential
) -> None:
    """S-72, S-80, S-89, S-31: in place, by replacement and by skip; an empty prompt sees the whole batch."""
    with model.trace() as tracer:

        @tracer.invoke(X)  # type: ignore[untyped-decorator]
        def first() -> object:
            model[0].output[:] = 5
            model[2].skip(torch.zeros(2, 4))
            return model.output

        @tracer.invoke(Y)  # type: ignore[untyped-decorator]
        def second() -> object:
            model[0].input = model[0].input * 2
            return model.output

        @tracer.invoke()  # type: ignore[untyped-decorator]
        def everything() -> object:
            return model[0].output.clone(), model.output

    torch.testing.assert_close(first, net[3](torch.zeros(2, 4)))
    torch.testing.assert_close(second, net(Y * 2))
    torch.testing.assert_close(everything[0], torch.cat([torch.full((2, 4), 5.0), net[0](Y * 2)]))
    assert everything[1].shape == (5, 4)


def test_a_barrier_holds_functions_until_all_are_there(model: il.Model, net: nn.Sequential) -> None:
    """S-85: functions share by their closures, and wait by a barrier; one that never opens is reported."""
    order: list[str] = []
    held: list[torch.Tensor] = []
    with model.trace() as tracer:
        barrier = tracer.barrier(2)

        @tracer.invoke(X)  # type: ignore[untyped-decorator]
        def patched() -> object:
            barrier()
            order.append("first")
            model[2].output = held[0]
            return model.output

        @tracer.invoke(X * 2)  # type: ignore[untyped-decorator]
        def source() -> None:
            held.append(model[0].output)
            order.append("second")
            barrier()

    assert order == ["second", "first"]
    torch.testing.assert_close(patched, net[3](net[0](X * 2)))
    with pytest.raises(
        TraceError, match=r"waits for a barrier for 2 blocks, where 1 arrived, which never came"
    ):
        with model.trace() as tracer:
            tracer.invoke(X)(tracer.barrier(2))


def test_functions_whose_inputs_do_not_fit_are_refused(model: il.Model) -> None:
    """S-71: nothing has run."""
    ran: list[int] = []
    with pytest.raises(InputError, match=r"invoke 0 and invoke 1 cannot be combined: argument 0 is Tensor"):
        with model.trace() as tracer:
            for x in (X, torch.ones(1, 3)):
                tracer.invoke(x)(lambda: ran.append(1))
    assert ran == []

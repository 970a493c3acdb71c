"""The soak, shortened: mixed traces, random programs against hooks, faults on the library's lines.

`make soak` runs it in full; docs/robustness.md has its figures.
"""

import random
from collections.abc import Callable

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import interlace as il
from soak import faults, mixed, rows
from soak.measure import held
from soak.programs import Outcome, Subject, agree, program
from tests.models import sequential

BENCH = mixed.Bench(0)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=100, deadline=None, database=None)
def test_a_random_program_is_what_hooks_make_of_it(data: st.DataObject) -> None:
    """Law 2: a trace equals hand-written hooks, value for value, gradients and errors of torch included."""
    at = data.draw(st.integers(0, len(BENCH.subjects) - 1))
    length = data.draw(st.integers(1, 10))
    actions = program(BENCH.subjects[at], lambda n: data.draw(st.integers(0, n - 1)), length)
    with torch.set_grad_enabled(data.draw(st.booleans())):
        assert agree(BENCH.subjects[at], BENCH.models[at], actions) == ""


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=50, deadline=None, database=None)
def test_programs_of_two_prompts_are_what_hooks_on_their_rows_make_of_them(data: st.DataObject) -> None:
    """Laws 2 and 3: each sees and edits its own rows, whatever the other does."""
    at = data.draw(st.sampled_from(BENCH.by_rows))
    assert rows.agree(BENCH.subjects[at], BENCH.models[at], lambda n: data.draw(st.integers(0, n - 1))) == ""


def test_the_comparison_with_hooks_sees_a_difference() -> None:
    subject = Subject.of("net", sequential(), torch.randn(2, 3))
    other = il.Model(sequential())
    actions = program(subject, random.Random(0).randrange, 4)
    assert "apart" in agree(subject, other, actions)
    assert "errors" in Outcome(error="RuntimeError").differs(Outcome())


@pytest.mark.parametrize("kind", mixed.KINDS, ids=lambda kind: kind.__name__)
def test_each_kind_of_the_mixed_traces(kind: mixed.Kind) -> None:
    before = BENCH.traces
    for _ in range(3):
        kind(BENCH)
    assert BENCH.traces > before


def test_mixed_traces_leave_nothing_behind() -> None:
    """Law 10, over everything that may happen to a trace: as many tensors, runs and stacks as before."""
    bench = mixed.Bench(1)
    mixed.run(bench, 1_000)
    before = held()
    mixed.run(bench, 3_000)
    after = held()
    assert after.tensors <= before.tensors
    assert after.ours <= before.ours
    assert after.parked <= before.parked
    assert after.stacks <= before.stacks + 8


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("scenario", faults.SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_an_error_on_any_line_of_the_library_leaves_nothing_behind(
    scenario: Callable[[il.Model], None], error: type[BaseException]
) -> None:
    """Ctrl-C, or no memory, wherever it falls: no tap and no stack stays, and the next trace is right."""
    found = faults.inject(scenario, error, stride=7, start=1 + (error is MemoryError) * 3)
    assert found.injected > 40
    assert found.left == []


def test_the_injection_sees_what_is_left() -> None:
    def careless(model: il.Model) -> None:
        try:
            with model.trace(faults.X):
                model[0].output  # noqa: B018
        except KeyboardInterrupt:
            model[0]._module.__dict__["_compiled_call_impl"] = model[0]._module._call_impl
            raise

    found = faults.inject(careless, KeyboardInterrupt, stride=40)
    assert any(one.endswith("taps") for one in found.left)

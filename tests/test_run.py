"""Law 5: a request names one visit, counted from the start of the run; the error says what order works."""

from collections.abc import Callable
from typing import Any

import pytest

from interlace.errors import NotReachedError, OrderError
from interlace.run import Run
from interlace.site import Site

A, B = Site("a", "model.a"), Site("b", "model.b")


class Model:
    """Calls site `a`, then `b`, as often as it is told, the way taps do."""

    def __init__(self, *turns: str, fail: bool = False) -> None:
        self.turns, self.fail = turns, fail
        self.values: list[Any] = []
        self.run = Run(self)

    def __call__(self) -> str:
        for turn in self.turns:
            self.values.append(self.run.reach(turn, self.compute, (len(self.values),), {}))
        if self.fail:
            raise ArithmeticError
        return "done"

    def compute(self, value: int) -> int:
        return value * 10


def test_visits_are_exact() -> None:
    run = Model("a", "b", "a", "b").run
    assert run.ask(A, "output", 0).result == 0
    assert run.ask(B, "input", 0).args == (1,)
    assert run.ask(A, "output", 1).result == 20
    assert run.ask(B, "output", 1).result == 30
    assert run.finish() == "done"


def test_the_input_is_still_at_hand_at_the_output_of_its_visit() -> None:
    run = Model("a").run
    assert run.ask(A, "output", 0) is run.ask(A, "input", 0)
    run.end()  # a run that is only dropped stays among the parked ones of its thread


def test_what_is_written_is_what_the_model_goes_on_with() -> None:
    model = Model("a", "b", "a")
    model.run.ask(A, "input", 0).args = (7,)
    model.run.ask(B, "output", 0).result = -1
    visit = model.run.ask(A, "input", 1)
    model.run.skip(A, visit, "stand-in")
    model.run.finish()
    assert model.values == [70, -1, "stand-in"]


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        (
            (B, "output", 0),
            (A, "output", 0),
            "`model.a.output` has passed; the model is paused at `model.b.output`",
        ),
        ((A, "output", 1), (A, "output", 0), "called 2 times"),
        ((B, "input", 0), (A, "input", 0), "in the order in which the model computes them"),
    ],
)
def test_a_visit_that_has_passed(first: Any, then: Any, said: str) -> None:
    run = Model("a", "b", "a", "b").run
    run.ask(*first)
    with pytest.raises(OrderError) as caught:
        run.ask(*then)
    assert said in str(caught.value)
    assert run.finish() == "done"


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (lambda run: run.ask(B, "output", 5), "after 1 visit of it"),
        (lambda run: run.ask(Site("c", "model.c"), "output", 0), "never called it"),
        (lambda run: (run.stop(), run.ask(B, "output", 0)), "the run was stopped"),
    ],
)
def test_a_visit_that_never_comes(end: Callable[[Run], Any], said: str) -> None:
    run = Model("a", "b").run
    run.ask(A, "output", 0)
    with pytest.raises(NotReachedError, match=said):
        end(run)


def test_an_error_of_the_model_is_raised_once_where_the_block_waits() -> None:
    run = Model("a", fail=True).run
    with pytest.raises(ArithmeticError):
        run.ask(B, "output", 0)
    with pytest.raises(NotReachedError, match="failed with ArithmeticError"):
        run.ask(B, "output", 0)
    assert run.finish() is None

"""A function on a stack of its own, in strict turns: values, errors, context, and who may resume it."""

import contextvars
import sys
import threading
from collections.abc import Callable

import pytest
from greenlet import getcurrent, greenlet

from interlace.errors import ThreadError
from interlace.switch import KEPT, Switch, _homes, carried


class Turns:
    """A switch whose function notes what it sees at each of its turns."""

    def __init__(self, pauses: int = 2) -> None:
        self.seen: list[object] = []
        self.pauses = pauses
        self.switch = Switch(self.function, "luggage")

    def function(self) -> str:
        try:
            for turn in range(self.pauses):
                self.seen.append((turn, carried()))
                self.switch.pause()
        finally:
            self.seen.append("finally")
        return "result"


def test_turns_alternate_and_the_result_stays() -> None:
    turns = Turns()
    assert not turns.switch.started
    turns.switch.resume()
    assert turns.switch.started
    assert carried() is None
    assert turns.seen == [(0, "luggage")]
    turns.switch.resume()
    turns.switch.resume()
    assert turns.switch.done
    assert turns.switch.result == "result"


@pytest.mark.parametrize("after", [0, 1, 2])
def test_ending_unwinds_wherever_it_waits(after: int) -> None:
    turns = Turns()
    for _ in range(after):
        turns.switch.resume()
    turns.switch.end()
    turns.switch.end()
    assert turns.switch.done
    assert turns.seen[after:] == (["finally"] if after else [])


def test_an_error_is_kept_for_the_resumer_without_the_engines_frame() -> None:
    def fails() -> None:
        raise KeyError

    switch = Switch(fails, None)
    switch.resume()
    assert isinstance(switch.error, KeyError)
    assert switch.error.__traceback__ is not None
    assert switch.error.__traceback__.tb_frame.f_code is fails.__code__


def test_context_variables_are_handed_over_and_stay_apart() -> None:
    """Fact 4: the function starts with the caller's, and what it sets is its own."""
    number: contextvars.ContextVar[int] = contextvars.ContextVar("number", default=0)
    seen = []

    def function() -> None:
        seen.append(number.get())
        number.set(2)
        switch.pause()
        seen.append(number.get())

    number.set(1)
    switch = Switch(function, None)
    switch.resume()
    assert number.get() == 1
    number.set(3)
    switch.resume()
    assert seen == [1, 2]
    assert number.get() == 3


def test_another_thread_may_not_resume() -> None:
    turns = Turns()
    turns.switch.resume()
    caught: list[BaseException] = []

    def resume() -> None:
        try:
            turns.switch.resume()
        except ThreadError as error:
            caught.append(error)

    thread = threading.Thread(target=resume)
    thread.start()
    thread.join()
    assert len(caught) == 1
    turns.switch.end()


def test_foreign_greenlets_around() -> None:
    """A switch may be resumed from other greenlets than the one that started it, in any order."""
    one, two = Turns(), Turns()
    main = getcurrent()

    def foreign() -> None:
        one.switch.resume()
        main.switch()
        two.switch.resume()
        one.switch.resume()

    other = greenlet(foreign)
    two.switch.resume()
    other.switch()
    one.switch.resume()
    other.switch()
    assert one.switch.done
    two.switch.end()
    assert one.seen == two.seen == [(0, "luggage"), (1, "luggage"), "finally"]


def test_workers_are_kept_and_bounded_and_hold_nothing() -> None:
    parked = list(_homes.home.parked)
    many = [Turns() for _ in range(3 * KEPT)]
    for turns in many:
        turns.switch.resume()
    for turns in many:
        turns.switch.end()
    idle = _homes.home.idle
    assert 0 < len(idle) <= KEPT
    assert all(worker.job is None and worker.tracing is None for worker in idle)
    assert _homes.home.parked == parked


def test_a_worker_that_was_started_deep_in_calls_is_not_kept() -> None:
    """Law 12: what ran on this thread before takes nothing from the recursion that is left to a job."""

    def deep(calls: int, job: Callable[[], int]) -> int:
        if calls:
            return deep(calls - 1, job)
        switch = Switch(job, None)
        switch.resume()
        return int(switch.result)

    def left() -> int:
        try:
            return 1 + left()
        except RecursionError:
            return 0

    limit = sys.getrecursionlimit()
    _homes.home.idle.clear()
    assert deep(limit // 2, left) < limit // 2
    assert deep(0, left) > limit // 2
    deep(limit // 4, lambda: deep(limit // 4, left))
    assert deep(0, left) > limit // 2

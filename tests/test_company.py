"""Traces beside what else switches stacks: greenlets of other libraries, gevent, asyncio."""

# ruff: noqa: PT012

import asyncio
import contextlib
import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import Any, cast

import gevent
import pytest
import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

import interlace as il
from interlace import switch
from interlace.tap import SLOT
from tests.models import sequential

X = torch.ones(2, 3)


class Yields(nn.Module):
    """Hands the turn to somebody else in the middle of its forward."""

    def __init__(self, turn: Callable[[], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.turn = turn

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        self.turn()
        return self.b(x)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _nobody_parked() -> None:
    switch.home().parked.clear()  # what a test of the engine has dropped half-way


def settled(*nets: nn.Module) -> bool:
    home = switch.home()
    gc.collect()
    bare = all(SLOT not in module.__dict__ for net in nets for module in net.modules())
    return bare and not home.parked and not home.abandoned


def test_greenlets_that_take_turns_inside_their_traces() -> None:
    net = sequential()
    model, main, order = il.Model(net), getcurrent(), []
    parts = [net[0](X), net[1](net[0](X)), net(X)]

    def work(name: str) -> None:
        with model.trace(X):
            for at in range(3):
                assert torch.equal(model[at].output, parts[at])
                order.append(f"{name}{at}")
                main.switch()

    one, two = greenlet(lambda: work("one")), greenlet(lambda: work("two"))
    for turn in (one, two, two, one, one, two, one, two):
        turn.switch()
    assert order == ["one0", "two0", "two1", "one1", "one2", "two2"]
    assert one.dead
    assert two.dead
    assert settled(net)


def test_a_greenlet_that_is_killed_in_its_block_ends_its_run() -> None:
    """One that is only dropped is kept alive by its run; `throw` it, as gevent's `kill` does."""
    net = sequential()
    model, main = il.Model(net), getcurrent()

    def work() -> None:
        with model.trace(X):
            model[0].output  # noqa: B018
            main.switch()

    killed = greenlet(work)
    killed.switch()
    killed.throw()
    assert killed.dead
    assert settled(net)


def test_a_model_that_switches_to_another_greenlet_half_way() -> None:
    """The other greenlet opens a trace of its own, of the same model, while the first is in its forward."""
    seen: list[Tensor] = []

    def turn() -> None:
        if not others:
            return
        others.pop().switch()

    net = Yields(turn)
    model = il.Model(net)

    def other() -> None:
        with torch.no_grad(), model.trace(X):
            seen.append(model.b.output)

    others = [greenlet(other)]
    with model.trace(X):
        out = model.b.output
        assert out.requires_grad
        assert torch.is_grad_enabled()
    others.append(greenlet(other))
    with model.trace(X):
        model.b.output  # noqa: B018
    assert torch.equal(out, net(X))
    assert len(seen) == 2
    assert torch.equal(seen[0], out)
    assert not seen[0].requires_grad
    assert settled(net)


def test_gevent_runs_traces_side_by_side_and_waits_in_blocks_and_in_models() -> None:
    net = Yields(lambda: gevent.sleep(0))
    model, wanted = il.Model(net), net(X)
    hidden = net.a(X)

    def work(n: int) -> Tensor:
        with model.trace(X * 1):
            first = model.a.output
            gevent.sleep(0)
            if n == 3:
                raise KeyError
            assert torch.equal(first, hidden)
            gevent.sleep(0.001 * (n % 3))
            return cast("Tensor", model.b.output)

    jobs = [gevent.spawn(work, n) for n in range(8)]
    killed = gevent.spawn(work, 9)
    gevent.sleep(0)
    killed.kill()
    with contextlib.redirect_stderr(None):
        gevent.joinall(jobs)
    for n, job in enumerate(jobs):
        assert isinstance(job.exception, KeyError) if n == 3 else torch.equal(job.value, wanted)
    del job, jobs, killed
    assert settled(net)


def test_a_gevent_timeout_ends_the_block_and_the_run() -> None:
    net = Yields(lambda: gevent.sleep(5))
    model = il.Model(net)
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.01), model.trace(X):
        model.a.output  # noqa: B018
        gevent.sleep(5)
    assert settled(net)


def test_gevent_that_has_patched_everything() -> None:
    """Threads are greenlets then, and locks too."""
    script = """
        from gevent import monkey
        monkey.patch_all()
        import threading
        import torch, gevent
        import interlace as il
        model = il.Model(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU()))
        x = torch.ones(1, 3)
        wanted, errors = model(x), []
        def work():
            try:
                for _ in range(5):
                    with model.trace(x):
                        model[0].output
                        gevent.sleep(0)
                        assert torch.equal(model[1].output, wanted)
            except BaseException as error:
                errors.append(error)
        threads = [threading.Thread(target=work) for _ in range(5)]
        [t.start() for t in threads]; [t.join() for t in threads]
        assert not errors, errors
        assert all("_compiled_call_impl" not in m.__dict__ for m in model._module.modules())
        print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


def test_asyncio_tasks_wait_and_are_cancelled_in_their_blocks() -> None:
    net = sequential()
    model = il.Model(net)
    parts = [net[0](X), net[1](net[0](X)), net(X)]

    async def one(n: int) -> None:
        with model.trace(X):
            for at in range(3):
                assert torch.equal(model[at].output, parts[at])
                await asyncio.sleep(0 if n else 10)

    async def together() -> None:
        first = asyncio.ensure_future(one(0))
        await asyncio.gather(*(one(n) for n in range(1, 5)))
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(one(0), 0.01)

    asyncio.run(together())
    assert settled(net)


def test_a_thread_that_ends_leaves_no_stack_behind() -> None:
    """The idle stacks of a thread end with it; left to the interpreter, their frames would stay for good."""
    model = il.Model(sequential())

    def work() -> None:
        with model.trace(X):
            model[0].output  # noqa: B018

    def stacks() -> int:
        gc.collect()
        return sum(issubclass(type(one), greenlet) for one in gc.get_objects())

    def some(count: int) -> None:
        for _ in range(count):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()

    some(2)
    before = stacks()
    some(20)
    assert stacks() <= before + 1

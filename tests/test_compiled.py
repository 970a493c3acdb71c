"""The hot path once in C and once in Python: both are the library, and each runs the whole suite (`.ci/run`)."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import interlace as il
from interlace import (
    batch,
    calls,
    capture,
    compiled,
    invoke,
    run,
    schedule,
    served,
    site,
    steps,
    switch,
    tap,
    trace,
    workers,
)
from interlace.compiled import quick

BUILT = "c = __import__('interlace.compiled', fromlist=['c']); print(c.how)"
needs_it = pytest.mark.skipif(quick is None, reason=f"the hot path runs {compiled.how}")


def told(**environment: str) -> str:
    """What a process of its own says of the hot path."""
    ran = subprocess.run(
        [sys.executable, "-c", BUILT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()


def test_it_is_built_where_there_is_a_compiler() -> None:
    """Else `make test` would run in Python twice, and nobody would notice."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    assert told(**{compiled.SETTING: "1"}) == "compiled"


def test_it_can_be_switched_off_and_the_report_says_so() -> None:
    assert told(**{compiled.SETTING: "0"}) == "in Python, since INTERLACE_COMPILED=0"
    assert f"calls         {compiled.how}\n" in il.report()


def test_what_is_in_c_has_the_names_and_words_of_python() -> None:
    for name in ("output", "input"):
        own = vars(il.Envoy)[name]
        assert isinstance(own, property)
        assert own.__doc__
        assert own.fset is not None


def line_of(*keys: int) -> Any:
    return quick.Line(served=run.Run(dict).tally, everywhere=(), keys=keys)


@needs_it
def test_notes_count_what_a_line_knows_and_what_it_does_not() -> None:
    """However much is noted, what is kept is a number for each site."""
    here, there = line_of(10, 20), line_of(20)
    taps = [
        quick.Report(line=line, key=key, module=None, inner=str, looked=None, tap=None)
        for line, key in ((here, 10), (here, 20), (there, 20))
    ]

    def model() -> None:
        for _ in range(3):
            for report in taps:
                report()

    one = run.Run(model)
    here.serve(one.tally)
    there.serve(one.tally)  # too late: the notes are for the other line
    assert not one.tally.entered
    one.finish()
    one.tally.entered.append("operation")
    then, _ = one.passed_by_now()
    one.tally.entered.append("operation")
    assert [then.get(key, 0) for key in (10, 20, 30, "operation")] == [3, 6, 0, 1]
    then[20] = then["later"] = 9
    assert [then.get(key, 0) for key in (20, "later")] == [9, 9]
    with pytest.raises(TypeError, match="a number of times"):
        then[20] = "often"  # type: ignore[assignment]
    assert one.tally.entered
    assert one.seen(20, "input") == one.seen(20, "output") == 6
    assert one.starts == {10: 3, 20: 6, "operation": 2}
    assert not one.tally.entered
    assert one.ends == {10: 3, 20: 6}
    assert one.seen(20, "input") == 6
    assert one.seen(30, "input") == 0
    assert one.passed_by_now()[0].get(20) == 6


@needs_it
def test_what_is_asked_for_is_a_set_whatever_line_knows_it() -> None:
    one = run.Run(dict)
    asked = one._asked["output"]
    for key in (10, 30, "operation"):
        asked.add(key)

    def now() -> list[object]:
        return [key for key in (10, 20, 30, 40, "operation") if key in asked]

    assert now() == [10, 30, "operation"]
    line_of(10, 20).serve(one.tally)  # knows one of them, and one that is not among them
    assert now() == [10, 30, "operation"]
    more = asked | {20, 40}
    asked.update([20, 30])
    for key in (10, "operation", "never"):
        asked.discard(key)
    assert now() == [20, 30]
    assert all(key in more for key in (10, 20, 30, 40, "operation"))
    line_of(40).serve(one.tally)  # too late: the marks are for the other line
    asked.add(40)
    assert now() == [20, 30, 40]


@needs_it
def test_taps_of_another_line_find_what_is_asked_for() -> None:
    here, there = line_of(10), line_of(10)
    one = run.Run(lambda: [report() for report in taps])
    taps = [
        quick.Report(line=line, key=10, module=None, inner=dict, looked=None, tap=None)
        for line in (here, there)
    ]
    here.serve(one.tally)
    there.serve(one.tally)
    place = site.Site(10, "model")
    for number in (0, 1):
        assert one.ask(place, "output", number).number == number
    assert one.finish() == [{}, {}]


@needs_it
def test_first_visits_are_what_nobody_has_counted() -> None:
    """Those that a loop passes in search of its next step, whether a line knows their sites or not."""
    line = line_of(10, 20, 30)
    one = run.Run(dict)
    one.known = lambda: (10, 20, 30)
    line.serve(one.tally)
    one.tally.left.append(10)
    one.count()
    one.tally.left.append(20)
    one.learn([40, 50])
    one.tally.left.append(50)
    one.tally.left.append("operation")
    one.report("first")
    assert [key for key in (10, 20, 30, 40, 50, "operation") if key in one.tally.after] == [30, 40]
    assert not any(key in one._asked["output"] for key in (30, 40))


@needs_it
@pytest.mark.parametrize(
    "call",
    [
        lambda: quick.learn(),
        lambda: quick.learn(1),
        lambda: quick.get_output(3),
        lambda: quick.get_input(None),
        lambda: quick.set_output(3),
        lambda: quick.set_output(3, 4),
        lambda: quick.set_attr(3),
        lambda: quick.set_attr(object(), "output", 4),
        lambda: quick.ask(),
        lambda: quick.ask(1, 2, 3, 4),
        lambda: quick.resume(3),
        lambda: quick.pause(3),
        lambda: quick.switch_init(),
        lambda: quick.switch_init(1, 2, 3),
        lambda: quick.execute(3),
        lambda: quick.run_init(1, 2),
        lambda: quick.model(3),
        lambda: quick.finish(3),
        lambda: quick.owner(3),
        lambda: quick.opened(1, 2, 3),
        lambda: quick.closed(1, 2, 3),
        lambda: quick.worker_init(1, 2, 3, 4, 5, 6, 7),
        lambda: quick.serve(3),
        lambda: quick.concatenate(3),
        lambda: quick.worker_ask(1, 2, 3, 4),
        lambda: quick.report(3),
        lambda: quick.report(3, "first"),
        lambda: quick.ahead(),
        lambda: quick.ahead(1, 2, 3, 4),
        lambda: quick.number(1, 2, 3),
        lambda: quick.advance(1, 2),
        lambda: quick.placed(1, 2, 3),
        lambda: quick.given_call(3),
        lambda: quick.combined(1, 2),
        lambda: quick.install(1, 2),
        lambda: quick.remove(1, 2),
        lambda: quick.begin(),
        lambda: quick.begin(1, 2),
        lambda: quick.close(3),
        lambda: quick.leave_run(3, None),
        lambda: quick.schedule_init(),
        lambda: quick.part(3),
        lambda: quick.trace_del(3),
        lambda: quick.invoke_init(1, 2, 3),
        lambda: quick.invoke_exit(1, 2, 3, 4),
        lambda: quick.bound_call(1, 2),
        lambda: quick.settled(),
        lambda: quick.settled(1, "name"),
        lambda: quick.family_close(1, 2),
        lambda: run.Run(dict)._asked["output"].add([]),
        lambda: run.Run(dict)._asked["output"].update(3),
        lambda: run.Run(dict)._asked["output"] | 3,
        lambda: quick.turns(1, []),
        lambda: quick.turns(schedule.Schedule([]), [1]),
        lambda: quick.reached(1, 2),
        lambda: quick.reached(schedule.Schedule([]), 1),
        lambda: quick.get_item(3),
        lambda: quick.get_item([3], 0),
        lambda: quick.same([], [{}], []),
        lambda: quick.same([1], [], []),
        lambda: quick.count(1, 2),
        lambda: quick.count([[]], run.Counts()),
        lambda: quick.place([], "a", {}),
        lambda: quick.place([1], "a", [2]),
        lambda: quick.displace([{}], "a", []),
        lambda: quick.Line(served=1, everywhere=(), keys=()),
        lambda: quick.Line(served=run.Tally(), everywhere=[], keys=()),
        lambda: quick.Line(served=run.Tally(), everywhere=(1,), keys=()),
        lambda: quick.Line(served=run.Tally(), everywhere=(), keys=[1]),
        lambda: quick.Line(served=run.Tally(), everywhere=(), keys=()).serve(2),
        lambda: quick.Report(line=1, key=1, module=1, inner=1, looked=1, tap=1),
        lambda: quick.Report(line=line_of(1), key=1, module=1, inner=1, looked=1, tap=1),
        lambda: quick.Report(line=line_of(1), key=2, module=1, inner=1, looked={}, tap=1),
        lambda: run.Run(dict).tally.entered.append([]),
        lambda: quick.count(1, {}),
    ],
)
def test_wrong_arguments_are_errors_and_no_crash(call: Any) -> None:
    with pytest.raises((TypeError, AttributeError)):
        call()


@needs_it
def test_objects_that_were_never_made_are_errors_and_no_crash() -> None:
    """Their slots hold nothing."""
    place = site.Site(1, "model")
    blank_run = run.Run.__new__(run.Run)
    for call in (
        lambda: quick.ask(blank_run, place, "output", 0),
        lambda: quick.ask(run.Run(dict), site.Site.__new__(site.Site), "output", 0),
        lambda: quick.finish(blank_run),
        lambda: quick.model(blank_run),
        lambda: switch.Switch.__new__(switch.Switch).resume(),
        lambda: switch.Switch.__new__(switch.Switch).pause(),
        lambda: switch.Switch.__new__(switch.Switch)._execute(),
        lambda: workers.Worker.__new__(workers.Worker).ask(place, "output", 0),
        lambda: schedule.Schedule.__new__(schedule.Schedule).reached(site.Visit(1, 0, (), {})),
        lambda: calls.Given.__new__(calls.Given)(),
        lambda: calls.Given.__new__(calls.Given).combined([]),
        lambda: calls.Given.__new__(calls.Given)._placed((), {}),
        lambda: tap.Taps.__new__(tap.Taps).install(1),
        lambda: tap.Taps.__new__(tap.Taps).remove(1),
        lambda: trace.Trace.__new__(trace.Trace)._begin(dict),
        lambda: blank_run.ahead(place, "output", 0),
        lambda: blank_run.report("first"),
        lambda: steps.Steps.__new__(steps.Steps).number(place, "output"),
        lambda: steps.Steps.__new__(steps.Steps).advance(1),
        lambda: invoke.Invoke.__new__(invoke.Invoke).__exit__(None, None, None),
        lambda: capture.Bound.__new__(capture.Bound)(capture.Scope({}, frozenset(), {})),
        lambda: capture.Family.__new__(capture.Family).close(sys._getframe()),
    ):
        with pytest.raises(AttributeError):
            call()


@needs_it
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="from Python 3.12 on a block is left in Python")
def test_a_block_that_was_met_before_is_captured_without_python(monkeypatch: pytest.MonkeyPatch) -> None:
    model, total = il.Model(nn.Linear(1, 1)), torch.zeros(1, 1)
    refuse: list[Any] = []
    for _ in range(2):
        with model.trace() as tracer:
            for _ in range(2):
                with tracer.invoke(torch.ones(1, 1)):
                    total = total + model.output
            for owner, name in (
                (invoke.Prompts, "add_body"),
                (capture.Family, "_commit"),
                (capture.Scope, "_il_start"),
            ):
                monkeypatch.setattr(owner, name, refuse)
        monkeypatch.setattr(invoke, "capture", refuse)
    assert torch.equal(total, 4 * model._module(torch.ones(1, 1)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.down(self.up(x).relu())
        return hidden + x


@pytest.mark.parametrize("container", [False, True])
def test_torch_compile_is_not_held_up(container: bool) -> None:
    """It compiles as much as without a trace, with taps in either form, and warns of nothing."""
    torch._dynamo.reset()
    block = nn.Sequential(Block(), Block()) if container else Block()
    net = nn.Sequential(nn.Linear(2, 2), block)
    model, x = il.Model(net), torch.ones(1, 2)
    seen: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        seen.append(graph)
        return graph.forward

    with torch.no_grad(), model.trace(x):
        before = model[1].output
    block.compile(backend=backend)
    with torch.no_grad():
        net(x)
        graphs = len(seen)
        torch._dynamo.reset()
        with model.trace(x):
            after = model[1].output
    torch.testing.assert_close(after, before)
    assert graphs > 0
    assert len(seen) == 2 * graphs
    torch._dynamo.reset()


def kinds_of_slots() -> dict[str, dict[str, str]]:
    """What runs, switches and workers begin with, by the names of their slots."""
    trace = il.Model(nn.ReLU()).trace(torch.ones(1))
    trace._owner = None  # which it has from when it is entered
    made = [
        run.Run(int),
        served.Served(int, schedule.Schedule([])),
        switch.Switch(int, None),
        workers.Worker(trace, int, None, "a block", (), None),
    ]
    slots = [
        run.Run.__slots__,
        (*run.Run.__slots__, *served.Served.__slots__),
        switch.Switch.__slots__,
        workers.Worker.__slots__,
    ]
    return {
        type(one).__name__: {
            name: type(getattr(one, name)).__name__ for name in names if name not in ("__weakref__", "_home")
        }
        for one, names in zip(made, slots, strict=True)
    }


def put_together() -> list[str]:
    """What becomes of the inputs of several prompts, of many kinds."""
    x, ids = torch.arange(6.0).reshape(2, 3), torch.arange(4)
    inputs: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = [
        [((x,), {})],
        [((x,), {}), ((x[:1] + 9,), {}), ((x[:0],), {})],
        [((x, ids[:2]), {}), ((x, ids), {})],
        [((x, 3), {}), ((x, 3), {})],
        [((x, x.sum()), {}), ((x, x.sum()), {})],
        [((x,), {"ids": ids}), ((x,), {"ids": ids})],
        [((nn.Parameter(x),), {}), ((x,), {})],
        [(([x, x],), {}), (([x, x],), {})],
        [((x.sum(), x), {}), ((x.sum(), x), {})],
        [((), {}), ((), {})],
        [((x.sum(),), {}), ((x,), {})],
        [((x,), {}), ((x, x), {})],
        [((x,), {}), ((x[:, 1:],), {})],
        [((x,), {}), ((x[0],), {})],
        [((x,), {}), ((x.double(),), {})],
        [((x,), {}), ((x.to("meta"),), {})],
        [((x, 3), {}), ((x, 4), {})],
        [((x,), {}), (("text",), {})],
    ]
    said = []
    for given in inputs:
        try:
            said.append(repr(batch.concatenate(given)))
        except (il.errors.InputError, RuntimeError) as error:
            said.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    return said


@pytest.mark.parametrize("what", [kinds_of_slots, put_together])
def test_what_is_made_in_c_is_what_python_makes(what: Callable[[], Any]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", f"from tests.test_compiled import *; print({what.__name__}())"],
        env={**os.environ, compiled.SETTING: "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(what()) == ran.stdout.strip()


@needs_it
def test_counts_drift_nowhere() -> None:
    """Each reference that is taken in C is given back: of what is in every trace there are no more afterwards."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    model, x = il.Model(net), torch.ones(1, 2)
    edited = model.edit(lambda model: model[0].output.add_(1))

    def rows() -> None:
        model[0].output = model[0].output + 1
        model[1].output = x
        model[2].output[:] = 0

    def several(*blocks: Callable[[], Any]) -> None:
        with model.trace() as tracer:
            for block in blocks:
                tracer.invoke(x)(block)

    def once() -> None:
        with model.trace(x):
            model[0].input  # noqa: B018
            model[0].output = model[0].output * 2
            model[1].output  # noqa: B018
        for given, block in (
            (x, lambda: (model[2].output, model[0].output)),
            (torch.ones(1, 3), lambda: model[2].output),
            (x, lambda: setattr(model[1], "output", torch.ones(3))),
        ):
            with (
                pytest.raises((il.errors.OrderError, RuntimeError, il.errors.WriteError)),
                model.trace(given),
            ):
                block()
        edited(x)
        several(rows, lambda: model[2].output)
        with pytest.raises(ValueError):
            several(rows, lambda: int("one"))

    watched = [
        None,
        True,
        False,
        (),
        "output",
        "input",
        x,
        net[0],
        model[0]._site,
        switch.getcurrent,
        torch.Tensor,
    ]
    for _ in range(20):
        once()
    before = [sys.getrefcount(value) for value in watched]
    for _ in range(200):
        once()
    after = [sys.getrefcount(value) for value in watched]
    assert [new - old for old, new in zip(before, after, strict=True) if abs(new - old) > 100] == []


# -- where C once did not do what Python does ---------------------------------------------------------------


def test_an_interrupt_while_the_sides_change_leaves_each_its_state() -> None:
    """Law 8: here it falls into the comparison of what the two sides have on."""

    class Raising(TorchFunctionMode):
        armed = False

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

        def __eq__(self, other: object) -> bool:
            if Raising.armed:
                Raising.armed = False
                raise KeyboardInterrupt
            return self is other

        def __hash__(self) -> int:
            return id(self)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with Raising():
                Raising.armed = True
                result: torch.Tensor = self.inside(x)
            return result

    model, mine, x = il.Model(Net()), Raising(), torch.ones(1, 2)
    with model.trace(x) as tracer:
        with mine:
            with pytest.raises(KeyboardInterrupt):
                model.inside.output  # noqa: B018
            assert torch.overrides._get_current_function_mode_stack() == [mine]  # type: ignore[no-untyped-call]
        tracer.stop()


def test_a_cache_that_a_block_of_several_begins_has_the_visit_it_stands_at() -> None:
    model, x = il.Model(nn.Sequential(nn.Linear(2, 2), nn.ReLU())), torch.ones(1, 2)
    with model.trace() as tracer:

        @tracer.invoke(x)  # type: ignore[untyped-decorator]
        def cached() -> Any:
            model[0].output  # noqa: B018
            return tracer.cache()

        tracer.invoke(x)(lambda: None)

    assert set(cached) == {"model.0", "model.1", "model"}


def test_arguments_of_other_types_are_unpacked() -> None:
    class Given(NamedTuple):
        x: torch.Tensor

    model = il.Model(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    with model.trace(torch.ones(1, 2)):
        model[0].inputs = il.insist((Given(torch.zeros(1, 2)), OrderedDict()))
        hidden = model[0].output
    torch.testing.assert_close(hidden, model[0]._module(torch.zeros(1, 2)))


def test_an_order_error_of_the_model_is_the_models() -> None:
    """Law 11: here of a trace in its forward."""
    inner = il.Model(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with inner.trace(self.first(x)):
                inner[1].output  # noqa: B018
                inner[0].output  # noqa: B018
            result: torch.Tensor = self.last(x)
            return result

    model = il.Model(Net())
    with (
        pytest.raises(il.errors.OrderError, match=r"`model\[0\].output` has passed"),
        model.trace(torch.ones(1, 2)),
    ):
        model.last.output  # noqa: B018


def test_a_visit_beyond_all_numbers_is_not_reached() -> None:
    model = il.Model(nn.Sequential(nn.Linear(2, 2)))
    with (
        model.trace(torch.ones(1, 2)) as tracer,
        pytest.raises(il.errors.NotReachedError, match="was not reached"),
    ):
        tracer._run.ask(model[0]._site, "output", 2**70)

"""Fact 5 and law 7: taps stand in torch's own slot while a trace is open, and leave it as they found it."""

import copy
import pickle
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import interlace as il
from interlace import tap
from interlace.compiled import quick
from interlace.errors import NotReachedError, TraceError
from interlace.tap import SLOT

X = torch.ones(1, 4)


def sequential() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


def bare(net: nn.Module) -> bool:
    return all(SLOT not in part.__dict__ for part in net.modules())


def test_torch_still_looks_at_the_slot_first() -> None:
    """`nn.Module.__call__` must call what stands in an instance's `_compiled_call_impl`, or no tap works."""
    net = nn.Linear(4, 4)
    net.__dict__[SLOT] = lambda *args, **kwargs: "the slot"
    assert net(X) == "the slot", (
        "torch no longer calls an instance's `_compiled_call_impl`; taps need another place"
    )
    state = net.__getstate__()  # type: ignore[no-untyped-call]
    assert SLOT not in state, "torch no longer drops the slot when a module is pickled"
    assert nn.Module._compiled_call_impl is None


@pytest.mark.parametrize("order", ["inner first", "outer first"])
@pytest.mark.parametrize("compiled", [False, True])
def test_trees_over_one_module_share_its_taps_and_leave_in_any_order(order: str, compiled: bool) -> None:
    """The slot keeps reporting until the last trace of any tree is left, then holds what it held before."""
    net = sequential()
    expected = [net[0](X), net[0](X).relu(), net(X)]
    calls: list[int] = []

    def own(*args: Any) -> Any:
        calls.append(1)
        return net[1]._call_impl(*args)  # type: ignore[no-untyped-call]

    if compiled:
        net[1].__dict__[SLOT] = own

    def parked(model: Any, *path: int) -> Iterator[Tensor]:
        with model.trace(X):
            for number in path:
                yield model[number].output
            yield model.output

    for _ in range(2):
        whole, again = il.Model(net), il.Model(net)
        one, two = parked(whole, 0, 1), parked(again, 0, 1)
        assert torch.equal(next(one), expected[0])
        assert torch.equal(next(two), expected[0])
        first, second = (one, two) if order == "outer first" else (two, one)
        assert torch.equal(next(first), expected[1])
        assert torch.equal(next(first), expected[2])
        first.close()  # type: ignore[attr-defined]
        third = parked(again if order == "inner first" else whole, 0, 1)
        assert torch.equal(next(third), expected[0])
        assert torch.equal(list(second)[-1], expected[2])
        assert torch.equal(list(third)[-1], expected[2])
        if compiled:
            assert net[1].__dict__.pop(SLOT) is own
            assert len(calls) == 3
            calls.clear()
        assert bare(net)
        if compiled:
            net[1].__dict__[SLOT] = own


def test_taps_that_are_lent_stand_while_the_other_tree_takes_its_own_away() -> None:
    """Law 9: a run in another thread may call the module at any moment of it."""
    net = sequential()
    mine, theirs = il.Model(net), il.Model(net)
    gone: list[str] = []

    def look(frame: FrameType, event: str, arg: Any) -> None:
        if SLOT not in net[0].__dict__:
            gone.append(f"{event} {frame.f_code.co_name}")

    with mine.trace(X):
        tracer = theirs.trace(X)
        tracer.__enter__()
        sys.setprofile(look)
        try:
            tracer.__exit__(None, None, None)
        finally:
            sys.setprofile(None)
    assert gone == []
    assert bare(net)


def test_a_tree_over_a_part_shares_with_the_whole() -> None:
    net = nn.Sequential(sequential(), nn.Linear(4, 4))
    whole, part = il.Model(net), il.Model(net[0])
    with part.trace(X):
        inner = part[0].output
        with whole.trace(X):
            outer = whole[0][0].output
            last = whole[1].output
        rest = part[2].output
    assert torch.equal(inner, outer)
    assert torch.equal(last, net(X))
    assert torch.equal(rest, net[0](X))
    assert bare(net)


def test_compile_in_the_slot_is_called_through_and_kept() -> None:
    """What `module.compile()` left runs inside the trace too, and stands there again afterwards."""
    net = sequential()
    expected = net(X)
    net[0].compile(backend="eager")
    compiled = net[0].__dict__[SLOT]
    model = il.Model(net)
    for _ in range(2):
        with model.trace(X):
            hidden = model[0].output
            out = model.output
        assert torch.equal(out, expected)
        assert hidden.shape == (1, 4)
        assert net[0].__dict__[SLOT] is compiled
    del net[0].__dict__[SLOT]
    with model.trace(X):
        model[0].output  # noqa: B018
    assert bare(net)


def test_compile_during_a_trace_stays() -> None:
    net = sequential()
    model = il.Model(net)

    def compiled(*args: Any) -> Any:
        return net[2]._call_impl(*args)  # type: ignore[no-untyped-call]

    with model.trace(X):
        net[2].__dict__[SLOT] = compiled
    assert net[2].__dict__.pop(SLOT) is compiled
    assert bare(net)


def test_a_model_is_copied_and_pickled_without_its_taps_while_a_trace_is_open() -> None:
    """A copy made inside a trace is an ordinary model, and the trace goes on."""
    net = sequential()
    model = il.Model(net)
    with model.trace(X):
        model[0].output[:] = 0
        deep, loaded = copy.deepcopy(net), pickle.loads(pickle.dumps(net))
        assert bare(deep)
        assert bare(loaded)
        assert torch.equal(deep(X), net(X))
        edited = model.output
    assert torch.equal(edited, net[2](torch.zeros(1, 4)))
    assert torch.equal(loaded(X), net(X))


def test_a_model_outside_a_trace_is_untouched() -> None:
    """Law 7: nothing on the modules before, between and after traces."""
    net = sequential()
    before = [dict(part.__dict__) for part in net.modules()]
    model = il.Model(net)
    with model.trace(X):
        model[1].output[:] = 0
    assert [dict(part.__dict__) for part in net.modules()] == before
    assert repr(net) == repr(sequential())


def test_data_parallel_is_refused() -> None:
    """Its replicas carry the slot of the original into other threads."""
    net = nn.DataParallel(sequential())
    net.device_ids = [0, 1]
    model = il.Model(net)
    with pytest.raises(TraceError, match="DataParallel"), model.trace(X):
        pass
    assert bare(net)


def test_hooks_of_others_come_before_the_tap() -> None:
    """A trace sees arguments as the caller made them and results as the caller gets them."""
    net = sequential()
    net[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    net[0].register_forward_hook(lambda module, args, output: output + 1)
    expected = net(X)
    model = il.Model(net)
    with model.trace(X):
        given = model[0].input
        hidden = model[0].output
    assert torch.equal(given, X)
    linear: Any = net[0]
    assert torch.equal(hidden, nn.functional.linear(X * 2, linear.weight, linear.bias) + 1)
    assert torch.equal(net(X), expected)


def test_torch_still_looks_at_the_hooks_that_are_known() -> None:
    """A tap calls the forward of a module that has no hooks, as `nn.Module._call_impl` would. If torch has got
    other kinds of hooks, taps go the long way by themselves; look at `tap.HOOKS` then."""
    assert tap.SHORT, "torch looks at other hooks than before; taps now call `_call_impl` every time"


@pytest.mark.parametrize("short", [True, False])
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
        "register_full_backward_pre_hook", "register_module_forward_hook", "register_module_forward_pre_hook",
        "register_module_full_backward_hook", "register_module_full_backward_pre_hook",
    ],
)  # fmt: skip
@pytest.mark.parametrize("replaced", [False, True])
def test_every_kind_of_hook_fires_in_a_trace(
    register: str, replaced: bool, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registered before the trace, and for those of one module in dictionaries that somebody put in anew too."""
    monkeypatch.setattr(tap, "SHORT", short)
    net, fired = sequential(), []
    model = il.Model(net)
    with model.trace(X):  # the taps are made here
        pass
    part: Any = net[0]
    if replaced:
        for name in tap.HOOKS:
            setattr(part, name, type(getattr(part, name))())

    def hook(*args: Any) -> None:
        fired.append(args[0])

    owner = nn.modules.module if "module" in register else part
    taken = getattr(owner, register)(hook)
    try:
        net(X.clone().requires_grad_()).sum().backward()
        plain, fired[:] = list(fired), []
        with model.trace(X.clone().requires_grad_()):
            out = model.output
        out.sum().backward()  # type: ignore[no-untyped-call]
    finally:
        taken.remove()
    assert fired == plain
    assert part in fired


def test_a_call_of_a_modules_own_making_is_kept() -> None:
    """A class that overrides `_call_impl` is called through it."""

    class Doubled(nn.Linear):
        def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
            return super()._call_impl(*args, **kwargs) * 2  # type: ignore[no-untyped-call]

    net = nn.Sequential(Doubled(4, 4), nn.ReLU())
    model = il.Model(net)
    with model.trace(X):
        hidden = model[0].output
    assert torch.equal(hidden, net[0](X))


@pytest.mark.skipif(quick is not None, reason="the compiled part keeps a number for each site, and no notes")
def test_the_notes_of_a_long_run_stay_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Visits are noted one by one and counted now and then, also when nobody asks for anything."""
    monkeypatch.setattr(tap, "MANY", 10)
    net, longest = sequential(), 0
    model = il.Model(net)

    def loop(x: Tensor) -> Tensor:
        nonlocal longest
        for _ in range(40):
            x = net(x)
            longest = max(longest, len(tracer._running.tally.entered))
        return x

    with model.trace(X, fn=loop) as tracer:
        pass
    assert 10 < longest < 20
    with model.trace(X, fn=loop) as tracer:
        for _ in tracer.iter[38]:
            last = model[0].output
    x = X
    for _ in range(38):
        x = net(x)
    assert torch.equal(last, net[0](x))


@pytest.mark.parametrize("watched", [False, True])
def test_a_call_that_raised_has_no_output(watched: bool) -> None:
    """Law 5, where the model goes on after an error of a part: its later visits keep their numbers."""

    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.last = nn.Linear(4, 4), nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            with suppress(RuntimeError):
                self.part(x[:, :2])
            return self.last(self.part(x))  # type: ignore[no-any-return]

    net = Careful()
    model = il.Model(net)
    with model.trace(X) as tracer:
        if watched:
            model.part.input  # noqa: B018
        for _ in tracer.iter[1]:
            assert torch.equal(model.part.output, net.part(X))
        with pytest.raises(NotReachedError, match="that call raised an error"):
            model.part.output  # noqa: B018
        assert torch.equal(model.last.output, net.part(X))


def test_a_hook_registered_in_the_block_fires_for_modules_still_to_come() -> None:
    net = sequential()
    model = il.Model(net)
    with model.trace(X):
        model[0].output  # noqa: B018
        handle = net[2].register_forward_hook(lambda module, args, output: output * 0)
        assert model[2].output.abs().sum() == 0
    handle.remove()


def test_the_fused_path_of_an_encoder_layer() -> None:
    """Law 2: asking below it takes the path that a hook would; otherwise the fused one stays."""
    net = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    model = il.Model(net)
    x = torch.randn(1, 3, 4)
    with torch.no_grad():
        fused = net(x)
        with model.trace(x):
            untouched = model.output
        handle = net.linear1.register_forward_hook(lambda *_: None)
        hooked = net(x)
        handle.remove()
        with model.trace(x):
            hidden = model.linear1.output
            out = model.output
    assert torch.equal(untouched, fused)
    assert hidden.shape == (1, 3, 8)
    assert torch.equal(out, hooked)
    assert not net.linear1._forward_pre_hooks

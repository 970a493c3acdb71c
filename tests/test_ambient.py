"""Law 8 and fact 3: each side of a trace keeps its own torch state, whatever mode either one is in."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes
from torch.utils.checkpoint import checkpoint

import interlace as il
from interlace import ambient
from interlace.errors import TraceError

X = torch.ones(1, 4)


class Counts(TorchFunctionMode):
    seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += func is nn.functional.linear
        return func(*args, **(kwargs or {}))


class Logs(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def device_by_default() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


MODES: dict[str, Callable[[], Any]] = {
    "nothing": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.float16),
    "no cache": lambda: torch.autocast("cpu", cache_enabled=False),
    "device": lambda: torch.device("meta"),
    "default device": device_by_default,
    "function mode": Counts,
    "dispatch mode": Logs,
    "saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x),
}


def state() -> tuple[Any, ...]:
    """Everything of this thread that belongs to one side, read through torch where it tells."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.zeros(1).device,
        torch.zeros(1).is_inference(),
        tuple(map(id, function_modes())),  # type: ignore[no-untyped-call]
        tuple(map(id, dispatch_modes())),
        ambient.saved_hooks(),
    )


class Net(nn.Module):
    """Enters a mode, pauses in it, and leaves it."""

    def __init__(self, mode: Callable[[], Any]) -> None:
        super().__init__()
        self.mode = mode
        self.before, self.inside, self.after = nn.Identity(), nn.Identity(), nn.Identity()
        self.states: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.before(x)
        entry = state()
        with self.mode():
            mine = state()
            self.inside(x)
            self.states.append(state() == mine)
        self.states.append(state() == entry)
        return self.after(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("mine", MODES)
@pytest.mark.parametrize("theirs", MODES)
@pytest.mark.parametrize("around", ["nothing", "inference", "device"])
def test_no_mode_crosses_over(mine: str, theirs: str, around: str) -> None:
    """The block's mode does not reach the model nor the model's the block, in any overlap of the two."""
    net = Net(MODES[theirs])
    model = il.Model(net)
    rest = state()
    with MODES[around]():
        outer = state()
        with model.trace(X):
            model.before.output  # noqa: B018
            assert state() == outer
            with MODES[mine]():
                entered = state()
                model.inside.input  # noqa: B018
                assert state() == entered
                model.inside.output  # noqa: B018
                assert state() == entered
            assert state() == outer
            model.after.input  # noqa: B018  (the model has left its mode, the block has left its own)
            assert state() == outer
        assert state() == outer
    assert state() == rest
    assert net.states == [True, True]


@pytest.mark.parametrize("theirs", MODES)
@pytest.mark.parametrize("how", ["raise", "stop", "leave in the mode"])
def test_the_state_is_restored_when_the_model_is_unwound(theirs: str, how: str) -> None:
    """Leaving while the model pauses in its mode leaves nothing of that mode behind."""
    net = Net(MODES[theirs])
    model = il.Model(net)
    rest = state()
    with contextlib.suppress(KeyError), model.trace(X) as tracer:
        model.inside.input  # noqa: B018
        if how == "raise":
            raise KeyError
        if how == "stop":
            tracer.stop()
            assert state() == rest
    assert state() == rest


def test_the_block_may_enter_inference_mode_while_the_model_is_in_its_own() -> None:
    """Inference mode has guards that restore what they found; overlapping ones must not undo each other."""
    net = Net(torch.inference_mode)
    model = il.Model(net)
    with model.trace(X):
        model.inside.input  # noqa: B018
        guard = torch.inference_mode()
        guard.__enter__()
        model.after.input  # noqa: B018
        assert torch.is_inference_mode_enabled()
        guard.__exit__(None, None, None)
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        assert (torch.ones(1, requires_grad=True) * 2).requires_grad
    assert net.states == [True, True]


def test_a_mode_of_the_caller_reaches_the_model() -> None:
    """A trace starts with the state that a plain call would have had."""
    net = nn.Sequential(nn.Linear(4, 4))
    model = il.Model(net)
    with torch.no_grad(), model.trace(X):
        assert not model[0].output.requires_grad
    with torch.autocast("cpu"), model.trace(X):
        assert model[0].output.dtype == torch.bfloat16
    counts = Counts()
    with counts:
        net(X)
        plain, counts.seen = counts.seen, 0
        with model.trace(X):
            pass
    assert counts.seen == plain == 1


def test_the_blocks_work_inside_a_checkpointed_region_is_not_recomputed() -> None:
    """Saved-tensor hooks of a paused checkpoint must not see what the block computes."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(checkpoint(self.inner, x, use_reentrant=False))  # type: ignore[no-any-return]

    net = Checkpointed()
    model = il.Model(net)
    weight = torch.ones(4, requires_grad=True)
    with model.trace(X.clone().requires_grad_()):
        side = (model.inner.input.detach() * weight).exp().sum()
        loss = model.output.sum()
    torch.autograd.backward([side, loss])
    assert torch.allclose(weight.grad, torch.ones(4).exp())  # type: ignore[arg-type]
    assert net.inner.weight.grad is not None


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad])
def test_a_pause_inside_a_transform_of_torch_func_is_refused(transform: Any) -> None:
    """One interpreter stack for both sides: our error, at the line that asked, and the model stays usable."""

    class Transformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            total = transform(lambda row: self.inner(row).sum())(x[0])
            return self.last(total.expand(1, 4))  # type: ignore[no-any-return]

    if transform is torch.func.vmap:

        class Mapped(Transformed):
            def forward(self, x: Tensor) -> Tensor:
                return self.last(torch.func.vmap(self.inner)(x))  # type: ignore[no-any-return]

        net: nn.Module = Mapped()
    else:
        net = Transformed()
    model = il.Model(net)
    with pytest.raises(TraceError, match=r"torch\.func"), model.trace(X):
        model.inner.output  # noqa: B018
    with model.trace(X):
        last = model.last.output
    assert torch.equal(last, net(X))


def test_a_default_device_that_nobody_set_stays_unset() -> None:
    """Up to torch 2.9, `torch.get_default_device` fails where its place is there and holds None."""
    found: list[bool] = []

    def fresh() -> None:
        model = il.Model(Net(torch.inference_mode))
        with model.trace(X), torch.autocast("cpu"):
            model.inside.output  # noqa: B018
        found.append(hasattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context"))

    thread = threading.Thread(target=fresh)
    thread.start()
    thread.join()
    assert found == [False]


def test_at_rest_the_state_is_read_as_one_number() -> None:
    """Fact 8: reading everything would be the cost of a read. Models often run in inference mode."""
    assert ambient.read() == ambient.GRAD
    with torch.no_grad():
        assert ambient.read() == 0
    with torch.inference_mode():
        assert ambient.read() == ambient.INFERENCE
        with torch.enable_grad():
            assert ambient.read() == ambient.GRAD | ambient.INFERENCE
    with torch.autocast("cpu"):
        assert isinstance(ambient.read(), ambient.Ambient)


def test_what_autocast_would_cast_to_stays_as_it_was_set() -> None:
    """Also where nothing is cast, while another mode is in force."""
    model, before = (
        il.Model(Net(lambda: torch.autocast("cpu", torch.bfloat16))),
        torch.get_autocast_dtype("cpu"),
    )
    torch.set_autocast_dtype("cpu", torch.float16)
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.device("cpu"), model.trace(X):
            model.inside.output  # noqa: B018
            assert torch.get_autocast_dtype("cpu") == torch.float16
            assert not torch.is_autocast_cache_enabled()
            with torch.autocast("cpu", torch.bfloat16):
                model.output  # noqa: B018
        assert torch.get_autocast_dtype("cpu") == torch.float16
        assert not torch.is_autocast_cache_enabled()
    finally:
        torch.set_autocast_dtype("cpu", before)
        torch.set_autocast_cache_enabled(True)

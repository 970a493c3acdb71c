"""What one prompt does to its rows is what it would do alone (law 3), whatever way it does it and whatever others do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.dlpack import from_dlpack

import interlace as il

MODES = (torch.enable_grad, torch.no_grad, torch.inference_mode)
X = torch.tensor([[1.0, 2.0], [3.0, 4.0]])


class Twice(nn.Module):
    """One tensor in two places of an output."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        twice = x * 1
        return twice, twice


class Both(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat(pair, 1)


class Shift(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def alone(model: il.Model, block: Callable[[], Any]) -> Tensor:
    with model.trace(X) as tracer:
        block()
    result: Tensor = tracer.result
    return result


def beside(model: il.Model, block: Callable[[], Any], other: Callable[[], Any]) -> Tensor:
    """The rows of a block that stands below those of another."""
    with model.trace() as tracer:
        tracer.invoke(torch.zeros(1, 2))(other)
        tracer.invoke(X)(block)
    result: Tensor = tracer.result
    return result[1:]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["data", "turned data", "turned", "filled", "replaced"])
def test_a_tensor_that_is_changed_in_any_way_is_the_models(mode: Any, way: str) -> None:
    model = il.Model(nn.Sequential(nn.Tanh(), Shift()))

    def change() -> None:
        hidden = model[0].output
        if way == "data":
            hidden.data = torch.full((2, 2), 5.0)
        elif way == "turned data":
            hidden.data = hidden.data.T
        elif way == "turned":
            hidden.transpose_(0, 1)
        elif way == "filled":
            hidden[:] = 7
        else:
            model[0].output = torch.full((2, 2), 9.0)

    with mode():
        found = beside(model, change, lambda: model[1].output)
        torch.testing.assert_close(found, alone(model, change))
        assert not torch.equal(found, X.tanh() + 1)


@pytest.mark.parametrize("mode", MODES)
def test_an_edit_after_the_rows_were_joined_for_another_block_is_not_lost(mode: Any) -> None:
    model = il.Model(nn.Sequential(nn.Identity(), nn.Identity()))
    with mode(), model.trace() as tracer:
        barrier = tracer.barrier(2)

        @tracer.invoke(torch.zeros(1, 2))  # type: ignore[untyped-decorator]
        def late() -> None:
            hidden = model[0].output
            barrier()
            hidden += 7

        @tracer.invoke(torch.zeros(1, 2))  # type: ignore[untyped-decorator]
        def replaces() -> None:
            model[0].output = torch.ones(1, 2)

        @tracer.invoke()  # type: ignore[untyped-decorator]
        def sees_all() -> Any:
            whole = model[0].output.clone()
            barrier()
            return whole

    assert sees_all.tolist() == [[0, 0], [1, 1]]
    assert tracer.result.tolist() == [[7, 7], [1, 1]]


@pytest.mark.parametrize("mode", MODES)
def test_one_tensor_in_two_places_stays_one(mode: Any) -> None:
    model = il.Model(nn.Sequential(Twice(), Both()))

    def change() -> None:
        model[0].output[0].add_(5)

    def replace() -> None:
        first, second = model[0].output
        model[0].output = (first * 2, second)

    with mode():
        for other in (change, replace, lambda: None):
            torch.testing.assert_close(beside(model, change, other), alone(model, change))


def test_rows_of_another_class_serve() -> None:
    """`_combine` is there to be overridden; compiled code must not take its rows for its own."""

    class Mine:
        copies, padding, length = (), 0, 0

        def __init__(self, start: int, size: int, total: int) -> None:
            self.start, self.size, self.total = start, size, total

        def among(self, size: int) -> Any:
            return self if size == self.total else None

        def has(self, value: Any) -> bool:
            return isinstance(value, Tensor) and value.size(0) == self.total

        def narrow(self, value: Tensor) -> Tensor:
            return value[self.start : self.start + self.size]

    class Own(il.Model):
        def _combine(self, inputs: Any, fn: Any) -> Any:
            args, kwargs, rows = super()._combine(inputs, fn)
            return args, kwargs, [Mine(own.start, own.size, own.total) for own in rows]

    model = Own(nn.Sequential(Shift(), Shift()))

    def change() -> None:
        model[0].output = model[0].output * 2

    with torch.no_grad():
        torch.testing.assert_close(beside(model, change, lambda: model[0].output), alone(model, change))


@pytest.mark.parametrize("write", [False, True])
def test_what_looks_at_a_tensor_may_ask_for_another_site(write: bool) -> None:
    """A function mode of the block's own runs while its rows are taken, and lets the model go on."""
    model = il.Model(nn.Sequential(Shift(), Shift(), Shift()))

    class Asking(TorchFunctionMode):
        asks = True

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if Asking.asks and func.__name__ == "__get__":  # of an attribute: its shape
                Asking.asks = False
                with torch._C.DisableTorchFunction():
                    model[2].output
                    [torch.full((2, 2), 9.0) for _ in range(50)]  # takes memory that was freed
            return func(*args, **(kwargs or {}))

    def block() -> Any:
        with Asking():
            if write:
                model[0].output = torch.ones(1, 2)
                return None
            return model[0].output

    with torch.no_grad(), model.trace() as tracer:
        first = tracer.invoke(torch.zeros(1, 2))(block)

        @tracer.invoke(torch.zeros(1, 2))  # type: ignore[untyped-decorator]
        def other() -> None:
            model[0].output = torch.full((1, 2), 5.0)
            model[1].output

    assert tracer.result.tolist() == [[3, 3], [7, 7]]
    assert write or first.tolist() == [[1, 1]]


def _given_back(module: Any, out: Tensor) -> Tensor:
    module.kept = out
    return out


def _detached(module: Any, out: Tensor) -> Tensor:
    module.kept = out.detach()
    return out


def _viewed(module: Any, out: Tensor) -> Tensor:
    module.kept = out[1:]
    return out


def _view_of(module: Any, out: Tensor) -> Tensor:
    kept = module.kept = torch.cat([out, out])
    return kept[:3]


def _as_array(module: Any, out: Tensor) -> Tensor:
    module.kept = torch.from_numpy(out.numpy().copy())
    return torch.from_numpy(module.kept.numpy())


def _array_of(module: Any, out: Tensor) -> Tensor:
    module.kept = out.numpy()
    return out


def _lent(module: Any, out: Tensor) -> Tensor:
    module.kept = out
    return from_dlpack(out)


def _capsule(module: Any, out: Tensor) -> Tensor:
    module.kept = from_dlpack(out.__dlpack__())
    return out


def _closed_over(module: Any, out: Tensor) -> Tensor:
    module.kept = lambda: out
    return out


class Store(nn.Module):
    kept: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x
        return x


def _scripted(module: Any, out: Tensor) -> Tensor:  # no object of Python's holds it there
    store = torch.jit.script(Store())
    store(out)
    module.kept = lambda: store.kept
    return out


def _storage(module: Any, out: Tensor) -> Tensor:
    storage = out.untyped_storage()
    module.kept = lambda: torch.tensor(list(bytes(storage)))
    return out


def _expanded(module: Any, out: Tensor) -> Tensor:  # the rows are one memory
    module.kept = None
    return out[:1].clone().expand(3, -1)


def _inferred(module: Any, out: Tensor) -> Tensor:  # not to be written to outside of inference mode
    module.kept = None
    with torch.inference_mode():
        return out * 1


class Holds(nn.Module):
    """Keeps, or has from elsewhere, what it returns."""

    kept: Any

    def __init__(self, how: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x * 2)


HOLDERS = [
    _given_back, _detached, _viewed, _view_of, _as_array, _array_of, _lent, _capsule, _closed_over, _scripted,
    _storage, _expanded, _inferred,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", HOLDERS)
@pytest.mark.parametrize("checked", [True, False])
def test_what_replaces_rows_shows_nowhere_else(
    mode: Any, how: Any, checked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model goes on with another tensor: who holds what the module returned, whatever way, sees nothing of it."""

    def copied(value: Any) -> Any:
        found = value() if callable(value) else value
        return found if found is None else torch.as_tensor(found).clone()

    net = nn.Sequential(nn.Identity(), Holds(how), nn.Identity(), Shift())
    model, holds, mine = il.Model(net), net[1], torch.full((1, 2), 50.0)
    given = [torch.zeros(1, 2), X]
    monkeypatch.setattr(il.config, "checks", checked)
    with mode():
        bare = net(torch.cat(given))
        kept = copied(holds.kept)
        before: list[Tensor] = []

        def replace() -> None:
            model[0].output = mine * 0
            model[1].output = mine
            model[3].output = mine + 1

        def read() -> None:
            before.append(model[0].output)
            model[2].output = model[2].output + 1

        with model.trace() as tracer:
            tracer.invoke(given[0])(replace)
            tracer.invoke(given[1])(read)
        assert torch.equal(tracer.result[1:], bare[1:] + 1)
        assert torch.equal(tracer.result[:1], mine + 1)
        assert torch.equal(before[0], X)
        if kept is not None:
            assert torch.equal(copied(holds.kept), kept)
        assert torch.equal(mine, torch.full((1, 2), 50.0))


@pytest.mark.parametrize("hold", ["hook", "read", "cache"])
def test_what_others_have_of_a_visit_stays(hold: str) -> None:
    net = nn.Sequential(Shift(), Shift(), nn.Identity())
    model, kept = il.Model(net), []

    def keep(module: nn.Module, args: Any, out: Tensor) -> None:
        kept.append(out)

    def replace() -> None:
        model[1].output = torch.zeros(2, 2)

    def read() -> None:
        kept.append(model[1].output)

    with torch.no_grad():
        handle = net[1].register_forward_hook(keep) if hold == "hook" else None
        with model.trace() as tracer:
            if hold == "read":
                tracer.invoke(X)(read)
            cache = tracer.cache(modules=[model[1]]) if hold == "cache" else None
            tracer.invoke(X)(replace)
        if handle is not None:
            handle.remove()
        if cache is not None:
            kept.append(cache["model.1"].output)
    assert torch.equal(tracer.result[-2:], torch.zeros(2, 2))
    if hold == "cache":
        assert torch.equal(kept[0], torch.zeros(2, 2))
    else:
        assert torch.equal(kept[0], X + 2)

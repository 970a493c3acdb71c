"""Random programs of several prompts in one forward, and the same as hooks on the rows of each."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import interlace as il
from soak.programs import (
    Action,
    Choose,
    Outcome,
    Subject,
    act,
    changed,
    copy,
    finite,
    first_float,
    program,
    stand_ins,
)


def narrowed(value: Any, start: int, size: int, total: int) -> Any:
    """The rows of every tensor that has a row for each prompt, as views."""

    def rows(tensor: Tensor) -> Tensor:
        return tensor[start : start + size] if tensor.dim() and len(tensor) == total else tensor

    return _mapped(value, rows)


def joined(value: Any, rows: Any, start: int, size: int, total: int) -> Any:
    """A value whose rows of one prompt are replaced."""
    if isinstance(value, Tensor):
        if not value.dim() or len(value) != total:
            return rows
        return torch.cat([value[:start], rows, value[start + size :]])
    parts = iter([joined(a, b, start, size, total) for a, b in zip(_parts(value), _parts(rows), strict=True)])
    return _mapped(value, lambda _: next(parts)) if _parts(value) else value


def shared(value: Any, rows: Any, total: int) -> Any:
    """A value with what one prompt has of it that has no rows, and so is every prompt's."""
    if isinstance(value, Tensor):
        return value if value.dim() and len(value) == total else rows
    parts = iter([shared(a, b, total) for a, b in zip(_parts(value), _parts(rows), strict=True)])
    return _mapped(value, lambda _: next(parts)) if _parts(value) else value


def _parts(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _mapped(value, keep)
    return found


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Like `changed`, for tensors of every type."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(part, change) for key, part in value.items()}
    if isinstance(value, tuple):
        parts = [_mapped(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return changed(value, change) if value is not None and hasattr(value, "__dataclass_fields__") else value


def agree(subject: Subject, model: il.Model, choose: Choose) -> str:
    """Run programs of two prompts both ways, without gradients; where they differ, in words, or nothing."""
    half = len(subject.input)
    programs = [program(subject, choose, 1 + choose(6)) for _ in range(2)]
    instead = [stand_ins(subject, actions) for actions in programs]
    fresh = [changed(one, lambda tensor: tensor.clone()) for one in instead]
    traced, hooked = [Outcome(), Outcome()], [Outcome(), Outcome()]
    with torch.no_grad():
        x = subject.input
        with model.trace() as tracer:
            for actions, own, outcome in zip(programs, instead, traced, strict=True):
                tracer.invoke(x.clone())(partial(_block, model, actions, own, outcome))
        result = copy(tracer.result)
        wanted = copy(_by_hooks(subject.net, torch.cat([x, x]), programs, fresh, hooked, half))
    for mine, others in zip(traced, hooked, strict=True):
        mine.result, others.result = result, wanted
        differ = mine.differs(others)
        if differ:
            return f"{differ} in {programs}"
    return ""


def _block(model: il.Model, actions: list[Action], instead: dict[str, Any], outcome: Outcome) -> None:
    for action in actions:
        act(model, action, instead, outcome)


class Rows:
    """What the two programs do at one module, each on its rows; called by hooks."""

    def __init__(
        self, name: str, programs: list[list[Action]], instead: list[dict[str, Any]], outcomes: list[Outcome]
    ) -> None:
        self.name = name
        self.programs = programs
        self.instead = instead
        self.outcomes = outcomes
        self.size = 0
        self.calls = {"input": 0, "output": 0}

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return self.at("input", (args, kwargs))

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        return self.at("output", output)

    def at(self, port: str, value: Any) -> Any:
        self.calls[port] += 1
        if self.calls[port] > 1:
            return value
        total, replaced = len(self.programs) * self.size, []
        for n, actions in enumerate(self.programs):
            where = (n * self.size, self.size, total)
            rows = old = narrowed(value, *where)
            if port == "output" and self.name in self.instead[n]:
                rows = self.instead[n][self.name]
            for action in actions:
                if (action.event.name, action.event.port) == (self.name, port):
                    rows = self.done(action, rows, self.outcomes[n])
            if rows is not old:  # the others go on with rows of their own, as they would alone
                replaced.append((rows, where))
                value = shared(value, rows, total)
        for rows, where in replaced:
            value = joined(value, rows, *where)
        return value

    @staticmethod
    def done(action: Action, rows: Any, outcome: Outcome) -> Any:
        if action.kind == "replace":
            return changed(rows, finite)
        if action.kind == "inplace":
            tensor = first_float(rows)
            assert tensor is not None
            tensor.mul_(0.5)
        elif action.kind == "read":
            outcome.seen.append(copy(rows))
        return rows


def _by_hooks(
    net: nn.Module,
    x: Tensor,
    programs: list[list[Action]],
    instead: list[dict[str, Any]],
    outcomes: list[Outcome],
    size: int,
) -> Any:
    modules = dict(net.named_modules())
    handles = []
    for name in dict.fromkeys(action.event.name for actions in programs for action in actions):
        rows = Rows(name, programs, instead, outcomes)
        rows.size = size
        handles += [
            modules[name].register_forward_pre_hook(rows.before, with_kwargs=True),
            modules[name].register_forward_hook(rows.after),
        ]
    try:
        return net(x)
    finally:
        for handle in handles:
            handle.remove()

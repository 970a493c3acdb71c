"""Random programs over the sites of a model, and the same programs as plain hooks.

A program is a list of actions in the order in which the model passes their sites. `by_trace` runs it in a trace,
`by_hooks` with hand-written hooks; `agree` compares every value that they saw, what the model returned, and the
gradients, bit for bit.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import interlace as il
from interlace.errors import OrderError

Choose = Callable[[int], int]
"""Chooses one of n, from 0. Where the numbers come from is the caller's: a seed, or hypothesis."""

KINDS = ("read", "inplace", "replace", "skip", "late")


@dataclasses.dataclass(frozen=True)
class Event:
    """A port of a call, in the order in which a run passes them; `until` is the index of the call's end."""

    name: str
    visit: int
    port: str
    floats: bool
    until: int


@dataclasses.dataclass(frozen=True)
class Action:
    """One statement of a program.

    Attributes:
        event: Where.
        kind: What is done there.
        passed: For `late`: what is asked for though the model has passed it.
    """

    event: Event
    kind: str
    passed: Event | None = None


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model, what it is run on, and what a run of it passes."""

    name: str
    net: nn.Module
    input: Tensor
    events: tuple[Event, ...]

    @classmethod
    def of(cls, name: str, net: nn.Module, x: Tensor) -> "Subject":
        return cls(name, net, x, tuple(record(net, x)))


# -- values ----------------------------------------------------------------------------------------------


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in a nested value. The library's own walk is not used: it is what is tested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name))


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a nested value whose floating-point tensors are changed."""
    if isinstance(value, Tensor):
        return change(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: changed(part, change) for key, part in value.items()}
    if isinstance(value, tuple):
        parts = [changed(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts_of = {f.name: changed(getattr(value, f.name), change) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **parts_of)
    return value


def first_float(value: Any) -> Tensor | None:
    return next((tensor for tensor in tensors(value) if tensor.is_floating_point()), None)


def copy(value: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors(value)]


def finite(value: Tensor) -> Tensor:
    """What a program writes: it depends on every element, and masks of -inf stay masks."""
    return value * 0.5 + 1


# -- programs --------------------------------------------------------------------------------------------


def record(net: nn.Module, x: Tensor) -> list[Event]:
    """What one run passes, in order, seen with hooks."""
    seen: list[tuple[str, int, str, bool]] = []
    ends: dict[tuple[str, int], int] = {}
    counts: dict[str, int] = {}
    handles = []
    for name, module in net.named_modules():
        counts[name] = 0

        def before(module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            seen.append((name, counts[name], "input", first_float((args, kwargs)) is not None))
            stack.append((name, counts[name]))
            counts[name] += 1

        def after(module: nn.Module, args: Any, output: Any) -> None:
            name, visit = stack.pop()
            ends[name, visit] = len(seen)
            seen.append((name, visit, "output", first_float(output) is not None))

        handles += [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after),
        ]
    stack: list[tuple[str, int]] = []
    net(x)
    for handle in handles:
        handle.remove()
    return [Event(name, visit, port, floats, ends[name, visit]) for name, visit, port, floats in seen]


def program(subject: Subject, choose: Choose, length: int) -> list[Action]:
    """A random program: at most `length` actions, each at a site that the ones before leave reachable."""
    actions: list[Action] = []
    at, events = 0, subject.events
    skipped: list[range] = []
    while len(actions) < length and at < len(events):
        at += choose(max(1, min(len(events) - at, 2 * len(events) // length)))
        event = events[at]
        kind = KINDS[choose(len(KINDS))]
        if event.visit:  # a later visit is named in a step loop; see the mixed traces
            at += 1
            continue
        if not event.floats and kind in ("inplace", "replace", "skip"):
            kind = "read"
        if kind == "late":
            gone = [n for n in range(at) if not any(n in inside for inside in skipped)]
            passed = [events[n] for n in gone if events[n].until < at and events[n].visit == 0]
            if passed:
                actions.append(Action(event, kind, passed[choose(len(passed))]))
        elif kind == "skip":
            if event.port == "input" and event.name and not actions_at(actions, event):
                actions.append(Action(event, kind))
                skipped.append(range(at + 1, event.until))
                at = event.until - 1  # nothing inside is reached; its output still is
        else:
            actions.append(Action(event, kind))
        at += 1
    return actions


def actions_at(actions: list[Action], event: Event) -> bool:
    return any(action.event.name == event.name for action in actions)


def stand_ins(subject: Subject, actions: list[Action]) -> dict[str, Any]:
    """What skipped calls give: what they would have given in an untouched run, changed."""
    found: dict[str, Any] = {}
    handles = []
    for action in actions:
        if action.kind == "skip":

            def keep(module: nn.Module, args: Any, output: Any, name: str = action.event.name) -> None:
                found.setdefault(name, changed(output, lambda tensor: finite(tensor.detach().clone())))

            handles.append(subject.net.get_submodule(action.event.name).register_forward_hook(keep))
    if handles:
        with torch.no_grad():
            subject.net(subject.input)
    for handle in handles:
        handle.remove()
    return found


@dataclasses.dataclass
class Outcome:
    """What a program saw, what the model returned, the gradients, or the error."""

    seen: list[list[Tensor]] = dataclasses.field(default_factory=list)
    result: list[Tensor] = dataclasses.field(default_factory=list)
    gradients: list[Tensor | None] = dataclasses.field(default_factory=list)
    error: str = ""

    def differs(self, other: "Outcome") -> str:
        """Where two outcomes differ, in words; empty where they agree."""
        if self.error != other.error:
            return f"errors: {self.error!r} and {other.error!r}"
        for what in ("seen", "result", "gradients"):
            mine, others = flat(getattr(self, what)), flat(getattr(other, what))
            if len(mine) != len(others):
                return f"{what}: {len(mine)} and {len(others)} tensors"
            for at, (a, b) in enumerate(zip(mine, others, strict=True)):
                if (a is None) is not (b is None):
                    return f"{what}[{at}]: one is None"
                if a is not None and b is not None and not same(a, b):
                    return f"{what}[{at}]: {float((a - b).abs().max())} apart"
        return ""


def flat(found: list[Any]) -> list[Tensor | None]:
    return [part for one in found for part in (one if isinstance(one, list) else [one])]


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def gradients(subject: Subject, result: Any, outcome: Outcome) -> None:
    first = first_float(result)
    if first is not None and first.requires_grad:
        first.sum().backward()  # type: ignore[no-untyped-call]
    outcome.gradients = [None if p.grad is None else p.grad.clone() for p in subject.net.parameters()]
    subject.net.zero_grad(set_to_none=True)


# -- the two ways ----------------------------------------------------------------------------------------


def by_trace(subject: Subject, model: il.Model, actions: list[Action], instead: dict[str, Any]) -> Outcome:
    """Run a program in a trace."""
    outcome = Outcome()
    try:
        with model.trace(subject.input) as tracer:
            for action in actions:
                act(model, action, instead, outcome)
            result = tracer.result
        gradients(subject, result, outcome)
    except RuntimeError as error:  # torch's own, for an edit in place that autograd does not allow
        outcome.error = type(error).__name__
        subject.net.zero_grad(set_to_none=True)
    else:
        outcome.result = copy(result)
    return outcome


def act(model: il.Model, action: Action, instead: dict[str, Any], outcome: Outcome) -> None:
    """Make one statement of a program in the block that this is called in."""
    event = action.event
    envoy = model.get(event.name)
    port = "output" if event.port == "output" else "inputs"
    if action.kind == "skip":
        envoy.skip(instead[event.name])
        return
    value = getattr(envoy, port)
    if action.kind == "replace":
        setattr(envoy, port, changed(value, finite))
    elif action.kind == "inplace":
        tensor = first_float(value)
        assert tensor is not None
        tensor.mul_(0.5)
    elif action.kind == "read":
        outcome.seen.append(copy(value))
    elif action.passed is not None:
        late = model.get(action.passed.name)
        try:
            getattr(late, "output" if action.passed.port == "output" else "inputs")
        except OrderError:
            pass
        else:
            raise AssertionError(f"{action.passed} was had after {event}")


def by_hooks(subject: Subject, actions: list[Action], instead: dict[str, Any]) -> Outcome:
    """Run a program with hand-written hooks."""
    outcome = Outcome()
    modules = dict(subject.net.named_modules())
    removers: list[Callable[[], None]] = []
    for name in dict.fromkeys(action.event.name for action in actions):
        own = [action for action in actions if action.event.name == name]
        removers += _hooked(modules[name], own, instead.get(name), outcome)
    try:
        result = subject.net(subject.input)
        gradients(subject, result, outcome)
    except RuntimeError as error:
        outcome.error = type(error).__name__
        subject.net.zero_grad(set_to_none=True)
    else:
        outcome.result = copy(result)
    finally:
        for remove in removers:
            remove()
    return outcome


def _hooked(
    module: nn.Module, actions: list[Action], instead: Any, outcome: Outcome
) -> list[Callable[[], None]]:
    calls = [0, 0]

    def at(port: str, value: Any) -> Any:
        for action in actions:
            if action.event.port == port:
                if action.kind == "replace":
                    value = changed(value, finite)
                elif action.kind == "inplace":
                    tensor = first_float(value)
                    assert tensor is not None
                    tensor.mul_(0.5)
                elif action.kind == "read":
                    outcome.seen.append(copy(value))
        return value

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        calls[0] += 1
        return at("input", (args, kwargs)) if calls[0] == 1 else (args, kwargs)

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        calls[1] += 1
        return at("output", output) if calls[1] == 1 else output

    first = module.register_forward_pre_hook(before, with_kwargs=True)
    last = module.register_forward_hook(after)
    removers = [first.remove, last.remove]
    if instead is not None:
        own = module.forward

        def stand_in(*args: Any, **kwargs: Any) -> Any:
            return instead if calls[0] == 1 else own(*args, **kwargs)

        module.forward = stand_in
        removers.append(lambda: delattr(module, "forward"))
    return removers


def agree(subject: Subject, model: il.Model, actions: list[Action]) -> str:
    """Run a program both ways; where they differ, in words, or nothing.

    What a skipped call gives is edited in place by some programs, so each way has a copy of its own.
    """
    stand_in = stand_ins(subject, actions)
    fresh = changed(stand_in, lambda tensor: tensor.clone())
    grad = torch.is_grad_enabled()
    given = subject.input.clone()
    traced = by_trace(subject, model, actions, stand_in)
    assert torch.is_grad_enabled() is grad
    subject.input.copy_(given)  # edits in place reach the input itself
    hooked = by_hooks(subject, actions, fresh)
    subject.input.copy_(given)
    return traced.differs(hooked)

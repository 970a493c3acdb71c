"""torch's ambient state, which belongs to the thread, kept apart for the two sides of a trace.

Grad mode, inference mode, autocast, function modes (the default device is one), dispatch modes and
saved-tensor hooks live in thread-local storage of torch. When the model pauses, the block must find its own;
when it goes on, the model must. `read` is cheap and says `None` nearly always: everything but grad mode is at
rest. `swap` does the rest.

Process-wide settings (random state, default dtype, anomaly mode) are shared by both sides, as with hooks.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.overrides import _pop_mode as pop_function_mode
from torch.overrides import _push_mode as push_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes
from torch.utils._python_dispatch import _pop_mode as pop_dispatch_mode
from torch.utils._python_dispatch import _push_mode as push_dispatch_mode

_grad = torch.is_grad_enabled
_inference = torch.is_inference_mode_enabled
_autocast = torch._C._is_any_autocast_enabled
_n_function = torch._C._len_torch_function_stack
_n_dispatch = torch._C._len_torch_dispatch_stack
top_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_push_hooks = torch._C._autograd._push_saved_tensors_default_hooks
_pop_hooks = torch._C._autograd._pop_saved_tensors_default_hooks
transform = torch._C._functorch.peek_interpreter_stack
_set_grad = torch._C._set_grad_enabled
_default_device = torch._GLOBAL_DEVICE_CONTEXT


def _autocast_at_rest() -> tuple[tuple[str, bool, torch.dtype], ...]:
    found = []
    for kind in ("cpu", "cuda", "mps", "xpu", "hpu"):
        try:
            found.append((kind, False, torch.get_autocast_dtype(kind)))
        except RuntimeError:  # this torch knows no autocast for it
            continue
    return tuple(found)


_AT_REST = _autocast_at_rest()


@dataclass(frozen=True, slots=True)
class Ambient:
    """Everything of one side that is not at rest."""

    grad: bool
    inference: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    autocast_cache: bool
    functions: tuple[Any, ...]
    dispatches: tuple[Any, ...]
    hooks: tuple[Any, ...]
    device: Any


def read() -> "Ambient | bool":
    """This thread's state now: just grad mode when all else is at rest."""
    if _inference() or _autocast() or _n_function() or _n_dispatch() or top_hooks(True) is not None:
        return _read_all()
    return _grad()


def _read_all() -> Ambient:
    return Ambient(
        _grad(),
        _inference(),
        tuple(
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind, _, _ in _AT_REST
        ),
        torch.is_autocast_cache_enabled(),
        tuple(function_modes()),  # type: ignore[no-untyped-call]
        tuple(dispatch_modes()),
        saved_hooks(),
        getattr(_default_device, "device_context", None),
    )


def saved_hooks() -> tuple[Any, ...]:
    """The saved-tensor hooks, outermost first. They can be read only by taking them off."""
    found = _clear_hooks()
    for pair in found:
        _push_hooks(*pair)
    return found


def _clear_hooks() -> tuple[Any, ...]:
    found = []
    while (top := top_hooks(True)) is not None:
        found.append(top)
        _pop_hooks()
    return tuple(reversed(found))


def full(state: "Ambient | bool") -> Ambient:
    """A state with everything that `read` leaves out because it is at rest."""
    return state if isinstance(state, Ambient) else Ambient(state, False, _AT_REST, True, (), (), (), None)


def swap(now: "Ambient | bool", then: "Ambient | bool") -> None:
    """Replace the state `now` of this thread by `then`."""
    if isinstance(now, bool) and isinstance(then, bool):
        _set_grad(then)
        return
    old, new = full(now), full(then)
    _replace_modes(old.functions, new.functions, pop_function_mode, push_function_mode)
    _replace_modes(old.dispatches, new.dispatches, pop_dispatch_mode, push_dispatch_mode)
    _default_device.device_context = new.device
    if old.hooks != new.hooks:
        _clear_hooks()
        for pair in new.hooks:
            _push_hooks(*pair)
    if old.inference != new.inference:
        _set_inference(new.inference)
    if old.autocast != new.autocast:
        for kind, enabled, dtype in new.autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
    if old.autocast_cache != new.autocast_cache:
        torch.set_autocast_cache_enabled(new.autocast_cache)
    _set_grad(new.grad)


def _set_inference(mode: bool) -> None:
    """Switch inference mode for good, though torch has only guards, which restore when left what they found.

    The second guard finds what the first one set. Leaving the first and then the second ends in that state,
    and holds nothing that would undo it later, when each side has entered and left guards of its own.
    """
    first: Any = torch._C._InferenceMode(mode)
    first.__enter__()
    second: Any = torch._C._InferenceMode(mode)
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)


def _replace_modes(old: tuple[Any, ...], new: tuple[Any, ...], pop: Any, push: Any) -> None:
    """Take off what differs and put on what is wanted; modes that both have stay where they are."""
    shared = 0
    while shared < min(len(old), len(new)) and old[shared] is new[shared]:
        shared += 1
    for _ in old[shared:]:
        pop()
    for mode in new[shared:]:
        push(mode)


def functorch_level() -> int:
    """How many transforms of `torch.func` run on this thread's stack; no pause can happen inside one."""
    top: Any = transform()
    return 0 if top is None else int(top.level())

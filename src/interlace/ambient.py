"""torch's ambient state, which belongs to the thread, kept apart for the two sides of a trace.

Grad mode, inference mode, autocast, function modes (the default device is one), dispatch modes and saved-tensor hooks
live in thread-local storage of torch. When the model pauses, the block must find its own; when it goes on, the model
must. `read` is cheap and says `None` nearly always: everything but grad mode is at rest. `swap` does the rest.

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
_top_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_push_hooks = torch._C._autograd._push_saved_tensors_default_hooks
_pop_hooks = torch._C._autograd._pop_saved_tensors_default_hooks
transform = torch._C._functorch.peek_interpreter_stack
_set_grad = torch._C._set_grad_enabled


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


def read() -> "Ambient | bool":
    """This thread's state now: just grad mode when all else is at rest."""
    if _inference() or _autocast() or _n_function() or _n_dispatch() or _top_hooks(True) is not None:
        return _read_all()
    return _grad()


def _read_all() -> Ambient:
    return Ambient(
        _grad(),
        _inference(),
        tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in _devices()),
        torch.is_autocast_cache_enabled(),
        tuple(function_modes()),
        tuple(dispatch_modes()),
        _hooks(),
    )


def _devices() -> tuple[str, ...]:
    found = ["cpu"]
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return tuple(found)


def _hooks() -> tuple[Any, ...]:
    """The saved-tensor hooks, outermost first. They can be read only by taking them off."""
    found = _clear_hooks()
    for pair in found:
        _push_hooks(*pair)
    return found


def _clear_hooks() -> tuple[Any, ...]:
    found = []
    while (top := _top_hooks(True)) is not None:
        found.append(top)
        _pop_hooks()
    return tuple(reversed(found))


def _full(state: "Ambient | bool") -> Ambient:
    if isinstance(state, Ambient):
        return state
    at_rest = tuple((kind, False, torch.get_autocast_dtype(kind)) for kind in _devices())
    return Ambient(state, False, at_rest, True, (), (), ())


def swap(now: "Ambient | bool", then: "Ambient | bool", guard: Any = None) -> Any:
    """Replace the state `now` of this thread by `then`.

    Inference mode can only be entered by a guard that is left again: the guard that a swap returns goes to the swap
    that undoes it.
    """
    if isinstance(now, bool) and isinstance(then, bool):
        _set_grad(then)
        return None
    old, new = _full(now), _full(then)
    _replace_modes(old.functions, new.functions, pop_function_mode, push_function_mode)
    _replace_modes(old.dispatches, new.dispatches, pop_dispatch_mode, push_dispatch_mode)
    if old.hooks != new.hooks:
        _clear_hooks()
        for pair in new.hooks:
            _push_hooks(*pair)
    if guard is not None:
        guard.__exit__(None, None, None)
        guard = None
    elif old.inference != new.inference:
        guard = torch._C._InferenceMode(new.inference)
        guard.__enter__()
    if old.autocast != new.autocast:
        for kind, enabled, dtype in new.autocast:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, dtype)
    if old.autocast_cache != new.autocast_cache:
        torch.set_autocast_cache_enabled(new.autocast_cache)
    _set_grad(new.grad)
    return guard


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
    """How many transforms of `torch.func` are running on this thread's stack; no pause can happen inside one."""
    top = transform()
    return 0 if top is None else int(top.level())

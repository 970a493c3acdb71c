"""torch's ambient state, which belongs to the thread, kept apart for the two sides of a trace.

Grad mode, inference mode, autocast, function modes (the default device is one), dispatch modes, saved-tensor
hooks, and CUDA's current device and streams live in thread-local storage of torch. When the model pauses, the
block must find its own; when it goes on, the model must. `read` is cheap: nearly always everything is at rest but
grad mode, inference mode, and where the work of each side goes on a GPU. `swap` does the rest.

Process-wide settings (random state, default dtype, anomaly mode) are shared by both sides, as with hooks.
"""

import functools
from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.overrides import _pop_mode as pop_function_mode
from torch.overrides import _push_mode as push_function_mode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes
from torch.utils._python_dispatch import _pop_mode as pop_dispatch_mode
from torch.utils._python_dispatch import _push_mode as push_dispatch_mode

from interlace import mirror

_grad = torch.is_grad_enabled
_inference = torch.is_inference_mode_enabled
_autocast = torch._C._is_any_autocast_enabled
_casts, _cast_to = torch.is_autocast_enabled, torch.get_autocast_dtype
_n_function = torch._C._len_torch_function_stack
_n_dispatch = torch._C._len_torch_dispatch_stack
top_hooks: Any = mirror.top
_push_hooks = torch._C._autograd._push_saved_tensors_default_hooks
_pop_hooks = torch._C._autograd._pop_saved_tensors_default_hooks
transform = torch._C._functorch.peek_interpreter_stack
_set_grad = torch._C._set_grad_enabled
_default_device = torch._GLOBAL_DEVICE_CONTEXT


Stream = tuple[int, int, int]
"""A CUDA stream as torch hands it about: its id, its device, the type of that device."""

Place = tuple[int, tuple[Stream, ...]]
"""The current CUDA device, and the current stream of every device."""


def _autocast_at_rest() -> tuple[tuple[str, bool, torch.dtype], ...]:
    found = []
    for kind in ("cpu", "cuda", "mps", "xpu", "hpu"):
        try:
            found.append((kind, False, torch.get_autocast_dtype(kind)))
        except RuntimeError:  # this torch knows no autocast for it
            continue
    return tuple(found)


_AT_REST = _autocast_at_rest()
_KINDS = tuple(kind for kind, _, _ in _AT_REST)


class Ambient(NamedTuple):
    """Everything of one side that is not at rest."""

    grad: bool
    inference: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    autocast_cache: bool
    functions: tuple[Any, ...]
    dispatches: tuple[Any, ...]
    hooks: tuple[Any, ...]
    device: Any
    place: Place | None


GRAD, INFERENCE = 1, 2

State = Ambient | tuple[int, Place] | int
"""What of one side is not at rest; when all else is, grad mode and inference mode as flags of a number, and the place
where CUDA is in use."""


def _read() -> State:
    if _autocast() or _n_function() or _n_dispatch() or top_hooks(True) is not None:
        return _read_all()
    return GRAD * _grad() + INFERENCE * _inference()


def _read_with_place() -> State:
    state = _read()
    place = _place() if isinstance(state, int) else None
    return state if place is None else (state, place)  # type: ignore[return-value]


_cuda: Any = torch.cuda
_current_device: Any = getattr(torch._C, "_cuda_getDevice", None)
_current_stream: Any = getattr(torch._C, "_cuda_getCurrentStream", None)

read = _read if _current_device is None else _read_with_place
"""This thread's state now. A torch that was built without CUDA has no place to look for."""


def _place() -> Place | None:
    if _current_device is None or not _cuda._initialized:
        return None
    return _current_device(), tuple(map(_current_stream, _devices()))


@functools.cache
def _devices() -> range:
    return range(_cuda.device_count())


def _move(here: Place, there: Place) -> None:
    """Make another CUDA device current, and other streams."""
    for old, new in zip(here[1], there[1], strict=True):
        if old != new:
            torch._C._cuda_setStream(stream_id=new[0], device_index=new[1], device_type=new[2])
    torch._C._cuda_setDevice(there[0])


def _read_all() -> Ambient:
    casts = map(_casts, _KINDS) if _autocast() else repeat(False, len(_KINDS))
    return Ambient(
        _grad(),
        _inference(),
        tuple(zip(_KINDS, casts, map(_cast_to, _KINDS), strict=True)),
        torch.is_autocast_cache_enabled(),
        tuple(function_modes()) if _n_function() else (),  # type: ignore[no-untyped-call]
        tuple(dispatch_modes()) if _n_dispatch() else (),
        saved_hooks(),
        getattr(_default_device, "device_context", None),
        _place(),
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


def full(state: State) -> Ambient:
    """A state with everything that `read` leaves out because it is at rest."""
    if isinstance(state, Ambient):
        return state
    flags, place = (state, None) if isinstance(state, int) else state
    return Ambient(bool(flags & GRAD), bool(flags & INFERENCE), _AT_REST, True, (), (), (), None, place)


def swap(now: State, then: State) -> None:
    """Replace the state `now` of this thread by `then`."""
    if isinstance(now, int) and isinstance(then, int):
        _set_flags(now, then)
        return
    if not isinstance(now, Ambient | int) and not isinstance(then, Ambient | int) and now[1] == then[1]:
        _set_flags(now[0], then[0])
        return
    old, new = full(now), full(then)
    _replace_modes(old.functions, new.functions, pop_function_mode, push_function_mode)
    _replace_modes(old.dispatches, new.dispatches, pop_dispatch_mode, push_dispatch_mode)
    if old.device is not new.device:
        _set_default_device(new.device)
    if old.place is not None and new.place is not None and old.place != new.place:
        _move(old.place, new.place)
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


def _set_flags(now: int, then: int) -> None:
    """Replace grad mode and inference mode, of which the second sets the first as well."""
    if (now ^ then) & INFERENCE:
        _set_inference(bool(then & INFERENCE))
    _set_grad(bool(then & GRAD))


def _set_default_device(context: Any) -> None:
    """Up to torch 2.9 an attribute that is there and None is an error of `torch.get_default_device`."""
    if context is None:
        del _default_device.device_context
    else:
        _default_device.device_context = context


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


READERS = {
    "ambient_read": read,
    "ambient_swap": swap,
    "grad": _grad,
    "set_grad": _set_grad,
    "inference": _inference,
    "autocast": _autocast,
    "functions": _n_function,
    "dispatches": _n_dispatch,
    "hooks": top_hooks,
    "transform": transform,
    "forward_grad": torch._C._is_fwd_grad_enabled,
    "cuda": None if _current_device is None else _cuda,
    "cuda_device": _current_device,
    "cuda_devices": _devices,
    "cuda_stream": _current_stream,
}
"""What the state is read by, for the compiled part."""

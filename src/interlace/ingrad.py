"""`tensor.grad` in the block of a backward: a function mode that stands on the block's side only.

It knows of a backward that it reads and writes gradients, and in which frame its block stands.
"""

import sys
import weakref
from types import FrameType
from typing import Any, Protocol, cast

import torch
from torch.overrides import TorchFunctionMode
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.overrides import _pop_mode as pop_function_mode
from torch.overrides import _push_mode as push_function_mode

from interlace.frames import Owner

_GRAD: Any = torch.Tensor.grad


class Served(Protocol):
    """A backward, as its block has it."""

    owner: Owner | None

    def read(self, tensor: torch.Tensor) -> torch.Tensor:
        """The gradient that flows at a tensor."""

    def write(self, tensor: torch.Tensor, value: Any) -> None:
        """Replace the gradient that flows at a tensor."""

    def depends(self, tensor: torch.Tensor) -> bool:
        """Whether the gradient of a tensor is computed in this backward."""


class Mode(TorchFunctionMode):
    """Serves `tensor.grad` in the block of a backward. Torch hands it every call of that thread."""

    def __init__(self, backward: Served) -> None:
        super().__init__()
        self.backward = weakref.ref(backward)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__self__", None) is _GRAD:
            backward = self.backward()
            if backward is not None and _stands_in(backward.owner, sys._getframe(1)):
                if func.__name__ == "__get__":
                    return backward.read(args[0])
                backward.write(args[0], args[1] if len(args) > 1 else None)
                return None
        return func(*args, **(kwargs or {}))


def put_on(mode: Mode) -> None:
    """Serve from now on."""
    push_function_mode(mode)  # type: ignore[no-untyped-call]


def take_off(mode: Mode) -> None:
    """Take a mode off, wherever it stands: blocks of generators are left in any order."""
    modes: list[Any] = list(function_modes())  # type: ignore[no-untyped-call]
    if mode not in modes:
        return
    at = modes.index(mode)
    for _ in modes[at:]:
        pop_function_mode()  # type: ignore[no-untyped-call]
    for other in modes[at + 1 :]:
        push_function_mode(other)  # type: ignore[no-untyped-call]


def _stands_in(owner: Owner | None, frame: FrameType | None) -> bool:
    """Whether the block of a backward is on this stack: a parked generator's must not serve others."""
    while frame is not None and owner is not None:
        if id(frame) == owner.key and frame.f_code is owner.code:
            return True
        frame = frame.f_back
    return False


def current(frame: FrameType | None) -> Served | None:
    """The open backward in whose block a frame stands."""
    if not torch._C._len_torch_function_stack():
        return None
    for mode in reversed(cast(list[Any], function_modes())):  # type: ignore[no-untyped-call]
        backward: Served | None = mode.backward() if isinstance(mode, Mode) else None
        if backward is not None and _stands_in(backward.owner, frame):
            return backward
    return None

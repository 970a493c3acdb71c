"""Tensors that have a shape, a dtype and a device, and no values: what a scan runs on.

torch's `FakeTensorMode` works out what an operation would give. Over it stands a function mode that hands it
a stand-in for every real tensor that an operation meets: parameters and buffers stay as they are, on the meta
device too, and what is written in place is written to the stand-in.

What a model counts out from its integers (token ids, masks, positions) is small and is computed for real, so
that a branch on a mask is the one that a real run takes. Knows nothing of models.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.overrides import _get_current_function_mode_stack as function_modes

from interlace import ambient, trees
from interlace.errors import ScanError
from interlace.known import COUNTED, Known
from interlace.torch_operations import (
    FACTORIES,
    LARGER,
    RANDOM,
    STRICT,
    in_bfloat16,
    itself,
    swap,
    tensors,
    written,
)
from interlace.valueless import FROM_A_SCAN, NO_VALUES, VALUES, said, stack, wants_values

counting: ContextVar[bool] = ContextVar("counting", default=False)
"""Whether new tensors of integers are made for real: on the model's side, never in a block."""

_torchs_log = logging.getLogger("torch._subclasses.fake_tensor")
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


class _Mode(FakeTensorMode):  # type: ignore[no-untyped-call]  # torch types no `__init_subclass__`
    """torch's mode, whose own operations on meta tensors are not ours to change.

    They would be where an operation does not come by way of a function mode: in a backward pass, in `vmap`.

    Attributes:
        made: Called with what each operation gives, unless it is a view of a stand-in.
        stores: The storages of stand-ins.
        over: Whether the scan has ended, which the tensors that were read in it have not.
    """

    made: Callable[[torch.Tensor], None] | None = None
    over = False

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.stores: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        with torch._C.DisableTorchFunction():
            try:
                result = super().__torch_dispatch__(func, types, args, kwargs or {})
            except (RuntimeError, AssertionError) as error:
                if self.over and wants_values(error):
                    raise ScanError(FROM_A_SCAN) from None
                raise
            if self.made is not None:
                for tensor in tensors(result):
                    if tensor.layout == torch.strided and tensor.untyped_storage()._cdata not in self.stores:
                        self.made(tensor)
        return result


class Fakes(TorchFunctionMode):
    """The stand-ins of one scan.

    Args:
        device: Where tensors of the meta device are taken to be.

    Example:
        >>> linear = torch.nn.Linear(2, 3, device="meta")
        >>> with Fakes(torch.device("cpu")) as fakes:
        ...     out = linear(torch.zeros(1, 2))
        >>> out.shape, out.device
        (torch.Size([1, 3]), device(type='cpu'))
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.mode = _Mode()
        self.device = device
        self.known = Known(is_here(device))
        self._thread = 0
        self._under: FakeTensorMode | None = None
        self._fakes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    # -- on and off ------------------------------------------------------------------------------------------

    def __enter__(self) -> "Fakes":
        self._thread = threading.get_ident()
        self._stand(lambda others: (*others, self))
        _torchs_log.addFilter(self._is_news)
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave, wherever in the stack of modes this is: generators are not always left in order."""
        self._stand(lambda others: others)
        _torchs_log.removeFilter(self._is_news)
        self.mode.allow_non_fake_inputs = False  # from now on a mixture of real and fake is an error
        self.mode.over = True

    def _is_news(self, record: logging.LogRecord) -> bool:
        """What torch logs of an operation that failed, it raises as well."""
        return record.thread != self._thread

    def _stand(self, place: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
        """Put this mode among the others, or take it out; of torch's fake modes only the topmost is on."""
        now = ambient.full(ambient.read())
        functions = place(tuple(mode for mode in now.functions if mode is not self))
        fakes = [mode.mode for mode in functions if isinstance(mode, Fakes)]
        others = [mode for mode in now.dispatches if isinstance(mode, FakeTensorMode)]
        self._under = self._under or next((mode for mode in others if not isinstance(mode, _Mode)), None)
        fake = fakes[-1] if fakes else self._under
        dispatches = tuple(mode for mode in now.dispatches if not isinstance(mode, FakeTensorMode))
        dispatches = dispatches if fake is None else (*dispatches, fake)
        ambient.swap(now, now._replace(functions=functions, dispatches=dispatches))
        avoids = bool(getattr(fake, "avoid_device_init", False))
        torch._C._set_only_lift_cpu_tensors(avoids)  # as torch's mode does when it is entered
        if avoids and hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
            torch._C._ensureCUDADeviceGuardSet()

    @contextmanager
    def off(self) -> Iterator[None]:
        """A time in which tensors are real again."""
        now = ambient.read()
        if not isinstance(now, ambient.Ambient) or self not in now.functions:
            yield
            return
        without = now._replace(
            functions=tuple(mode for mode in now.functions if mode is not self),
            dispatches=tuple(mode for mode in now.dispatches if mode is not self.mode),
        )
        ambient.swap(now, without)
        try:
            yield
        finally:
            ambient.swap(ambient.read(), now)

    def forget(self) -> None:
        """Hold no tensor any longer: neither the stand-ins nor what they stand for."""
        self._fakes.clear()
        self.known.clear()
        self.mode.stores.clear()
        converter = type(self.mode.fake_tensor_converter)
        self.mode.fake_tensor_converter = converter()

    # -- stand-ins -------------------------------------------------------------------------------------------

    def fake(self, tensor: torch.Tensor) -> torch.Tensor:
        """The stand-in of a tensor, the same each time."""
        if isinstance(tensor, FakeTensor) and tensor.fake_mode is self.mode:
            return tensor
        held = self._fakes.get(id(tensor))
        if held is None:
            held = self._fakes[id(tensor)] = (tensor, fake := self._make(tensor))
            self.disown(fake)
        return held[1]

    def _make(self, tensor: torch.Tensor) -> torch.Tensor:
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) or isinstance(tensor, FakeTensor)
        if not plain or tensor.layout != torch.strided or tensor.is_quantized:
            return self.mode.from_tensor(tensor)
        device = self.device if tensor.device.type == "meta" else tensor.device
        with self._aside():
            fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            if isinstance(tensor, torch.nn.Parameter):
                return torch.nn.Parameter(fake, tensor.requires_grad)
            return fake.requires_grad_() if tensor.requires_grad else fake  # `vmap` refuses to be asked

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """A time in which tensors are made that nobody's operations gave."""
        made, self.mode.made = self.mode.made, None
        try:
            with self.mode, torch.inference_mode(False):
                yield
        finally:
            self.mode.made = made

    def given(self, tensor: torch.Tensor, moves: bool) -> torch.Tensor:
        """What the model gets for a tensor of its input; `moves` says whether it goes to where the model is."""
        if isinstance(tensor, FakeTensor) and tensor.fake_mode is self.mode:
            return tensor
        if self.known.counts(tensor):
            return self.known.take(tensor, self.device if moves else tensor.device)
        fake = self.fake(tensor)
        if not moves or fake.device == self.device:
            return fake
        with self.mode:
            return fake.to(self.device)

    def kept(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the same shape, without history and with nothing behind it, which can outlive the scan."""
        fake = self.fake(tensor)
        if fake.layout != torch.strided:
            return fake.detach()
        with self._aside():
            return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)

    def disown(self, value: Any) -> None:
        """Count the tensors of a value, which lives as long as the scan, as nobody's operations' own."""
        for tensor in trees.tensors(value):
            if tensor.layout == torch.strided:
                self.mode.stores.add(tensor.untyped_storage()._cdata)

    def settled(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor as anybody may see it: one that was written to, with what has no values, has none either."""
        return self.fake(tensor) if self.known.is_stale(tensor) else tensor

    # -- operations ------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Do an operation: for real where it only counts, else on stand-ins."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        met = tensors((args, kwargs))
        if not met:
            return self._new(func, args, kwargs)
        others = [tensor for tensor in met if not self._is_ours(tensor)]
        if len(others) == len(met):
            if name in VALUES and not any(t.is_meta or self.known.is_stale(t) for t in met):
                return self._really(func, args, kwargs, self.known.true)
            known = {id(tensor): self.known.find(tensor) for tensor in others}
            if all(copy is not None for copy in known.values()) and not any(word in name for word in RANDOM):
                done, result = self._count(func, name, args, kwargs, known)
                if done:
                    return result
        result = self._work_out(func, name, args, kwargs)
        if others and (target := written(name, args, kwargs)) is not None and not self._is_ours(target):
            self.known.lose(target)
        return result

    def _is_ours(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor needs no stand-in."""
        return (isinstance(tensor, FakeTensor) and tensor.fake_mode is self.mode) or _is_wrapped(tensor)

    def _new(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a tensor: without values, but for the small ones that a model makes to count with."""
        made = func(*args, **kwargs)
        if func in FACTORIES and counting.get() and self.known.real and made.numel() <= COUNTED:
            return self._really(func, args, kwargs, itself)
        return made

    def _really(
        self, func: Callable[..., Any], args: Any, kwargs: Any, pick: Callable[[torch.Tensor], torch.Tensor]
    ) -> Any:
        with unset_fake_temporarily():
            return self.known.note(func(*swap(args, pick), **swap(kwargs, pick)))

    def _count(
        self, func: Callable[..., Any], name: str, args: Any, kwargs: Any, known: Mapping[int, Any]
    ) -> tuple[bool, Any]:
        """Compute with what is known, where that is small; the first value tells whether it was done."""
        if prod(tensor.numel() for tensor in known.values()) > COUNTED or name in LARGER:
            shapes = self._work_out(func, name, args, kwargs)
            if any(tensor.numel() > COUNTED for tensor in tensors(shapes)):
                return True, shapes
        try:
            return True, self._really(func, args, kwargs, lambda tensor: known.get(id(tensor), tensor))
        except Exception:  # a device that is not here, perhaps; if not, the stand-ins say what is wrong
            return False, None

    def _work_out(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        """Let torch work out what comes of stand-ins."""
        args, kwargs = swap(args, self._argument), swap(kwargs, self._argument)
        if name == "data_ptr":  # torch says 0; two views of one tensor must still be told from two tensors
            return args[0].untyped_storage()._cdata + args[0].storage_offset() * args[0].element_size()
        try:
            return in_bfloat16(func, args, kwargs) if name in STRICT else func(*args, **kwargs)
        except NO_VALUES as error:
            raise ScanError(said(error, name, stack(sys._getframe(1)))) from None
        except (RuntimeError, TypeError) as error:
            if name not in VALUES:
                raise
            raise ScanError(said(error, name, stack(sys._getframe(1)))) from None

    def _argument(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if _is_wrapped(tensor) else self.fake(self.known.true(tensor))


def has_no_values(tensor: torch.Tensor) -> bool:
    """Whether this is a tensor of a scan."""
    return isinstance(tensor, FakeTensor)


def active() -> bool:
    """Whether tensors have no values here and now."""
    return any(isinstance(mode, Fakes) for mode in function_modes())  # type: ignore[no-untyped-call]


def is_here(device: torch.device) -> bool:
    """Whether tensors can be on a device of this machine."""
    kind = getattr(torch, device.type, None)
    return device.type == "cpu" or bool(kind is not None and kind.is_available())

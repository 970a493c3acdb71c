"""Tensors that have a shape, a dtype and a device, and no values: what a scan runs on.

torch's `FakeTensorMode` works out what an operation would give. Over it stands a function mode that hands it
a stand-in for every real tensor that an operation meets: parameters and buffers stay as they are, on the meta
device too, and what is written in place is written to the stand-in.

What a model counts out from its integers (token ids, masks, positions) is small and is computed for real, so
that a branch on a mask is the one that a real run takes. Knows nothing of models.
"""

import linecache
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from math import prod
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    unset_fake_temporarily,
)
from torch.overrides import TorchFunctionMode
from torch.overrides import _get_current_function_mode_stack as function_modes

from interlace import ambient
from interlace.errors import ScanError

COUNTED = 1 << 16
"""The most elements that are computed for real."""

counting: ContextVar[bool] = ContextVar("counting", default=False)
"""Whether new tensors of integers are made for real: on the model's side, never in a block."""

NO_VALUES = (UnsupportedFakeTensorException, DynamicOutputShapeException)
"""What torch raises where values are needed."""

_VALUES = frozenset({
    "item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "__complex__",
    "__contains__", "is_nonzero", "equal", "allclose",
})  # fmt: skip
_RANDOM = (
    "rand", "multinomial", "bernoulli", "dropout", "normal", "uniform", "exponential", "cauchy", "geometric",
    "poisson",
)  # fmt: skip
_FACTORIES = frozenset({
    torch.arange, torch.zeros, torch.ones, torch.full, torch.eye, torch.tensor, torch.as_tensor,
    torch.scalar_tensor, torch.tril_indices, torch.triu_indices,
})  # fmt: skip
_LARGER = frozenset(
    {"repeat", "repeat_interleave", "tile", "one_hot", "pad", "new_zeros", "new_ones", "new_full"}
)
_WRITES = frozenset({
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__",
    "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__",
})  # fmt: skip
_STRICT = frozenset({"grouped_mm", "_grouped_mm"})
"""Operations for which torch has a rule of shapes in bfloat16 alone, though they take other dtypes."""

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_HERE = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)


class _Mode(FakeTensorMode):
    """torch's mode, whose own operations on meta tensors are not ours to change.

    They would be where an operation does not come by way of a function mode: in a backward pass, in `vmap`.

    Attributes:
        made: Called with what each operation gives, unless it is a view of a stand-in.
        stores: The storages of stand-ins.
    """

    made: Callable[[torch.Tensor], None] | None = None

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.stores: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        with torch._C.DisableTorchFunction():
            result = super().__torch_dispatch__(func, types, args, kwargs or {})
            if self.made is not None:
                for tensor in _tensors(result):
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
        self._real = is_here(device)
        self._under: FakeTensorMode | None = None
        self._fakes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._known: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()
        self.stale: dict[int, torch.UntypedStorage] = {}

    # -- on and off ------------------------------------------------------------------------------------------

    def __enter__(self) -> "Fakes":
        self._stand(lambda others: (*others, self))
        return self

    def __exit__(self, *error: Any) -> None:
        """Leave, wherever in the stack of modes this is: generators are not always left in order."""
        self._stand(lambda others: others)
        self.mode.allow_non_fake_inputs = False  # from now on torch says what is wrong with a mixture

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
        ambient.swap(now, replace(now, functions=functions, dispatches=dispatches))
        avoids = fake is not None and fake.avoid_device_init
        torch._C._set_only_lift_cpu_tensors(avoids)  # as torch's mode does when it is entered
        if avoids:
            torch._C._ensureCUDADeviceGuardSet()

    @contextmanager
    def off(self) -> Iterator[None]:
        """A time in which tensors are real again."""
        now = ambient.read()
        if not isinstance(now, ambient.Ambient) or self not in now.functions:
            yield
            return
        without = replace(
            now,
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
        for held in (self._fakes, self._copies, self._known, self.stale, self.mode.stores):
            held.clear()
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
            if fake.layout == torch.strided:
                self.mode.stores.add(fake.untyped_storage()._cdata)
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
            return fake.requires_grad_(tensor.requires_grad)

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
        if self._counts(tensor):
            copy: torch.Tensor = self._note(tensor.to(self.device if moves else tensor.device, copy=True))
            self._copies[id(tensor)] = (tensor, copy)
            return copy
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

    def settled(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor as anybody may see it: one that was written to, with what has no values, has none either."""
        return self.fake(tensor) if self._is_stale(tensor) else tensor

    # -- what is known ---------------------------------------------------------------------------------------

    def _counts(self, tensor: torch.Tensor) -> bool:
        """Whether what follows from the values of a real tensor can be computed for real."""
        return (
            self._real
            and type(tensor) is torch.Tensor
            and tensor.device.type != "meta"
            and not tensor.dtype.is_floating_point
            and not tensor.dtype.is_complex
            and tensor.numel() <= COUNTED
        )

    def _note(self, value: Any) -> Any:
        """Know the tensors of a value."""
        for tensor in _tensors(value):
            self._known[id(tensor)] = tensor
        return value

    def _true(self, tensor: torch.Tensor) -> torch.Tensor:
        """What a real tensor of somebody else's was copied to, so that nothing is written to it."""
        held = self._copies.get(id(tensor))
        return tensor if held is None else held[1]

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The known tensor to compute with in place of a real one, if there is one."""
        copy = self._true(tensor)
        if self._known.get(id(copy)) is not copy:
            if not self._counts(tensor):
                return None
            with unset_fake_temporarily():
                copy = self._note(tensor.clone())
            self._copies[id(tensor)] = (tensor, copy)
        return None if copy.numel() > COUNTED or self._is_stale(copy) else copy

    def _is_stale(self, tensor: torch.Tensor) -> bool:
        if not self.stale or isinstance(tensor, FakeTensor) or tensor.layout != torch.strided:
            return False
        return tensor.untyped_storage()._cdata in self.stale

    # -- operations ------------------------------------------------------------------------------------------

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Do an operation: for real where it only counts, else on stand-ins."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        met = _tensors((args, kwargs))
        if not met:
            return self._new(func, args, kwargs)
        others = [tensor for tensor in met if not self._is_ours(tensor)]
        if len(others) == len(met):
            if name in _VALUES and not any(t.is_meta or self._is_stale(self._true(t)) for t in met):
                return self._really(func, args, kwargs, self._true)
            known = {id(tensor): self._copy(tensor) for tensor in others}
            if all(copy is not None for copy in known.values()) and not any(word in name for word in _RANDOM):
                done, result = self._count(func, name, args, kwargs, known)
                if done:
                    return result
        result = self._work_out(func, name, args, kwargs)
        if others and (written := _written(name, args, kwargs)) is not None and not self._is_ours(written):
            store = self._true(written).untyped_storage()
            self.stale[store._cdata] = store
        return result

    def _is_ours(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor needs no stand-in."""
        return (isinstance(tensor, FakeTensor) and tensor.fake_mode is self.mode) or _is_wrapped(tensor)

    def _new(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make a tensor: without values, but for the small ones that a model makes to count with."""
        made = func(*args, **kwargs)
        if func in _FACTORIES and counting.get() and self._real and made.numel() <= COUNTED:
            return self._really(func, args, kwargs, _itself)
        return made

    def _really(
        self, func: Callable[..., Any], args: Any, kwargs: Any, pick: Callable[[torch.Tensor], torch.Tensor]
    ) -> Any:
        with unset_fake_temporarily():
            return self._note(func(*_swap(args, pick), **_swap(kwargs, pick)))

    def _count(
        self, func: Callable[..., Any], name: str, args: Any, kwargs: Any, known: Mapping[int, Any]
    ) -> tuple[bool, Any]:
        """Compute with what is known, where that is small; the first value tells whether it was done."""
        if prod(tensor.numel() for tensor in known.values()) > COUNTED or name in _LARGER:
            shapes = self._work_out(func, name, args, kwargs)
            if any(tensor.numel() > COUNTED for tensor in _tensors(shapes)):
                return True, shapes
        try:
            return True, self._really(func, args, kwargs, lambda tensor: known.get(id(tensor), tensor))
        except Exception:  # a device that is not here, perhaps; if not, the stand-ins say what is wrong
            return False, None

    def _work_out(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        """Let torch work out what comes of stand-ins."""
        args, kwargs = _swap(args, self._argument), _swap(kwargs, self._argument)
        if name == "data_ptr":  # torch says 0; two views of one tensor must still be told from two tensors
            return args[0].untyped_storage()._cdata + args[0].storage_offset() * args[0].element_size()
        try:
            return _in_bfloat16(func, args, kwargs) if name in _STRICT else func(*args, **kwargs)
        except NO_VALUES as error:
            raise ScanError(said(error, name, _stack(sys._getframe(1)))) from None
        except (RuntimeError, TypeError) as error:
            if name not in _VALUES:
                raise
            raise ScanError(said(error, name, _stack(sys._getframe(1)))) from None

    def _argument(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if _is_wrapped(tensor) else self.fake(self._true(tensor))


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


def _in_bfloat16(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor

    given = next(tensor.dtype for tensor in _tensors((args, kwargs)) if tensor.is_floating_point())
    return func(*_swap(args, cast), **_swap(kwargs, cast)).to(kwargs.get("out_dtype") or given)


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _written(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The tensor that an operation writes to."""
    found = kwargs.get("out")
    if found is None and args:
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place or name in _WRITES or kwargs.get("inplace"):
            found = args[0]
    return found if isinstance(found, torch.Tensor) else None


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors among arguments, in the nests that torch takes."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for part in value for tensor in _tensors(part)]


def _swap(value: Any, pick: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same arguments with other tensors."""
    if isinstance(value, torch.Tensor):
        return pick(value)
    if isinstance(value, dict):
        return {name: _swap(part, pick) for name, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_swap(part, pick) for part in value)
    return value


# -- what an error says --------------------------------------------------------------------------------------


def _stack(frame: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    while frame is not None:
        yield frame, frame.f_lineno
        frame = frame.f_back


def unwound(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    """The frames that an error came through, innermost first."""
    found = []
    here = error.__traceback__
    while here is not None:
        found.append((here.tb_frame, here.tb_lineno))
        here = here.tb_next
    return reversed(found)


def said(error: BaseException, name: str, stack: Iterable[tuple[FrameType, int]]) -> str:
    """The message of a scan that cannot go on: the line that asked, what it asked for, and the way out."""
    at = "The scan cannot go on"
    for frame, line in stack:
        code = frame.f_code
        if not code.co_filename.startswith((_HERE, _TORCH)):
            where = getattr(code, "co_qualname", code.co_name)
            text = linecache.getline(code.co_filename, line, frame.f_globals).strip()
            at += f" at {code.co_filename}:{line}, in {where}:" + f"\n    {text}" * bool(text)
            break
    if isinstance(error, UnsupportedOperatorException):
        return (
            f"{at}\nThe operator `{error.func}` has no rule for what shape it gives, so torch cannot work it out.\n"
            "Register one with `torch.library.register_fake`, or use `model.trace(...)` with real input."
        )
    what = f"`{name.strip('_')}`" if name in _VALUES else f"The shape of what `{name.strip('_')}` gives"
    return (
        f"{at}\n{what} depends on the values of a tensor, and in a scan a tensor has none.\n"
        "Use `model.trace(...)` with real input; or skip the module in the scan's block, "
        "`module.skip(torch.empty(...))`."
    )

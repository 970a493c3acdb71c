"""Tensors and arrays that travel beside the text, by name; memory that several share travels once."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from interlace import trees
from interlace.portable.names import is_name

PLAIN = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
"""What every version of safetensors can hold; other dtypes travel as bytes."""

KINDS = ("tensor", "parameter", "array", "scalar")
Entry = dict[str, Any]


class Tensors:
    """The tensors of one file while it is written.

    Attributes:
        entries: By name: what it is and where it is stored.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._held: dict[str, tuple[object, torch.Tensor]] = {}
        self._names: dict[int, str] = {}

    def add(self, value: object, wish: str) -> str | None:
        """Take a tensor or an array in; its name, or None when it is neither."""
        known = self._names.get(id(value))
        if known is not None:
            return known
        kind, tensor = _kind(value)
        if tensor is None:
            return None
        name = wish = wish if is_name(wish) else "tensor"
        number = 1
        while name in self.entries:
            number += 1
            name = f"{wish}_{number}"
        entry: Entry = {
            "kind": kind,
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
        }
        if kind in ("tensor", "parameter"):
            entry["device"] = str(tensor.device)
            entry["requires_grad"] = bool(tensor.requires_grad and tensor.is_leaf)
        self.entries[name] = entry
        self._held[name] = (value, tensor.detach())
        self._names[id(value)] = name
        return name

    def finish(self) -> dict[str, torch.Tensor]:
        """What is stored, by name; the entries know by now where."""
        stored: dict[str, torch.Tensor] = {}
        for names in self._together():
            stored.update(self._share(names) if len(names) > 1 else self._single(names[0]))
        return stored

    def _together(self) -> list[list[str]]:
        """The names in groups that lie in the same memory."""
        places = []
        for name, (_, tensor) in self._held.items():
            start = tensor.data_ptr()
            places.append((str(tensor.device), start, start + trees.span(tensor) * tensor.itemsize, name))
        groups: list[list[str]] = []
        before, reach = "", -1
        for device, start, end, name in sorted(places):
            if device == before and start < reach:
                groups[-1].append(name)
            else:
                groups.append([name])
            before, reach = device, end if device != before else max(reach, end)
        return groups

    def _single(self, name: str) -> dict[str, torch.Tensor]:
        tensor = self._held[name][1].resolve_conj().resolve_neg()
        self.entries[name]["stored"] = name
        tensor = tensor.cpu().contiguous()
        if tensor.dtype not in PLAIN:
            tensor = tensor.reshape(-1).view(torch.uint8)
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.itemsize
        return {name: tensor if whole else tensor.clone()}

    def _share(self, names: list[str]) -> dict[str, torch.Tensor]:
        """The bytes that several tensors lie in, and where in them each begins."""
        held = {name: self._held[name][1] for name in names}
        if any(tensor.is_conj() or tensor.is_neg() for tensor in held.values()):
            return {key: value for name in names for key, value in self._single(name).items()}
        starts = {name: tensor.storage_offset() * tensor.itemsize for name, tensor in held.items()}
        low = min(starts.values()) // 16 * 16  # every dtype can be read from there
        high = max(starts[name] + trees.span(tensor) * tensor.itemsize for name, tensor in held.items())
        first = next(iter(held.values()))
        whole = torch.empty(0, dtype=torch.uint8, device=first.device)
        whole.set_(first.untyped_storage())
        key = f"{names[0]}.memory"
        for name, tensor in held.items():
            place = {"offset": starts[name] - low, "stride": list(tensor.stride())}
            self.entries[name] |= {"stored": key, **place}
        return {key: whole[low:high].cpu().clone()}


def _kind(value: object) -> tuple[str, torch.Tensor | None]:
    if type(value) in (torch.Tensor, nn.Parameter):
        assert isinstance(value, torch.Tensor)
        plain = value.layout is torch.strided and not value.is_quantized and not value.is_meta
        return ("parameter" if isinstance(value, nn.Parameter) else "tensor", value if plain else None)
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.ndarray, numpy.generic)):
        return "", None
    if type(value) is not numpy.ndarray and isinstance(value, numpy.ndarray):
        return "", None
    try:
        array = numpy.ascontiguousarray(value).reshape(numpy.shape(value))
        native = array.astype(array.dtype.newbyteorder("="), copy=True)
        made = torch.from_numpy(native)
    except (TypeError, ValueError):  # texts, objects, dates
        return "", None
    return ("array" if isinstance(value, numpy.ndarray) else "scalar"), made


def check(entries: dict[str, Any], stored: dict[str, torch.Tensor]) -> None:
    """Compare what a file says of its tensors with the tensors that it has.

    Raises:
        ValueError: They do not agree.
    """
    for name, entry in entries.items():
        memory = stored[entry["stored"]]
        dtype = getattr(torch, entry["dtype"], None)
        shape, offset, stride = entry["shape"], entry.get("offset", 0), entry.get("stride")
        sizes = [*shape, offset, *(stride or ())]
        if entry["kind"] not in KINDS or not isinstance(dtype, torch.dtype):
            raise ValueError(f"the tensor {name!r} is of an unknown kind")
        if any(type(size) is not int or size < 0 for size in sizes):
            raise ValueError(f"the tensor {name!r} has an impossible shape")
        if entry["kind"] in ("tensor", "parameter"):
            torch.device(entry["device"])
            if not isinstance(entry["requires_grad"], bool) or (
                entry["requires_grad"] and not _can_learn(dtype)
            ):
                raise ValueError(f"the tensor {name!r} cannot require gradients")
        if ("stride" in entry) != ("offset" in entry):
            raise ValueError(f"the tensor {name!r} has a stride or an offset alone")
        _check_memory(name, entry, memory, dtype)
    left = stored.keys() - {entry["stored"] for entry in entries.values()}
    if left:
        raise ValueError(f"the tensor {min(left)!r} is nobody's")


def _can_learn(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _check_memory(name: str, entry: Entry, memory: torch.Tensor, dtype: torch.dtype) -> None:
    shape, stride = entry["shape"], entry.get("stride")
    size = torch.empty(0, dtype=dtype).element_size()
    if stride is None:
        count = 1
        for length in shape:
            count *= length
        if dtype in PLAIN:
            fits = memory.dtype is dtype and list(memory.shape) == shape
        else:
            fits = memory.dtype is torch.uint8 and list(memory.shape) == [count * size]
    else:
        empty = 0 in shape
        span = 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
        end = entry.get("offset", 0) + (0 if empty else span * size)
        fits = memory.dtype is torch.uint8 and memory.ndim == 1 and end <= len(memory)
        fits = fits and entry.get("offset", 0) % size == 0
    if not fits:
        raise ValueError(f"the tensor {name!r} is not what the manifest says")


class Stored:
    """The tensors of a file that was read, each made once.

    Args:
        entries: What each is.
        stored: What the file holds.
        place: The device that a tensor goes to, by the name of the one it was on.
    """

    def __init__(self, entries: dict[str, Entry], stored: dict[str, torch.Tensor], place: Any) -> None:
        self._entries = entries
        self._stored = stored
        self._place = place
        self._memory: dict[tuple[str, str], torch.Tensor] = {}
        self._made: dict[str, Any] = {}

    def get(self, name: str) -> Any:
        """The tensor or array with a name; the same one every time."""
        if name not in self._made:
            self._made[name] = self._make(self._entries[name])
        return self._made[name]

    def _make(self, entry: Entry) -> Any:
        dtype: torch.dtype = getattr(torch, entry["dtype"])
        device = self._place(entry["device"]) if "device" in entry else torch.device("cpu")
        key = (entry["stored"], str(device))
        memory = self._memory.get(key)
        if memory is None:  # a copy: what a run writes into it is not written into what was read
            memory = self._memory[key] = self._stored[entry["stored"]].to(device, copy=True)
        tensor = memory if memory.dtype is dtype and "stride" not in entry else _seen(memory, entry, dtype)
        if entry["kind"] == "parameter":
            return nn.Parameter(tensor, requires_grad=bool(entry["requires_grad"]))
        if entry["kind"] == "tensor":
            return tensor.requires_grad_(True) if entry["requires_grad"] else tensor
        array: Any = tensor.numpy()
        return array if entry["kind"] == "array" else array[()]


def _seen(memory: torch.Tensor, entry: Entry, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of a dtype, shape and stride in some bytes."""
    shape = entry["shape"]
    seen = memory
    if memory.dtype is not dtype:
        size = torch.empty(0, dtype=dtype).element_size()
        seen = memory.reshape(-1)
        seen = seen[: seen.numel() // size * size].view(dtype)
    if "stride" not in entry:
        return seen.reshape(shape)
    return seen.as_strided(
        shape, entry["stride"], entry["offset"] // torch.empty(0, dtype=dtype).element_size()
    )

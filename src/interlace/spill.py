"""A cache's values on disk: written while the model runs, read when they are asked for.

A value is a nest of tensors; its tensors go into shards under names that say where they are from, its shape into
the notes of the shard. Containers of a class of their own come back as `Fields`; what is neither a tensor nor
plain becomes None.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from interlace import trees
from interlace.errors import RecordingError
from interlace.selection import Outline
from interlace.shards import Shard, Shards
from interlace.site import Port, Site

PLAIN = (bool, int, float, str, type(None))


class Fields(dict[str, Any]):
    """What a dataclass, a named tuple or a `ModelOutput` was: its fields by name, as items and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Entry:
    """One value that is to be written (`value`), or is (`file` and `shape`)."""

    __slots__ = ("file", "name", "shape", "value")

    def __init__(self, name: str, value: Any = None, file: str = "", shape: Any = None) -> None:
        self.name = name
        self.value = value
        self.file = file
        self.shape = shape


class Spill:
    """The values of a cache in a folder.

    Args:
        shards: The folder.
        limit: Bytes that are kept in memory before they are written.
    """

    def __init__(self, shards: Shards, limit: int) -> None:
        self.shards = shards
        self.limit = limit
        self._waiting: list[tuple[str, Port, int, Entry]] = []
        self._bytes = 0
        self._open: dict[str, Shard] = {}

    @classmethod
    def write(
        cls, folder: Any, settings: Mapping[str, Any], limit: int, aliases: Mapping[str, Any]
    ) -> "Spill":
        """Begin a folder, or go on with one after the last trace that ended well.

        Raises:
            RecordingError: The settings differ, or the folder is not to be written to.
        """
        shards = Shards.write(folder, "cache", settings)
        shards.progress.setdefault("traces", 0)
        shards.progress["aliases"] = dict(aliases)
        whole = sum(entry["trace"] < shards.progress["traces"] for entry in shards.entries)
        if whole < len(shards.entries):  # what a trace left that did not come to its end
            shards.drop(whole)
        return cls(shards, limit)

    @classmethod
    def read(cls, folder: Any) -> "Spill":
        """Open a folder to read it.

        Raises:
            RecordingError: It holds no cache.
        """
        return cls(Shards.read(folder, "cache"), 0)

    # -- writing -------------------------------------------------------------------------------------------------

    def put(self, path: str, port: Port, number: int, value: Any) -> Entry:
        """Take in one value."""
        value = trees.map_tensors(_own, value)
        entry = Entry(f"{path}.{port}/{number}", value)
        self._waiting.append((path, port, number, entry))
        self._bytes += sum(tensor.nbytes for tensor in trees.tensors(value))
        if self._bytes >= self.limit:
            self._flush()
        return entry

    def _flush(self) -> None:
        if not self._waiting:
            return
        tensors: dict[str, torch.Tensor] = {}
        notes = []
        for path, port, number, entry in self._waiting:
            entry.shape = _pack(entry.value, entry.name, tensors)
            notes.append([path, port, number, entry.name, entry.shape])
        trace = self.shards.progress["traces"]
        file = self.shards.add(tensors, {"values": notes}, {"trace": trace})["file"]
        for _, _, _, entry in self._waiting:
            entry.file, entry.value = file, None
        self._waiting.clear()
        self._bytes = 0

    def end(self, whole: bool) -> None:
        """The trace is over; `whole` if it ended well, so that what it wrote is kept."""
        self._flush()
        if whole:
            self.shards.progress["traces"] += 1
            self.shards.save()
        self.shards.close()

    # -- reading -------------------------------------------------------------------------------------------------

    def get(self, entry: Entry) -> Any:
        """The value of an entry; its tensors are memory-mapped.

        Raises:
            RecordingError: Its file is missing or damaged.
        """
        if not entry.file:
            return entry.value
        shard = self._open.get(entry.file)
        if shard is None:
            path = self.shards.folder / entry.file
            if not path.exists():
                raise RecordingError(
                    f"{path} is there no more: its trace did not end well, and a later one took its place."
                )
            about = next(one for one in self.shards.entries if one["file"] == entry.file)
            shard = self._open[entry.file] = Shard(path, about)
        return _unpack(entry.shape, shard)

    def entries(self) -> Iterator[tuple[str, Port, int, Entry]]:
        """Everything that is written: path, port, number of the visit, entry."""
        for shard in self.shards:
            self._open[shard.path.name] = shard
            for path, port, number, name, shape in shard.notes["values"]:
                yield path, port, number, Entry(name, None, shard.path.name, shape)

    def outline(self) -> Outline:
        """The names in the model, as far as values of them are here."""
        outline = Outline(self.shards.settings["root"], aliases=self.shards.progress.get("aliases", {}))
        for path, _, _, _ in self.entries():
            if path not in outline.sites:
                outline.add(Site(path, path))
        return outline


def _own(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _pack(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The shape of a value, as JSON; its tensors are put under names of their own."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    inside = trees.children(value)
    if inside is None:
        return {"plain": value} if isinstance(value, PLAIN) else {"lost": type(value).__name__}
    parts = [_pack(part, name + spelled, tensors) for spelled, part in inside]
    if type(value) in (tuple, list):
        return {type(value).__name__: parts}
    if type(value) is dict:  # as pairs: what is a key in JSON is text
        keys = [key if isinstance(key, PLAIN) else str(key) for key in value]
        return {"dict": [list(pair) for pair in zip(keys, parts, strict=True)]}
    names = map(str, value) if isinstance(value, Mapping) else (at.removeprefix(".") for at, _ in inside)
    return {"fields": dict(zip(names, parts, strict=True))}


def _unpack(shape: Any, shard: Shard) -> Any:
    ((kind, inside),) = shape.items()
    if kind == "tensor":
        return shard.tensor(inside)
    if kind in ("tuple", "list"):
        parts = [_unpack(part, shard) for part in inside]
        return tuple(parts) if kind == "tuple" else parts
    if kind == "dict":
        return {key: _unpack(part, shard) for key, part in inside}
    if kind == "fields":
        return Fields({name: _unpack(part, shard) for name, part in inside.items()})
    return inside if kind == "plain" else None

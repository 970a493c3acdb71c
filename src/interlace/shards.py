"""A folder of tensors that grows while something runs, and that no crash leaves half written.

Tensors stand in safetensors files; an index (JSON) says which of them count, how long they are and what their
checksums are. A file is written under another name, flushed to the disk and renamed; only then does the index
learn of it, in the same way. What the index does not name was being written when the process died, and is removed
when the folder is next written to. Knows nothing of models.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from interlace.errors import RecordingError

try:
    import fcntl
except ImportError:  # Windows; there, nothing keeps two processes from writing to one folder
    fcntl = None  # type: ignore[assignment]

INDEX = "index.json"
FORMAT = 1

SHARD_BYTES = 256 << 20
"""How large a file grows before the next one is begun."""


class Shard:
    """One file of a folder, memory-mapped: `notes`, and tensors by name."""

    def __init__(self, path: Path, entry: Mapping[str, Any]) -> None:
        self.path = path
        self.entry = entry
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise RecordingError(f"{path} is missing. {_REMEDY}") from None
        if size != entry["bytes"]:
            raise RecordingError(
                f"{path} is damaged: it has {size:,} bytes and had {entry['bytes']:,}. {_REMEDY}"
            )
        from safetensors import SafetensorError, safe_open  # when a folder is opened: importing stays quick

        try:
            file: Any = safe_open(str(path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise RecordingError(f"{path} is damaged: {error}. {_REMEDY}") from error
        self._file = file
        self.notes: dict[str, Any] = json.loads((file.metadata() or {}).get("notes", "{}"))

    def __reduce__(self) -> tuple[Any, ...]:
        return Shard, (self.path, self.entry)  # opened again where it goes: a mapped file does not travel

    def tensor(self, name: str) -> torch.Tensor:
        """One of its tensors, of which only what is looked at is read. Writing to it does not reach the file."""
        found: torch.Tensor = self._file.get_tensor(name)
        return found

    def verify(self) -> None:
        """Read it whole and compare its checksum.

        Raises:
            RecordingError: It differs.
        """
        if checksum(self.path) != self.entry["crc32"]:
            raise RecordingError(f"{self.path} is damaged: its checksum differs from the index. {_REMEDY}")


_REMEDY = "Take it from a copy, or record anew into an empty folder."


class Shards:
    """The folder.

    Attributes:
        folder: Where it is.
        settings: What it was begun with.
        progress: How far its writer has come, whatever that is for it.
        entries: What the index says of each file, in order.
    """

    def __init__(self, folder: Path, kind: str, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.kind = kind
        self.settings = dict(settings)
        self.progress: dict[str, Any] = {}
        self.entries: list[dict[str, Any]] = []
        self._lock: int | None = None

    # -- opening -------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, folder: str | os.PathLike[str], kind: str) -> "Shards":
        """Open a folder to read it.

        Raises:
            RecordingError: It has no index, or one of another kind or of a later version.
        """
        path = Path(folder).expanduser()
        try:
            index = json.loads((path / INDEX).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RecordingError(
                f"There is no {kind} in {path}: it has no {INDEX}.\n"
                "`model.record(dataset, sites, folder)` writes a recording, `tracer.cache(..., to=folder)` a cache."
            ) from None
        except ValueError as error:
            raise RecordingError(f"{path / INDEX} is damaged: {error}. {_REMEDY}") from error
        if not isinstance(index, dict) or not index.keys() >= {
            "kind",
            "format",
            "settings",
            "progress",
            "shards",
        }:
            raise RecordingError(f"{path / INDEX} is no index of interlace.")
        if index["kind"] != kind:
            raise RecordingError(f"{path} holds a {index['kind']}, not a {kind}.")
        if index["format"] > FORMAT:
            raise RecordingError(
                f"{path} was written by a later version of interlace: format {index['format']}."
            )
        shards = cls(path, kind, index["settings"])
        shards.progress, shards.entries = index["progress"], index["shards"]
        return shards

    @classmethod
    def write(cls, folder: str | os.PathLike[str], kind: str, settings: Mapping[str, Any]) -> "Shards":
        """Open a folder to write to it, a new one or one that was begun with the same settings.

        Raises:
            RecordingError: The settings differ, files of others are in the folder, or another process writes to it.
        """
        path = Path(folder).expanduser()
        path.mkdir(parents=True, exist_ok=True)
        settings = json.loads(json.dumps(settings))  # as they will be read back
        shards = cls(path, kind, settings)
        if not shards._go_on() and not all(_ours(file) for file in path.iterdir()):
            raise RecordingError(f"{path} has files in it and no {kind}. Give an empty or a new folder.")
        shards._take_lock()
        try:
            begun = shards._go_on()  # again: another process may have written until it let go of the lock
            shards.clean()
            if not begun:
                shards.save()
        except BaseException:
            shards.close()
            raise
        return shards

    def _go_on(self) -> bool:
        """Take over what is in the folder; False if nothing is."""
        if not (self.folder / INDEX).exists():
            return False
        found = self.read(self.folder, self.kind)
        found._same(self.settings)
        self.progress, self.entries = found.progress, found.entries
        return True

    def _same(self, settings: Mapping[str, Any]) -> None:
        for name in dict.fromkeys([*self.settings, *settings]):
            before, now = self.settings.get(name), settings.get(name)
            if before != now:
                raise RecordingError(
                    f"{self.folder} was begun with `{name}` {_short(before)}, and now it is {_short(now)}.\n"
                    "Go on with the same, or give another folder."
                )

    def _take_lock(self) -> None:
        if fcntl is None:
            return
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise RecordingError(f"Something else is writing to {self.folder} at this moment.") from None

    def close(self) -> None:
        """Let others write."""
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def __del__(self) -> None:
        self.close()

    # -- writing -------------------------------------------------------------------------------------------------

    def clean(self) -> None:
        """Remove what the index does not name: it was being written when a process died."""
        named = {entry["file"] for entry in self.entries}
        for file in self.folder.iterdir():
            if _ours(file) and file.name not in {*named, INDEX, "lock"}:
                file.unlink()

    def add(
        self, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, Any], about: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write one file and name it in the index; what `progress` says by then is written with it.

        Args:
            tensors: What it holds, on the CPU, each with memory of its own.
            notes: Kept in the file.
            about: Kept in the index.

        Returns:
            Its entry in the index.
        """
        path = self.folder / f"{self._free():05d}.safetensors"
        temporary = path.with_suffix(".tmp")
        write_tensors(temporary, tensors, notes)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        entry = {"file": path.name, "bytes": temporary.stat().st_size, "crc32": checksum(temporary), **about}
        temporary.replace(path)
        self.entries.append(entry)
        self.save()
        return entry

    def drop(self, kept: int) -> None:
        """Keep the first files and remove the others, whose names nobody gets again: somebody may still look there."""
        self.progress["free"] = self._free()
        del self.entries[kept:]
        self.save()
        self.clean()

    def _free(self) -> int:
        """A number that no file has, or had."""
        last = int(Path(self.entries[-1]["file"]).stem) if self.entries else -1
        return max(last + 1, int(self.progress.get("free", 0)))

    def save(self) -> None:
        """Write the index."""
        index = {
            "made by": "interlace", "format": FORMAT, "kind": self.kind, "settings": self.settings,
            "progress": self.progress, "shards": self.entries,
        }  # fmt: skip
        temporary = self.folder / f"{INDEX}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(index, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        _sync(self.folder)  # the files that it names are there before it is
        temporary.replace(self.folder / INDEX)
        _sync(self.folder)

    # -- reading -------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Shard]:
        return (self.shard(at) for at in range(len(self.entries)))

    def shard(self, at: int) -> Shard:
        """One file.

        Raises:
            RecordingError: It is missing or damaged; names it.
        """
        entry = self.entries[at]
        return Shard(self.folder / entry["file"], entry)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, Any]) -> None:
    """Write one file, without regard to what happens on the way."""
    from safetensors.torch import save_file  # likewise

    save_file(dict(tensors), str(path), metadata={"notes": json.dumps(notes)})


def checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found = zlib.crc32(block, found)
    return found


def _ours(file: Path) -> bool:
    return file.name in (INDEX, "lock", f"{INDEX}.tmp") or (
        file.suffix in (".safetensors", ".tmp") and file.stem.isdigit()
    )


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # not every file system knows this of folders
        pass
    finally:
        os.close(descriptor)


def _short(value: object) -> str:
    said = json.dumps(value)
    return said if len(said) < 60 else said[:56] + " ..."

"""Read a file of edits: everything is checked before anything is stored, and nothing runs or is imported."""

from __future__ import annotations

import copy
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from interlace.capture import Bound
from interlace.edit import Edit
from interlace.edit import Place as Here
from interlace.errors import ExportError
from interlace.exports import references
from interlace.exports.blocks import Block, recompiled
from interlace.exports.checks import (
    Resolve,
    anything,
    check_shape,
    check_sources,
    check_values,
    damaged,
    printable,
)
from interlace.exports.folder import MANIFEST, SOURCE, TENSORS, content
from interlace.exports.needs import walk
from interlace.exports.writing import FORMAT, VERSION, digest
from interlace.portable import Tables, Text, Unpack
from interlace.portable.tensors import Stored
from interlace.portable.tensors import check as check_tensors


@dataclass(slots=True)
class File:
    """A file of edits that was read and found whole.

    Attributes:
        folder: Where it was read.
        manifest: What it says.
        text: Its sources.
        stored: Its tensors, on the CPU.
    """

    folder: Path
    manifest: dict[str, Any]
    text: Text
    stored: dict[str, torch.Tensor]
    _edits: list[Edit] | None = None
    _twin: Any = None
    _taps: Any = None
    _lock: Any = field(default_factory=threading.RLock)

    def tables(self, tensor: Callable[[str], Any], resolve: Resolve) -> Tables:
        """What the functions and values are made from."""
        functions, namespaces = self.manifest["functions"], self.manifest["namespaces"]
        cells, shared = self.manifest["cells"], self.manifest["shared"]
        return Tables(self.text, functions, namespaces, cells, shared, tensor, resolve)

    def imported(self, root: Any) -> list[Imported]:
        """The edits, to be stored in a model.

        Raises:
            ExportError: The model lacks something that they need.
        """
        for path in self.manifest["modules"]:
            if walk(root, path) is None:
                raise ExportError(
                    f"The edits in {self.folder} need `{path}`: {references.missing(root, path)}\n"
                    f"They were made for a {self.manifest['model']['class']}. Nothing was loaded."
                )
        check_values(self, lambda kind, held: references.resolve(root, kind, held))
        top = root._tree.path
        places = [f"{top}.{entry['on']}".rstrip(".") for entry in self.manifest["edits"]]
        return [Imported(path, self, number) for number, path in enumerate(places)]

    def edit(self, number: int, model: Any) -> Edit:
        """One edit, made when the first run of a model needs it."""
        with self._lock:
            if self._edits is None:
                self._edits = self._make(model.root)
            elif self._twin is not None and self._taps is not model._tree._taps:
                self._twin._tree.repoint(model._tree.module)  # modules may have been replaced since
            self._taps = model._tree._taps
            return self._edits[number]

    # -- making them ------------------------------------------------------------------------------------------

    def _make(self, root: Any) -> list[Edit]:
        root._tree.load()  # its parameters and its device are those that it runs with
        device = root._tree.device() or torch.device("cpu")
        home = self.manifest["model"]["device"]

        def place(name: str) -> torch.device:
            """On the model's device if it was there; else on its own, where this machine has that."""
            wanted = torch.device(name)
            return device if name == home or not _is_here(wanted) else wanted

        tensors = Stored(self.manifest["tensors"], self.stored, place)
        tables = self.tables(tensors.get, lambda kind, held: self._resolve(root, kind, held))
        try:
            unpack = Unpack(tables)
            unpack.fill()
            return [self._one(entry, unpack, root) for entry in self.manifest["edits"]]
        except Exception as error:  # also whatever a package raises that is imported now
            raise ExportError(
                f"The edits in {self.folder} cannot be made here: {type(error).__name__}: {error}\n"
                "They may need another version of a package, or were changed by hand."
            ) from error

    def _resolve(self, root: Any, kind: str, held: Any) -> Any:
        """Envoys are of a tree without edits: one of the model's own would hold the model that holds the edit."""
        if kind != "envoy":
            return references.resolve(root, kind, held)
        if self._twin is None:
            self._twin = copy.copy(root)
            self._twin._tree.edits, self._twin._tree.lineage = [], ()
        return references.resolve(self._twin, kind, held)

    def _one(self, entry: dict[str, Any], unpack: Unpack, root: Any) -> Edit:
        top = root._tree.path
        path = f"{top}.{entry['on']}".rstrip(".")
        block = entry.get("block")
        if block is None:
            function = unpack.value(entry["call"])
            return Edit(path, function, origin=self._origin())
        about = Block(block["item"], block["owner"], block["future"], frozenset(block["reads"]))
        text, line = self.text, block["line"]
        template = recompiled(text.block(line), about, text.filename, text.piece(line))
        names = {
            name: Here(f"{top}.{node['envoy']}".rstrip("."))
            if isinstance(node, dict) and "envoy" in node
            else unpack.value(node)
            for name, node in block["names"].items()
        }
        code = template.code
        globals_, closure = unpack.namespaces[block["namespace"]], unpack.closure(code, block.get("free", {}))
        function = FunctionType(code, globals_, code.co_name, None, closure)
        first = unpack.value(block["first"]) if "first" in block else None
        return Edit(path, None, template, names, Bound(function, first), self._origin())

    def _origin(self) -> Any:
        return None if self._twin is None else self._twin._tree


@dataclass(frozen=True, slots=True)
class Imported:
    """An edit that was read from a file and is not made before it runs.

    Attributes:
        path: The envoy on which it was made.
        file: Where it comes from.
        number: Which of the file's edits it is.
    """

    path: str
    file: File
    number: int

    def made(self, model: Any) -> Edit:
        """The edit itself."""
        return self.file.edit(self.number, model)


def _is_here(device: torch.device) -> bool:
    if device.type in ("cpu", "meta"):
        return True
    there = getattr(torch, device.type, None)
    try:
        return bool(there.is_available()) and (device.index or 0) < int(there.device_count())  # type: ignore[union-attr]
    except (AttributeError, RuntimeError):
        return False


# -- reading ---------------------------------------------------------------------------------------------------


def read(folder: Path) -> File:
    """Read and check a file of edits.

    Raises:
        ExportError: It is damaged, of an unknown version, or no file of edits.
    """
    for _ in range(5):
        before = _identity(folder)
        try:
            return _read(folder)
        except ExportError:
            if _identity(folder) == before:
                raise  # else another process has just replaced it
    return _read(folder)


def _identity(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def _read(folder: Path) -> File:
    manifest = _manifest(folder)
    try:
        check_shape(manifest)
        described = {name: (about["bytes"], about["sha256"]) for name, about in manifest["files"].items()}
        if not {SOURCE} <= described.keys() <= {SOURCE, TENSORS}:
            raise ValueError("it lists other files than an export has")
        held = {name: content(folder, name, size) for name, (size, _) in described.items()}
        for name, (_, expected) in described.items():
            if hashlib.sha256(held[name]).hexdigest() != expected:
                raise ValueError(f"the hash of {name} is not what {MANIFEST} says")
        name = f"interlace-edits/{folder.parent.name}/{folder.name}-{manifest['sha256'][:8]}.py"
        text = Text(held[SOURCE].decode(), name)
        stored = _tensors(held[TENSORS]) if TENSORS in held else {}
        check_tensors(manifest["tensors"], stored)
        file = File(folder, manifest, text, stored)
        check_values(file, anything)
        check_sources(file)
    except ExportError:
        raise
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RecursionError,
        RuntimeError, SyntaxError, TypeError, ValueError,
    ) as error:  # fmt: skip
        raise damaged(folder, error) from error
    return file


def _tensors(held: bytes) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError  # here: importing interlace is to stay quick
    from safetensors.torch import load

    try:
        return load(held)
    except SafetensorError as error:
        raise ValueError(f"{TENSORS}: {error}") from error


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        text = content(folder, MANIFEST).decode()
        manifest = json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_number)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise ExportError(f"{folder / MANIFEST} is not the manifest of a file of edits.")
        version = manifest.get("version")
        if version != VERSION or isinstance(version, bool):
            writer = printable(manifest.get("interlace"))
            raise ExportError(
                f"{folder} is of version {printable(repr(version))}, written by interlace {writer}; this interlace\n"
                f"reads version {VERSION}. Take the one that wrote it, or export again. Nothing was loaded."
            )
        if digest(manifest) != manifest.get("sha256"):
            raise ValueError(f"the hash in {MANIFEST} is not that of the manifest")
    except (ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ExportError):
            raise
        raise damaged(folder, error) from error
    return manifest


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which who reads the text sees what Python sees."""
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise ValueError(f"{next(name for name in counts if counts[name] > 1)!r} stands twice in an object")
    return made


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")

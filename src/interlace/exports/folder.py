"""Where a file of edits is, and how it is replaced as a whole.

A new folder is written beside the old one and takes its place by renaming. A crash before that leaves the old
one; a crash between the two renames leaves it under its put-aside name, where it is still found.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from interlace.config import config
from interlace.errors import ExportError, NoExportError, nearest

MANIFEST, SOURCE, TENSORS = "manifest.json", "edits.py", "tensors.safetensors"
LIMITS = {MANIFEST: 1 << 26, SOURCE: 1 << 24}
"""The most bytes that a file of text may have."""

_PART = re.compile(r"[^\x00-\x1f\x7f/\\:]+")
_IGNORED = {"__pycache__", ".DS_Store"}
_STALE = 3600.0  # seconds after which what a crash left behind is removed


@dataclass(frozen=True, slots=True)
class Place:
    """Where one export is.

    Attributes:
        root: The folder that it must be inside of.
        name: What the edits are called; may have parts, as `team/model`.
        variant: Which of several of that name.
    """

    root: Path
    name: str
    variant: str

    @classmethod
    def of(cls, name: str, export_dir: str | os.PathLike[str] | None, variant: str) -> Place:
        """The place of an export; by default below `interlace.config.cache_dir`.

        Raises:
            ExportError: The name or the variant is no name of a folder.
        """
        if export_dir is None:
            export_dir = Path(config.cache_dir) / "exports"
        for what, text, parts in (("name", name, str(name).split("/")), ("variant", variant, [variant])):
            if type(text) is not str or not all(map(_is_folder, parts)):
                raise ExportError(
                    f"The {what} {text!r} is no name of a folder.\n"
                    "Write one like `steering`, without `..`, a leading dot or slash, or `\\`; "
                    "the folder around it is `export_dir=`."
                )
        return cls(Path(export_dir).expanduser().absolute(), name, variant)

    @property
    def folder(self) -> Path:
        """The folder of the export."""
        return self.root.joinpath(*self.name.split("/"), self.variant)

    def found(self) -> Path:
        """The folder that can be read: the export, or the one that a crash has put aside.

        Raises:
            NoExportError: There is none.
            ExportError: It leads out of `export_dir`.
        """
        self.check_inside()
        if self.folder.is_dir():
            return self.folder
        aside = sorted(self.folder.parent.glob(f".{_quoted(self.variant)}.old-*"), key=_age)
        if aside:
            return aside[0]
        raise NoExportError(self._missing())

    def check_inside(self) -> None:
        """Follow no link that leads out.

        Raises:
            ExportError: One does.
        """
        root, folder = self.root.resolve(), self.folder.resolve()
        if not folder.is_relative_to(root) or folder == root:
            raise ExportError(f"{self.folder} is a link that leads out of {self.root}. Nothing was done.")

    def _missing(self) -> str:
        beside = _exports(self.folder.parent, 1)
        if beside:
            known = f"There {_are(beside)}.{nearest(self.variant, beside)}"
            return f"There is no variant {self.variant!r} of the edits {self.name!r} in {self.root}.\n{known}"
        names = sorted({name.rpartition("/")[0] for name in _exports(self.root, 4)} - {""})
        known = f"There {_are(names)}.{nearest(self.name, names)}" if names else "There are none."
        return (
            f"There are no edits {self.name!r} in {self.root}.\n{known}\n"
            "`model.export_edits(name)` writes some; `export_dir=` names another folder."
        )


def _are(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
    return f"{'is' if len(names) == 1 else 'are'} {shown}"


def _exports(folder: Path, depth: int) -> list[str]:
    """The exports below a folder, by their path from there."""
    if not folder.is_dir():
        return []
    found = []
    for below in sorted(folder.iterdir()):
        if below.name.startswith(".") or not below.is_dir():
            continue
        if (below / MANIFEST).is_file():
            found.append(below.name)
        if depth > 1:
            found += [f"{below.name}/{name}" for name in _exports(below, depth - 1)]
    return found


def _is_folder(part: object) -> bool:
    return (
        isinstance(part, str)
        and _PART.fullmatch(part) is not None
        and part[0] not in ".~ "
        and len(part) < 200
    )


def _quoted(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


# -- writing ---------------------------------------------------------------------------------------------------


def replace(place: Place, files: Mapping[str, bytes]) -> Path:
    """Let a folder hold these files and no others; whoever reads it sees the old ones or the new ones.

    Raises:
        ExportError: Something that is no export is there, or it leads out of `export_dir`.
    """
    place.check_inside()
    folder = place.folder
    _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    token = f"{int(time.time())}-{os.urandom(4).hex()}"
    new = folder.parent / f".{folder.name}.new-{token}"
    try:
        new.mkdir()
        for name, content in files.items():
            _write(new / name, content)
        _sync(new)
        _swap(new, folder, token)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _tidy(folder, token)
    return folder


def _check_replaceable(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ExportError(f"{folder} is a file. Choose another name or variant.")
    known = {MANIFEST, SOURCE, TENSORS, *_IGNORED}
    strange = sorted({entry.name for entry in folder.iterdir()} - known)
    if strange:
        raise ExportError(
            f"{folder} holds {strange[0]!r}, which no export wrote, and an export replaces the folder.\n"
            "Choose another name or variant, or move it away."
        )


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make what a folder holds outlive a power cut, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap(new: Path, folder: Path, token: str) -> None:
    for attempt in range(1000):
        aside = folder.parent / f".{folder.name}.old-{token}-{attempt}"
        try:
            with suppress(FileNotFoundError):
                folder.rename(aside)
            new.rename(folder)
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                continue  # another export has come between
            if aside.exists() and not folder.exists():
                aside.rename(folder)
            raise
        _sync(folder.parent)
        return
    raise ExportError(f"Other processes keep writing {folder}. Try again.")


def _tidy(folder: Path, token: str) -> None:
    """Remove what was replaced, and what crashes have left; not what another export has only just put aside."""
    for kind in ("old", "new"):
        for left in folder.parent.glob(f".{_quoted(folder.name)}.{kind}-*"):
            if left.name.startswith(f".{folder.name}.old-{token}") or _age(left) > _STALE:
                shutil.rmtree(left, ignore_errors=True)


def _age(path: Path) -> float:
    """How long ago a folder was made or put aside, in seconds; its name tells."""
    made = re.search(r"\.(?:old|new)-(\d+)-", path.name)
    return time.time() - int(made[1]) if made else 0.0


# -- reading ---------------------------------------------------------------------------------------------------


def content(folder: Path, name: str, size: int | None = None) -> bytes:
    """What a file of an export holds.

    Args:
        folder: The export.
        name: The file.
        size: How many bytes it must have.

    Raises:
        ExportError: It is not there, no plain file, or of another size.
    """
    path = folder / name
    flags = (
        os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        raise ExportError(f"{folder} is damaged or no export: it has no {name}.") from None
    except OSError as error:
        raise ExportError(f"{path} cannot be read: it is a link, or {error.strerror}.") from error
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise ExportError(f"{path} is no plain file. Nothing was read.")
    with os.fdopen(descriptor, "rb") as file:
        if about.st_size > LIMITS.get(name, about.st_size):
            raise ExportError(f"{path} is too large to be text of an export: {about.st_size} bytes.")
        if size is not None and about.st_size != size:
            raise ExportError(
                f"{path} is damaged: it has {about.st_size} bytes, and the manifest says {size}.\nNothing was loaded."
            )
        return file.read()

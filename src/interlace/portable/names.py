"""Objects of packages by their name: `torch.nn.functional:relu`, `math`."""

from __future__ import annotations

import importlib
import re
import site
import sys
import sysconfig
from functools import cache
from pathlib import Path

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_name(text: object) -> bool:
    """Whether a text is a dotted name."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


@cache
def _installed() -> tuple[str, ...]:
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {*getattr(site, "getsitepackages", list)(), site.getusersitepackages()}
    paths.add(str(Path(__file__).parent.parent))
    return tuple(f"{Path(path).resolve()}/" for path in paths if path)


def is_installed(filename: str) -> bool:
    """Whether a file belongs to Python or to an installed package, and so will be there elsewhere too."""
    return filename.startswith("<frozen ") or str(Path(filename).resolve()).startswith(_installed())


def name_of(value: object) -> str | None:
    """Where a function or a class is found again: `module:qualified.name`. None when it is nowhere.

    >>> import torch
    >>> name_of(torch.nn.functional.softmax)
    'torch.nn.functional:softmax'
    """
    inside = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    home = getattr(value, "__module__", None)
    if not isinstance(inside, str):
        return None
    if isinstance(home, str) and home != "__main__" and is_name(inside) and _holds(home, inside, value):
        return f"{home}:{inside}"
    short = inside.rpartition(".")[2]
    homes = [
        name
        for name, module in list(sys.modules.items())
        if name != "__main__"
        and is_name(name)
        and getattr(module, "__dict__", {}).get(short) is value
        and is_installed(getattr(module, "__file__", None) or "<frozen ")
    ]
    best = min(homes, key=lambda name: ("._" in f".{name}", name.count("."), name), default=None)
    return None if best is None else f"{best}:{short}"


def _holds(home: str, inside: str, value: object) -> bool:
    found: object = sys.modules.get(home)
    for part in inside.split("."):
        found = getattr(found, part, None)
    return found is value


def named(text: str) -> object:
    """The object with a name; imports its module.

    Raises:
        ImportError: There is no such module.
        AttributeError: The module has no such object.
    """
    home, _, inside = text.partition(":")
    found: object = importlib.import_module(home)
    for part in inside.split(".") if inside else ():
        found = getattr(found, part)
    return found

"""The lines that code was compiled from: those of its file, of a notebook's cell, or typed at the prompt."""

from __future__ import annotations

import linecache
from types import CodeType
from typing import Any

_TYPED = ("<python-input-", "<stdin")


def source_lines(code: CodeType, names: dict[str, Any] | None = None) -> list[str]:
    """All lines of the file, as they are now; none where nothing keeps them.

    Args:
        code: The code.
        names: Its globals, which tell how to load what is no file.
    """
    linecache.checkcache(code.co_filename)
    return linecache.getlines(code.co_filename, names) or _typed(code)


def _typed(code: CodeType) -> list[str]:
    """What was typed at the prompt of Python 3.13 or later, which keeps it for tracebacks."""
    kept = getattr(linecache, "_getlines_from_code", None)
    if kept is None or not code.co_filename.startswith(_TYPED):
        return []
    lines: list[str] = kept(code)
    return lines

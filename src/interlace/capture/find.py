"""Find the `with` statement that a frame is executing, in its source.

Only the lines of the statement are parsed, however long the file is. Notebooks, doctests and the prompt of Python
3.13 and later keep the lines; `exec` of a string and a plain `python -` do not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType

from interlace import frames
from interlace.capture import skip
from interlace.errors import CaptureError
from interlace.lines import source_lines
from interlace.parse import parse

_WITH_LINE = re.compile(r"\s*with\b")
_IN_SOURCE = 500  # no header of a `with` is longer than that many lines
FUNCTION_FORM = (
    "Give a function instead (a decorator or an argument), which needs no source:\n"
    "`@tracer.invoke(x)` over a `def`, or `model.edit(function)`."
)


@dataclass(frozen=True, slots=True)
class Block:
    """One captured block: what it was entered by, its name for that, its statements, and the item that enters it."""

    statement: ast.With
    body: list[ast.stmt]
    bound_as: str | None
    text: str
    item: int


def find(frame: FrameType, remedy: str = FUNCTION_FORM) -> Block:
    """The block that `frame` is about to enter.

    Raises:
        CaptureError: no `with` statement is being entered, its source cannot be had, or it has changed.
    """
    code, offset, line = frame.f_code, frames.at(frame), frame.f_lineno
    where = f"{code.co_filename}:{line}"
    if not skip.opens_block(code, offset):
        raise CaptureError(
            f"A block that runs later must be opened by a `with` statement of its own; at {where} none is.\n{remedy}"
        )
    lines = source_lines(code, frame.f_globals)
    if not lines:
        raise CaptureError(
            f"The block at {where} must run later, and its source cannot be had: {_why(code.co_filename)}.\n{remedy}"
        )
    for start in _candidates(lines, line):
        statement = _parse(lines, start)
        if statement is not None and statement.lineno <= line <= _header_end(statement):
            text = "".join(lines[start : statement.end_lineno])
            return block_of(statement, _item(statement, code, offset), where, text)
    raise CaptureError(
        f"No `with` statement stands at {where}: has the file changed since it was loaded?\n{remedy}"
    )


def _why(filename: str) -> str:
    if filename == "<stdin>":
        return "it was typed at a prompt or piped in, which keeps no source"
    if filename.startswith("<"):
        return f"the code was made by `exec`, `eval` or `python -c` ({filename})"
    return "the file is not there"


def _candidates(lines: list[str], line: int) -> Iterator[int]:
    """Lines at or above the instruction's own that could start its statement, nearest first (0-based)."""
    last = min(line, len(lines)) - 1
    return (at for at in range(last, max(-1, last - _IN_SOURCE), -1) if _WITH_LINE.match(lines[at]))


def _parse(lines: list[str], start: int) -> ast.With | None:
    """The `with` statement that begins on line `start`: its end is where a shallower line lets it parse."""
    first = lines[start]
    depth = len(first) - len(first.lstrip())
    prefix = "if 1:\n" if depth else ""
    for end in range(start + 1, len(lines) + 1):
        if end < len(lines):
            text = lines[end].lstrip()
            if not text or text.startswith("#") or len(lines[end]) - len(text) > depth:
                continue
        try:
            tree = parse(prefix + "".join(lines[start:end]))
        except SyntaxError:
            continue
        node = tree.body[0]
        if isinstance(node, ast.If):
            node = node.body[0]
        if not isinstance(node, ast.With):
            return None
        return ast.increment_lineno(node, start - bool(depth))
    return None


def _header_end(statement: ast.With) -> int:
    last = statement.items[-1]
    return (last.optional_vars or last.context_expr).end_lineno or statement.lineno


def _item(statement: ast.With, code: CodeType, offset: int) -> int:
    """Which item of the header is being entered. A copy of the statement in a `finally` repeats all of them."""
    if len(statement.items) == 1:
        return 0
    end = _header_end(statement)
    line_of = {at: line for start, stop, line in code.co_lines() for at in range(start, stop, 2)}
    entered = [at for at in skip.with_offsets(code, offset) if statement.lineno <= (line_of[at] or 0) <= end]
    return (len(entered) - 1) % len(statement.items)


def block_of(statement: ast.With, index: int, where: str, text: str) -> Block:
    """The block that one item of a `with` statement enters."""
    target = statement.items[index].optional_vars
    if target is not None and not isinstance(target, ast.Name):
        raise CaptureError(f"The block at {where} must run later: bind it to a plain name after `as`.")
    body = statement.body
    rest = statement.items[index + 1 :]
    if rest:  # `with a, b:` is `with a:` around `with b:`
        body = [ast.copy_location(ast.With(items=rest, body=body), statement)]
    return Block(statement, body, target.id if target is not None else None, text, index)

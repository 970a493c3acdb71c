"""How operations print: the source with a gutter that names them, or a window around one."""

import re
from collections import defaultdict
from collections.abc import Sequence
from html import escape

from interlace.source.names import Operation

ARROW, MORE = "->", "+"
WINDOW = 4


def table(lines: Sequence[str], first: int, operations: Sequence[Operation]) -> str:
    """The lines of a function, numbered from `first`; the gutter names what each line computes."""
    by_line: defaultdict[int, list[str]] = defaultdict(list)
    for operation in operations:
        by_line[operation.line_number].append(operation.name)
    names = max((len(operation.name) for operation in operations), default=0)
    digits = len(str(first + len(lines) - 1))
    rows = []
    for number, line in enumerate(lines, first):
        here = by_line.pop(number, [])
        start = f"{here[0]:>{names}} {ARROW}" if here else " " * (names + len(ARROW) + 1)
        rows.append(f"{start} {number:>{digits}} {line}".rstrip())
        rows.extend(f"{name:>{names}}  {MORE}" for name in here[1:])
    return "\n".join(rows)


def window(lines: Sequence[str], first: int, operation: Operation) -> str:
    """The lines around one operation, its own marked."""
    at = operation.line_number - first
    start, stop = max(0, at - WINDOW), min(len(lines), at + WINDOW + 1)
    digits = len(str(first + stop - 1))
    return "\n".join(
        f"{ARROW if number == at else '':>{len(ARROW)}} {first + number:>{digits}} {lines[number]}".rstrip()
        for number in range(start, stop)
    )


def html(text: str) -> str:
    """A listing for a notebook: names of operations stand out, and long lines scroll.

    >>> html("mul_0 -> 2 x * 2")
    '<pre style="overflow-x: auto; line-height: 1.35"><b>mul_0</b> -&gt; 2 x * 2</pre>'
    """
    rows = [
        re.sub(r"^( *)([\w.]+)(?= +(?:-&gt;|\+))", r"\1<b>\2</b>", escape(line, quote=False))
        for line in text.splitlines()
    ]
    return '<pre style="overflow-x: auto; line-height: 1.35">' + "\n".join(rows) + "</pre>"

"""The figures as Markdown tables, on the terminal and in a page."""

import os
import platform
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import torch

from benchmarks.adapters import OURS
from benchmarks.aims import WRAP_400, Aim, aim_of, ratio
from benchmarks.memory import Growth
from benchmarks.workloads import Row
from benchmarks.wrapping import Wrapping

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, padded to be read as it is; every column but the first and words is flush right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(text)


def costs(rows: Sequence[Row]) -> str:
    """A table for each model."""
    parts: list[str] = []
    for name, group in groupby(rows, key=lambda row: row.subject.name):
        here = list(group)
        others = sorted({tool for row in here for tool in row.costs if tool not in OURS})
        parts.append(f"### {name[0].upper()}{name[1:]} ({here[0].subject.modules} modules)\n")
        head = ["workload", "bare µs", "hooks +µs", "interlace +µs", "each", "times hooks", "aim"]
        head[4:4] = [f"{tool} +µs" for tool in others]
        parts.append(table(head, [_line(row, others) for row in here]) + "\n")
    return "\n".join(parts)


def _line(row: Row, others: Sequence[str]) -> list[str]:
    times = ratio(row)
    aim = aim_of(row)
    return [
        row.workload.name,
        _micro(row.bare.total),
        _extra(row, "hooks"),
        _extra(row, row.workload.ours),
        *(_extra(row, tool) for tool in others),
        "" if row.workload.units(row.subject) == 1 else f"{row.per_unit:.2f} a {row.workload.unit}",
        "" if times is None else f"{times:.2f}",
        ": ".join(filter(None, _aim(aim))),
    ]


def _extra(row: Row, tool: str) -> str:
    cost = row.costs.get(tool)
    return "" if cost is None else f"{_micro(cost.extra)} ± {_micro(cost.error)}"


def _micro(time: float) -> str:
    return f"{time:.0f}" if abs(time) >= 100 else f"{time:.1f}"


def _aim(aim: Aim | None) -> tuple[str, str]:
    return ("", "") if aim is None else (aim.text, aim.verdict)


def wrappings(measured: Iterable[Wrapping]) -> str:
    head = [
        "modules",
        "wrap µs",
        "wrap again µs",
        "empty trace µs",
        "from bare model to first value µs",
        "aim",
        "",
    ]
    rows = []
    for one in measured:
        aim = Aim(f"wrap: {WRAP_400:.0f} µs", WRAP_400, one.wrap) if one.modules < 1000 else None
        times = (one.wrap, one.again, one.empty, one.first_value)
        rows.append([str(one.modules), *map(_micro, times), *_aim(aim)])
    return table(head, rows)


def memory(measured: Iterable[Growth], kept: tuple[int, int] | None) -> str:
    head = ["what is done", "times", "tensors left", "resident memory, KiB", "aim", ""]
    rows = [
        [
            one.name,
            f"{one.runs:,}",
            str(one.tensors),
            "?" if one.resident is None else f"{one.resident:+.0f}",
            "" if one.name.startswith("hooks") else "no growth",
            "" if one.name.startswith("hooks") else one.verdict,
        ]
        for one in measured
    ]
    if kept is not None:
        asked, there = kept
        verdict = "met" if asked == there else "**not met**"
        rows.append(["read every block, keep one", "1", str(there), "", f"{asked} tensor kept", verdict])
    return table(head, rows)


def setting() -> str:
    """What the figures depend on."""
    from importlib.metadata import version

    cores = os.cpu_count()
    packages = ", ".join(f"{name} {version(name)}" for name in ("greenlet", "transformers"))
    return (
        f"CPython {platform.python_version()}, torch {torch.__version__}, {packages}; "
        f"{platform.machine()}, {cores} CPUs, one thread."
    )


def write(page: Path, text: str) -> None:
    """Put `text` between the two markers of a page."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}", encoding="utf-8")

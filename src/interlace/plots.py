"""Heatmaps as SVG, written by hand: no drawing library, no script, light and dark by themselves.

Example:
    >>> from interlace.plots import heatmap
    >>> picture = heatmap([[0.0, 1.0]], rows=["layer 0"], columns=["The", " cat"], legend="effect")
    >>> picture[:4]
    '<svg'

A picture is a string that a notebook draws. It can be pasted into a page or written to a file of its own.
This module knows numbers and labels, nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite, isnan

from torch import Tensor

__all__ = ["Svg", "heatmap"]

_STYLE = """\
.il{--il-paper:#fff;--il-ink:#1f2328;--il-soft:#6a7079;--il-cell:#f1f2f5;--il-more:#4338ca;--il-less:#c2620a;\
--il-on:#fff;font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",sans-serif}\
@media(prefers-color-scheme:dark){.il{--il-paper:#16181d;--il-ink:#e6e8ec;--il-soft:#989ea8;--il-cell:#22252c;\
--il-more:#a5adff;--il-less:#f5b04c;--il-on:#12141a}}\
.il .paper{fill:var(--il-paper)}.il .cell{fill:var(--il-cell)}\
.il .more{fill:var(--il-more);pointer-events:none}.il .less{fill:var(--il-less);pointer-events:none}\
.il text{fill:var(--il-ink);pointer-events:none}.il .soft{fill:var(--il-soft)}.il .on{fill:var(--il-on)}\
.il .mono{font-family:ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace}\
.il .mark{fill:none;stroke:var(--il-ink);stroke-width:1.5}"""

_MONO = 0.605  # the width of one letter of a monospaced font, in units of its size
_LABEL = 12  # the size of axis labels, in pixels
_GAP = 2  # between cells
_SIDE = 12  # around the picture
_BAR = 180  # the length of the legend
_CENTERED = ' text-anchor="middle"'
_RIGHT = ' text-anchor="end"'


class Svg(str):
    """A picture as the text of one `<svg>` element, which a notebook draws.

    Example:
        >>> Svg("<svg></svg>")._repr_html_()
        '<svg></svg>'
    """

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)


@dataclass(frozen=True, slots=True)
class _Grid:
    """Where the cells lie, in pixels."""

    left: float
    top: float
    width: float
    height: float
    rows: int
    columns: int

    def corner(self, row: int, column: int) -> tuple[float, float]:
        return self.left + column * self.width, self.top + row * self.height

    @property
    def right(self) -> float:
        return self.left + self.columns * self.width

    @property
    def bottom(self) -> float:
        return self.top + self.rows * self.height


@dataclass(frozen=True, slots=True)
class _Colors:
    """How much color a value gets: none at zero, all of it at the larger end of the scale."""

    low: float
    high: float

    def strength(self, value: float) -> float:
        """Between 0 and 1, and the same number that the legend shows at this value."""
        end = max(abs(self.low), abs(self.high)) or 1.0
        inside = min(max(value, self.low), self.high)
        return abs(inside) / end


def heatmap(
    values: Tensor | Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    legend: str,
    row_title: str = "",
    column_title: str = "",
    low: float | None = None,
    high: float | None = None,
    cells: Sequence[Sequence[str]] | None = None,
    marks: Sequence[tuple[int, int]] = (),
    cell_width: float = 48,
    cell_height: float = 30,
) -> Svg:
    """Draw numbers as colored cells, with labels, a legend, and every value on hover.

    Example:
        >>> from interlace.plots import heatmap
        >>> text = heatmap([[0.25]], rows=["0"], columns=[" cat"], legend="probability")
        >>> "0, cat: 0.250" in text
        True

    Args:
        values: The numbers, `row column`. NaN leaves its place empty; what is infinite lies at an end of the scale.
        rows: One label per row, the first at the top.
        columns: One label per column; the spaces around a token are not drawn.
        legend: What the color means, with its unit.
        row_title: What the rows are.
        column_title: What the columns are.
        low: The value at the left end of the scale, zero or less; by default the least value, or zero.
        high: The value at the right end; by default the largest value, or zero.
        cells: A text for each cell.
        marks: The `(row, column)` of cells to outline.
        cell_width: In pixels.
        cell_height: In pixels.

    Raises:
        ValueError: If the labels or cell texts do not fit the numbers.
    """
    numbers: list[list[float]] = values.tolist() if isinstance(values, Tensor) else [list(v) for v in values]
    _check(numbers, rows, columns, cells)
    known = [value for line in numbers for value in line if isfinite(value)]
    colors = _Colors(
        min(0.0, *known, 0.0) if low is None else low, max(0.0, *known, 0.0) if high is None else high
    )
    names = [column.strip() or "␣" for column in columns]
    longest = max(map(len, names), default=0) * _MONO * _LABEL
    tilted = longest > cell_width - 4
    grid = _Grid(
        left=_SIDE + max(map(len, rows), default=0) * _MONO * _LABEL + 10 + (20 if row_title else 0),
        top=_SIDE + (longest * 0.72 + 14 if tilted else 20) + (20 if column_title else 0),
        width=cell_width,
        height=cell_height,
        rows=len(rows),
        columns=len(columns),
    )
    width = max(
        grid.right + _SIDE + (longest * 0.7 if tilted else 0),
        grid.left + _BAR + 20 + len(legend) * 0.56 * _LABEL,
    )
    parts = [
        *_axes(grid, rows, names, row_title, column_title, tilted=tilted),
        *_cells(grid, numbers, rows, names, colors, cells),
        *(_mark(grid, row, column) for row, column in marks),
        *_legend(grid, colors, legend),
    ]
    return _frame(parts, width, grid.bottom + 58, f"Heatmap of {legend}")


def _check(
    numbers: list[list[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[str]] | None,
) -> None:
    shape = (len(numbers), len(numbers[0]) if numbers else 0)
    if {len(line) for line in numbers} != {len(columns)} or len(rows) != len(numbers):
        raise ValueError(
            f"The numbers are {shape[0]} x {shape[1]} and the labels {len(rows)} x {len(columns)} "
            "(rows x columns). Give one label to each row and to each column."
        )
    if cells is not None and [len(line) for line in cells] != [len(line) for line in numbers]:
        raise ValueError(f"`cells` needs {shape[0]} x {shape[1]} texts (rows x columns), one per number.")


def _frame(parts: list[str], width: float, height: float, title: str) -> Svg:
    return Svg(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="il" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">'
        f'<style>{_STYLE}</style><rect class="paper" width="100%" height="100%" rx="8"/>'
        + "".join(parts)
        + "</svg>"
    )


def _text(x: float, y: float, text: str, *, kind: str = "", size: float = _LABEL, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" font-size="{size:g}"{more}>{escape(text)}</text>'


def _axes(
    grid: _Grid,
    rows: Sequence[str],
    columns: Sequence[str],
    row_title: str,
    column_title: str,
    *,
    tilted: bool,
) -> list[str]:
    parts = []
    for i, label in enumerate(rows):
        y = grid.corner(i, 0)[1] + grid.height / 2 + 4
        parts.append(_text(grid.left - 8, y, label, kind="mono", more=_RIGHT))
    for j, label in enumerate(columns):
        x, y = grid.corner(0, j)[0] + grid.width / 2, grid.top - 8
        turn = f' transform="rotate(-45 {x:.1f} {y:.1f})"' if tilted else _CENTERED
        parts.append(_text(x, y, label, kind="mono", more=turn))
    if column_title:
        parts.append(_text(grid.left, _SIDE + 10, column_title, kind="soft"))
    if row_title:
        x, y = _SIDE + 8, (grid.top + grid.bottom) / 2
        turn = f' text-anchor="middle" transform="rotate(-90 {x} {y:.1f})"'
        parts.append(_text(x, y, row_title, kind="soft", more=turn))
    return parts


def _cells(
    grid: _Grid,
    numbers: list[list[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    colors: _Colors,
    cells: Sequence[Sequence[str]] | None,
) -> list[str]:
    parts = []
    for i, line in enumerate(numbers):
        for j, value in enumerate(line):
            if not isnan(value):
                text = cells[i][j] if cells else ""
                hover = f"{rows[i]}, {columns[j]}: {text + ' ' if text else ''}{value:.3f}"
                parts.append(_cell(grid, i, j, value, colors, text, hover))
    return parts


def _cell(grid: _Grid, row: int, column: int, value: float, colors: _Colors, text: str, hover: str) -> str:
    x, y = grid.corner(row, column)
    box = (
        f'x="{x:.1f}" y="{y:.1f}" width="{grid.width - _GAP:g}" height="{grid.height - _GAP:g}" '
        f'rx="{min(3.0, grid.height / 8):g}"'
    )
    strength = colors.strength(value)
    drawn = f'<rect class="cell" {box}><title>{escape(hover)}</title></rect>'
    if strength >= 0.005:
        drawn += f'<rect class="{"more" if value > 0 else "less"}" opacity="{strength:.2f}" {box}/>'
    if text:
        fits = int((grid.width - _GAP - 4) / (11 * _MONO))
        short = text.strip() if len(text.strip()) <= fits else text.strip()[: fits - 1] + "…"
        kind = "mono on" if strength > 0.62 else "mono"
        x, y = x + (grid.width - _GAP) / 2, y + grid.height / 2 + 3
        drawn += _text(x, y, short, kind=kind, size=11, more=_CENTERED)
    return drawn


def _mark(grid: _Grid, row: int, column: int) -> str:
    x, y = grid.corner(row, column)
    return (
        f'<rect class="mark" x="{x - 1:.1f}" y="{y - 1:.1f}" width="{grid.width:g}" '
        f'height="{grid.height:g}" rx="4"/>'
    )


def _legend(grid: _Grid, colors: _Colors, legend: str) -> list[str]:
    """A bar from low to high through zero, its ends and what it means."""
    x, y = grid.left, grid.bottom + 14
    zero = -colors.low / ((colors.high - colors.low) or 1.0) * _BAR
    parts = [f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{_BAR}" height="8" rx="2"/>']
    for kind, start, end in (("less", 0.0, colors.low), ("more", zero, colors.high)):
        width = zero if kind == "less" else _BAR - zero
        steps = 12 if width > 1 else 0
        for step in range(steps):
            share = (steps - step - 0.5) / steps if kind == "less" else (step + 0.5) / steps
            opacity, left = colors.strength(end * share), x + start + width * step / steps
            parts.append(
                f'<rect class="{kind}" opacity="{opacity:.2f}" x="{left:.1f}" y="{y:.1f}" '
                f'width="{width / steps:.1f}" height="8"/>'
            )
    parts.append(_text(x, y + 22, f"{colors.low:.2g}", kind="soft", size=11))
    parts.append(_text(x + _BAR, y + 22, f"{colors.high:.2g}", kind="soft", size=11, more=_RIGHT))
    parts.append(_text(x + _BAR + 10, y + 9, legend, kind="soft"))
    return parts

"""The one model of every table that medrm shows, and how its numbers are written; imports no torch.

A table is built once, as text, by a function of `tables/` or `leaderboard/leaderboard_tables.py`,
and written by `tables.writers` (terminal, Markdown, LaTeX, CSV) or by the page's macro `grid`.
Each form picks the columns that it has room for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from medrm.errors import printable

DASH = "-"
"""What stands where a number is not known or does not apply."""


class Track(NamedTuple):
    """A cell that the page draws: a line from 0 to 1, a hollow mark before, a full one after."""

    before: float | None
    after: float | None
    ceiling: float | None = None
    bounds: Sequence[float] | None = None
    label: str = "accuracy"


Cell = str | Track

Style = Literal["primary", "sum", "few"]
"""Of a row: the headline's dimension, below a line (means and the like), or of few cases."""


@dataclass(frozen=True)
class Table:
    """A table of text; the first column names the rows.

    Attributes:
        caption: stands above it.
        columns: headings.
        rows: cells, as many as there are columns.
        note: the legend: what columns and signs mean.
        styles: index of a row to its style.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    styles: Mapping[int, Style] = field(default_factory=dict)

    def pick(
        self, columns: Mapping[str, str] | Collection[str], caption: str | None = None
    ) -> Table:
        """Returns the table with these columns alone; a mapping gives them other headings."""
        headings = (
            columns if isinstance(columns, Mapping) else dict(zip(columns, columns, strict=True))
        )
        indices = [list(self.columns).index(name) for name in headings]
        return replace(
            self,
            caption=self.caption if caption is None else caption,
            columns=list(headings.values()),
            rows=[[row[index] for index in indices] for row in self.rows],
        )

    def with_cells(self, column: str, cells: Sequence[Cell]) -> Table:
        """Returns the table with other cells in its first rows of one column, such as links."""
        index = list(self.columns).index(column)
        rows = [list(row) for row in self.rows]
        for row, cell in zip(rows, cells, strict=False):
            row[index] = cell
        return replace(self, rows=rows)


def table_of(
    caption: str,
    rows: Sequence[Mapping[str, Cell]],
    note: str = "",
    styles: Mapping[int, Style] | None = None,
) -> Table:
    """Returns a table of rows that name their columns; a dash stands where a row has no cell."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name, DASH) for name in columns] for row in rows]
    return Table(caption, columns, cells, note, styles or {})


def percent(value: float | None) -> str:
    """Returns a share as a percentage with one decimal; a dash where there is none."""
    return DASH if value is None else f"{100 * value:.1f}"


def signed(value: float | None) -> str:
    """Returns a share as signed percentage points."""
    return DASH if value is None else f"{100 * value:+.1f}"


def decimal(value: float | None, digits: int = 3) -> str:
    """Returns a number with three decimals, or with as many as are asked for."""
    return DASH if value is None else f"{value:.{digits}f}"


def with_interval(value: float | None, bounds: Sequence[float] | None) -> str:
    """Returns a share with its interval, which is cut at 0 and 100 % for reading only."""
    if value is None or bounds is None:
        return percent(value)
    return f"{percent(value)} ({percent(max(0.0, bounds[0]))}, {percent(min(1.0, bounds[1]))})"


def points(difference: Mapping[str, Any]) -> str:
    """Returns `delta` with `ci95`, cut at 100 points for reading only, in percentage points."""
    bounds = difference.get("ci95")
    if difference["delta"] is None or bounds is None:
        return signed(difference["delta"])
    low, high = max(-1.0, bounds[0]), min(1.0, bounds[1])
    return f"{signed(difference['delta'])} ({signed(low)}, {signed(high)})"


def p_value(value: float | None) -> str:
    """Returns a p value with three decimals."""
    return "<0.001" if value is not None and value < 0.001 else decimal(value)


def counted(counts: Mapping[str, int]) -> str:
    """Returns names with how often they occur."""
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def short(name: str, longest: int = 22) -> str:
    """Returns a name from data on one line, printable, of at most `longest` characters' width."""
    text = " ".join(printable(name).split())
    if text_width(text) <= longest:
        return text
    while text_width(text) > longest - 1:
        text = text[:-1]
    return text + "\u2026"


def text_width(text: str) -> int:
    """Returns the width of a text in characters, of which wide ones such as Chinese count twice."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WFA" else 1 for letter in text)

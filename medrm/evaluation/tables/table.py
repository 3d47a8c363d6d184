"""The one model of every table that medrm shows, and how it is written; imports no torch.

A table is built once, as text, by a function of `tables/` or `leaderboard/leaderboard_tables.py`,
and written for the terminal, in Markdown, in LaTeX and as CSV, or by the page's macro `grid` of
`pages/templates/macros.html.jinja`. Each form picks the columns that it has room for. Text of data
stays text in each of them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from medrm.errors import printable
from medrm.files import write_atomically

DASH = "-"
"""What stands where a number is not known or does not apply."""

_UNLIMITED = 1000
"""Columns of a table that nobody sees on a terminal."""

_MARKDOWN = re.compile(r"([\\`*_\[\]|~&$])")

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # Behind the end of a row these would be arguments of it.
    "[": "{[}",
    "*": "{*}",
    "\u2192": r"$\rightarrow$",
    "\u00b1": r"$\pm$",
    "\ufffd": "?",
    **{character: f"\\{character}" for character in "{}$&#%_"},
}

_FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet takes for the start of a formula (OWASP, CSV injection)."""


class Track(NamedTuple):
    """A cell that the page draws: a line from 0 to 1, a hollow mark before, a full one after."""

    before: float | None
    after: float | None
    ceiling: float | None = None
    bounds: Sequence[float] | None = None
    label: str = "accuracy"


Cell = str | Track

Row = Mapping[str, Cell]
"""Heading to cell."""

Columns = Mapping[str, tuple[str, Callable[[Any], str]]]
"""Heading to the key of a number, and how a number that is there is written."""

Styles = dict[int, Literal["primary", "sum", "few"]]
"""Index of a row to its style: the headline's dimension, the first one below a line (means and the
like), or of few cases."""


@dataclass(frozen=True)
class Table:
    """A table of text; the first column names the rows.

    Attributes:
        caption: stands above it.
        columns: headings.
        rows: cells, as many as there are columns.
        note: the legend: what columns and signs mean.
        styles: of some of the rows.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    styles: Styles = field(default_factory=dict)

    def pick(
        self, columns: Collection[str], caption: str | None = None, headings: Mapping[str, str] = {}
    ) -> Table:
        """Returns the table with these columns alone.

        Args:
            columns: to keep, in this order.
            caption: another one; None: the same.
            headings: other headings of some of the columns.
        """
        indices = [list(self.columns).index(name) for name in columns]
        return replace(
            self,
            caption=self.caption if caption is None else caption,
            columns=[headings.get(name, name) for name in columns],
            rows=[[row[index] for index in indices] for row in self.rows],
        )

    def without(self, *left_out: str, **changes: Any) -> Table:
        """Returns the table without these columns; `changes` as for `pick`."""
        return self.pick([name for name in self.columns if name not in left_out], **changes)

    def with_cells(self, column: str, cells: Sequence[Cell]) -> Table:
        """Returns the table with other cells in its first rows of one column, such as links."""
        index = list(self.columns).index(column)
        rows = [list(row) for row in self.rows]
        for row, cell in zip(rows, cells, strict=False):
            row[index] = cell
        return replace(self, rows=rows)


def table_of(
    caption: str, rows: Sequence[Row], note: str = "", styles: Styles | None = None
) -> Table:
    """Returns a table of rows that name their columns; a dash stands where a row has no cell."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name, DASH) for name in columns] for row in rows]
    return Table(caption, columns, cells, note, styles or {})


def cells_of(numbers: Mapping[str, Any], columns: Columns) -> dict[str, Cell]:
    """Returns the cells of a row: each heading's number as it is written, a dash for None."""
    return {
        heading: DASH if numbers.get(key) is None else write(numbers[key])
        for heading, (key, write) in columns.items()
    }


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
    text = Text(_one_line(name))
    text.truncate(longest, overflow="ellipsis")
    return text.plain


def to_terminal(
    table: Table, left: Collection[int] = (0,), wrapped: Collection[int] = ()
) -> TerminalTable:
    """Returns a table for `rich`, readable from 80 columns on where few columns are picked.

    Args:
        table: to be terminal_table; the primary row is bold.
        left: indices of the columns of words, which are aligned left.
        wrapped: indices of the columns whose cells are folded where the terminal is narrow.
    """
    terminal_table = TerminalTable(
        title=plain(table.caption),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    for index, heading in enumerate(table.columns):
        terminal_table.add_column(
            plain(heading),
            justify="left" if index in left else "right",
            no_wrap=index not in wrapped,
            overflow="fold" if index in wrapped else "ellipsis",
        )
    for index, row in enumerate(table.rows):
        bold = "bold" if table.styles.get(index) == "primary" else ""
        terminal_table.add_row(*(plain(str(cell)) for cell in row), style=bold)
    return terminal_table


def whole_console() -> Console:
    """Returns a console for tables that are cut by no width where nobody sees them on a terminal.

    `rich` takes a pipe or a file to be 80 columns wide.
    """
    console = Console()
    return console if console.is_terminal else Console(width=_UNLIMITED)


def plain(text: str) -> Text:
    """Returns text that comes from data as it is: neither markup nor control characters."""
    return Text(printable(text))


def to_markdown(table: Table, left: Collection[int] = (0,)) -> str:
    """Returns a table in Markdown, its caption and its note as the line above.

    Args:
        table: to be written.
        left: indices of the columns of words, which are aligned left.
    """
    marks = ["---" if index in left else "---:" for index in range(len(table.columns))]
    ruler = f"| {' | '.join(marks)} |"
    head, *rows = (
        f"| {' | '.join(markdown_text(str(cell)).replace('>', '&gt;') for cell in cells)} |"
        for cells in (table.columns, *table.rows)
    )
    above = markdown_text(f"{table.caption} {table.note}")
    return "\n".join([*([above, ""] if above else []), head, ruler, *rows, ""])


def to_latex(table: Table) -> str:
    """Returns a table in LaTeX, its note in the caption; it needs the package booktabs."""
    head, *rows = (
        f"{' & '.join(latex_text(str(cell)) for cell in cells)} \\\\"
        for cells in (table.columns, *table.rows)
    )
    for index in sorted(table.styles, reverse=True):
        if index and table.styles[index] == "sum":
            rows.insert(index, r"\midrule")
    caption = latex_text(f"{table.caption} {table.note}")
    alignment = f"l{'r' * (len(table.columns) - 1)}"
    above = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}"]
    above += [rf"\begin{{tabular}}{{{alignment}}}", r"\toprule", head, r"\midrule"]
    below = [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join([*above, *rows, *below])


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns CSV; text of data is harmless in a spreadsheet, numbers are unrounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for row in (columns, *rows):
        writer.writerow(spreadsheet_text(cell) if isinstance(cell, str) else cell for cell in row)
    return file.getvalue()


def write_tables(
    folder: Path, tables: Mapping[str, Table | None], texts: Mapping[str, str]
) -> None:
    """Writes tables in Markdown and in LaTeX, and other files, each of them complete or not at all.

    Args:
        folder: of all; it is made where it does not exist.
        tables: name without suffix to table; None is left out.
        texts: name to the content of a file.
    """
    contents = dict(texts)
    for name, table in tables.items():
        if table is not None:
            contents |= {f"{name}.md": to_markdown(table), f"{name}.tex": to_latex(table)}
    folder.mkdir(exist_ok=True)
    for name, text in contents.items():
        write_atomically(folder / name, [text.encode(errors="replace")])


def markdown_text(text: str) -> str:
    """Returns text on one line that is neither Markdown nor HTML."""
    return _MARKDOWN.sub(r"\\\1", _one_line(text)).replace("<", "&lt;")


def latex_text(text: str) -> str:
    """Returns text on one line without LaTeX commands."""
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def spreadsheet_text(text: str) -> str:
    """Returns text that no spreadsheet takes for a formula."""
    flat = _one_line(text)
    return f"'{flat}" if flat.startswith(_FORMULA) else flat


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())

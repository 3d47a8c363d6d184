"""Writes a table for the terminal, in Markdown, in LaTeX and as CSV; imports no torch.

Text of data stays text in each of them. The page's writer is the macro `grid` of
`pages/templates/macros.html.jinja`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich import box
from rich.table import Table as TerminalTable
from rich.text import Text

from medrm.errors import printable
from medrm.evaluation.tables.table import Table

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
    "\ufffd": "?",
    **{character: f"\\{character}" for character in "{}$&#%_"},
}

_FORMULA = ("=", "+", "-", "@")
"""What a spreadsheet takes for the start of a formula (OWASP, CSV injection)."""


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
    rows = []
    for index, row in enumerate(table.rows):
        if index and table.styles.get(index) == "sum":
            rows.append(r"\midrule")
        rows.append(_latex_row(row))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(f'{table.caption} {table.note}')}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            _latex_row(table.columns),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_row(cells: Sequence[object]) -> str:
    return f"{' & '.join(latex_text(str(cell)) for cell in cells)} \\\\"


def to_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns CSV; text of data is harmless in a spreadsheet, numbers are unrounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for row in (columns, *rows):
        writer.writerow(spreadsheet_text(cell) if isinstance(cell, str) else cell for cell in row)
    return file.getvalue()


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

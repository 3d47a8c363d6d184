"""Text of data in Markdown, LaTeX and spreadsheets, where it must stay text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from medrm.errors import printable

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


class Table(NamedTuple):
    """A table of text; the first column is aligned left. `rules` are rows with a line above."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    rules: frozenset[int] = frozenset()


def markdown(table: Table) -> str:
    """Returns a table in Markdown, its caption as the line above."""
    lines = [
        table.columns,
        ["---", *["---:"] * (len(table.columns) - 1)],
    ]
    head, line = (f"| {' | '.join(cells)} |" for cells in (map(markdown_text, lines[0]), lines[1]))
    rows = [f"| {' | '.join(map(markdown_text, row))} |" for row in table.rows]
    return "\n".join([markdown_text(table.caption), "", head, line, *rows, ""])


def latex(table: Table) -> str:
    """Returns a table in LaTeX; it needs the package booktabs."""
    rows = []
    for number, row in enumerate(table.rows):
        if number in table.rules:
            rows.append(r"\midrule")
        rows.append(f"{' & '.join(map(latex_text, row))} \\\\")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(table.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            f"{' & '.join(map(latex_text, table.columns))} \\\\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


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

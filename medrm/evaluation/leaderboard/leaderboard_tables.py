"""A leaderboard as CSV, Markdown and a terminal table; imports no torch."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from medrm.errors import printable
from medrm.evaluation.tables import DASH, p_value, percent, plain, points, with_interval

Standings = Mapping[str, Any]
"""What `leaderboard.standings` returns."""

COLUMNS = {
    "official": "the released scorer's accuracy over all cases",
    "macro": "its mean over organs",
    "read": "presentations that were read",
    "consistent": "cases with one verdict in both orders",
}
"""What the columns beside the robust accuracy mean."""

RANKS = (
    "Rank: the ranks that 95 % confidence leaves open, from the cluster bootstrap paired by case; "
    "models that share ranks may be equally good. None for a model that did not judge all cases. "
    "`medrm compare` compares two folders in full."
)
TO_BEST = (
    "Accuracy less that of the best model, case by case; p adjusted for all models that are "
    "compared with it."
)

_AFTER_OTHERS = 4
"""Columns of the primary dimension that follow the other dimensions'."""

_BEFORE_OTHERS = 3
"""Columns that precede them: rank, model, accuracy on the primary dimension."""

_MEASURES = ("accuracy", "ci95_low", "ci95_high", "n", "official_micro", "official_macro")
_MORE = ("coverage", "consistency")
_PLACE = (
    "rank_best",
    "rank_worst",
    "to_best",
    "to_best_ci95_low",
    "to_best_ci95_high",
    "to_best_p",
)


def leaderboard_csv(table: Standings) -> str:
    """Returns every measure of every model and dimension, unrounded; then those without any."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    measures = (*_MEASURES, *_MORE, *_PLACE)
    names = [f"{name}_{measure}" for name in table["dimensions"] for measure in measures]
    out.writerow(["rank", "name", "model", "revision", "engine", "readout", "state", *names])
    for row in table["models"]:
        entries = [row["dimensions"][name] for name in table["dimensions"]]
        cells = [_cell(entry, measure) for entry in entries for measure in measures]
        who = [row[key] for key in ("rank", "name", "model", "revision", "engine", "readout")]
        out.writerow(["" if cell is None else cell for cell in (*who, "done", *cells)])
    for state in ("failed", "skipped"):
        for row in table[state]:
            who = [row[key] or "" for key in ("name", "model", "revision", "engine")]
            out.writerow(["", *who, "", f"{state}: {row['reason']}", *[""] * len(names)])
    return text.getvalue()


def leaderboard_markdown(table: Standings) -> str:
    """Returns the table as a page: percent, with 95 % intervals on the primary dimension."""
    header, rows = _columns(table)
    lines = [f"# {_title(table)}", "", _line(header), _line(["---"] * len(header))]
    lines += [_line(row) for row in rows]
    lines += ["", explained(COLUMNS), "", RANKS]
    lines += _to_best(table)
    for state in ("failed", "skipped"):
        if table[state]:
            lines += ["", f"## {state.capitalize()}", "", _line(["model", "reason"])]
            lines += [_line(["---", "---"])]
            lines += [_line([row["name"], row["reason"]]) for row in table[state]]
    notes = [(row["name"], row["note"]) for row in table["models"] if row["note"]]
    if notes:
        lines += [
            "",
            "## Notes",
            "",
            *(f"- {_escaped(who)}: {_escaped(note)}" for who, note in notes),
        ]
    return "\n".join(lines) + "\n"


def print_leaderboard(table: Standings, console: Console | None = None) -> None:
    """Prints the ranked models, and below them those without a result and why."""
    console = console or Console()
    header, rows = _columns(table)
    others = len(header) - _AFTER_OTHERS
    first = _BEFORE_OTHERS
    ranking = [*header[:first], *header[others:]], [[*row[:first], *row[others:]] for row in rows]
    console.print(_terminal_table(_title(table), *ranking))
    if others > first:
        short = [f"{name[:5]}." if len(name) > 6 else name for name in header[first:others]]
        other = ["rank", "model", *short], [[*row[:2], *row[first:others]] for row in rows]
        console.print(_terminal_table("The other dimensions", *other))
    for state in ("failed", "skipped"):
        for row in table[state]:
            console.print(plain(f"{state}: {row['name']}: {row['reason']}"))
    if len(rows) > 1:
        console.print(plain(explained(COLUMNS)))
        console.print(plain(RANKS.replace("`", "")))


def _terminal_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Returns a table whose models' names, and nothing else, are folded where it gets narrow."""
    shown = Table(
        title=plain(title), title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False
    )
    for number, column in enumerate(header):
        model = number == 1
        shown.add_column(
            plain(column), justify="left" if model else "right", no_wrap=not model, overflow="fold"
        )
    for row in rows:
        shown.add_row(*(plain(cell) for cell in row))
    return shown


def _title(table: Standings) -> str:
    benchmark = table["benchmark"]
    return (
        f"{benchmark['name']}: {benchmark['cases']} cases in {benchmark['clusters']} clusters, "
        f"ranked by {table['primary']} (robust accuracy, percent)"
    )


def _columns(table: Standings) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of the whole table."""
    primary = table["primary"]
    others = [name for name in table["dimensions"] if name != primary]
    header = ["rank", "model", f"{primary} (95 % CI)", *others]
    header += ["official", "macro", "read", "consistent"]
    rows = []
    for row in table["models"]:
        entries = row["dimensions"]
        first = entries[primary]
        rows.append(
            [
                rank_range(first),
                row["name"],
                with_interval(first["accuracy"], first["ci95"]),
                *(percent(entries[name]["accuracy"]) for name in others),
                *(percent(first[key]) for key in ("official_micro", "official_macro")),
                *(percent(first[key]) for key in _MORE),
            ]
        )
    return header, rows


def explained(names: Iterable[str]) -> str:
    """Returns what columns mean, in one line."""
    meanings = "; ".join(f"{name}: {COLUMNS[name]}" for name in names)
    return f"{meanings}. All are shares on the dimension that ranks."


def rank_range(entry: Mapping[str, Any]) -> str:
    """Returns a range of ranks as `2-4`, or as `2` where there is one; a dash where none is."""
    bounds = entry["rank_range"]
    return DASH if bounds is None else "-".join(str(rank) for rank in dict.fromkeys(bounds))


def _to_best(table: Standings) -> list[str]:
    """Returns a table of the differences to the best model on the primary dimension."""
    entries = [(row["name"], row["dimensions"][table["primary"]]) for row in table["models"]]
    rows = [
        _line([name, points(one["to_best"]), p_value(one["to_best"]["p"])])
        for name, one in entries
        if one["to_best"] is not None
    ]
    header = [_line(["model", "points (95 % CI)", "p"]), _line(["---"] * 3)]
    return ["", "## Difference to the best", "", TO_BEST, "", *header, *rows] if rows else []


def _cell(entry: Mapping[str, Any], measure: str) -> Any:
    if measure in _PLACE:
        return _place(entry, measure)
    if measure.startswith("ci95_"):
        bounds: Sequence[float] | None = entry["ci95"]
        return None if bounds is None else bounds[measure == "ci95_high"]
    return entry[measure]


def _place(entry: Mapping[str, Any], measure: str) -> Any:
    if measure.startswith("rank_"):
        ranks: Sequence[int] | None = entry["rank_range"]
        return None if ranks is None else ranks[measure == "rank_worst"]
    distance = entry["to_best"]
    if distance is None:
        return None
    if measure.startswith("to_best_ci95_"):
        return None if distance["ci95"] is None else distance["ci95"][measure.endswith("high")]
    return distance["delta" if measure == "to_best" else "p"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    """Returns text of data as one line that is neither Markdown nor HTML."""
    flat = " ".join(printable(text).split())
    return html.escape(flat, quote=False).replace("|", "\\|").replace("`", "'")

"""The files of a leaderboard, among them one self-contained page; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medrm.errors import printable
from medrm.evaluation.leaderboard.leaderboard_tables import (
    COLUMNS,
    RANKS,
    TO_BEST,
    Standings,
    explained,
    leaderboard_csv,
    leaderboard_markdown,
    rank_range,
)
from medrm.evaluation.measures.accuracy import RULES
from medrm.evaluation.pages.document import Grid, render_page, write_text
from medrm.evaluation.report import write_json
from medrm.evaluation.tables import percent, with_interval

SECTIONS = {
    "ranking": "Ranks",
    "dimensions": "Every dimension",
    "missing": "Without a result",
    "models": "What was evaluated",
}
"""Anchor of each section, also the name of its template, to its heading."""


def write_leaderboard(folder: Path, table: Standings) -> None:
    """Writes `leaderboard.json`, `leaderboard.csv`, `leaderboard.md` and `leaderboard.html`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "leaderboard.json", table)
    (folder / "leaderboard.csv").write_text(leaderboard_csv(table), encoding="utf-8")
    (folder / "leaderboard.md").write_text(leaderboard_markdown(table), encoding="utf-8")
    write_text(folder / "leaderboard.html", leaderboard_page(table))


def leaderboard_page(table: Standings) -> str:
    """Returns the page; everything from the list or from a model is escaped."""
    primary, rule = table["primary"], table["best_rule"]
    entries = {row["name"]: row["dimensions"][primary] for row in table["models"]}
    others = [name for name in table["dimensions"] if name != primary]
    return render_page(
        f"Leaderboard on {table['benchmark']['name']}",
        "leaderboard/header.html.jinja",
        {name: (text, f"leaderboard/{name}.html.jinja") for name, text in SECTIONS.items()},
        {
            "table": table,
            "sentence": _sentence(table),
            "rule": None if rule is None else (RULES[rule["name"]], rule["accuracy"]),
            "ranks": {name: rank_range(one) for name, one in entries.items()},
            "accuracies": {
                name: with_interval(one["accuracy"], one["ci95"]) for name, one in entries.items()
            },
            "explained": (
                RANKS.replace("`", ""),
                f"To the best: {TO_BEST[0].lower()}{TO_BEST[1:]}",
                explained(name for name in COLUMNS if name != "macro"),
            ),
            "dimensions": _dimensions(table, [primary, *others]) if others else None,
            "reasons": [
                (row["name"], printable(f"{state}: {row['reason']}"))
                for state in ("failed", "skipped")
                for row in table[state]
            ],
            "models": _models(table),
        },
    )


def _dimensions(table: Standings, names: Sequence[str]) -> Grid:
    rows = []
    for row in table["models"]:
        entries = [row["dimensions"][name] for name in names]
        cells = [f"{percent(one['accuracy'])} ({rank_range(one)})" for one in entries]
        rows.append([row["name"], *cells])
    return Grid(
        "Accuracy in percent, and in brackets the ranks that it leaves open",
        ["model", *names],
        rows,
    )


def _models(table: Standings) -> Grid:
    rows = [
        [row["name"], row["model"] or "-", row["revision"] or "-", row["engine"], row["readout"]]
        for row in table["models"]
    ]
    return Grid(
        "The folder of each model holds its verdicts, its replies and its report",
        ["model", "source", "revision", "engine", "readout"],
        rows,
    )


def _sentence(table: Standings) -> str:
    """Returns what the table says of the first rank."""
    primary = table["primary"]
    ranges = {row["name"]: row["dimensions"][primary]["rank_range"] for row in table["models"]}
    placed = {name: bounds for name, bounds in ranges.items() if bounds is not None}
    if len(placed) < 2:
        return f"{len(placed) or 'No'} model judged all cases on {primary}: nothing is ranked."
    best = [name for name, bounds in placed.items() if bounds[0] == 1]
    if len(best) == 1:
        return f"{best[0]} is the best of {len(placed)} models on {primary}, with 95 % confidence."
    return (
        f"The cases leave open which of {len(best)} models is the best on {primary}: "
        f"{', '.join(best)}."
    )

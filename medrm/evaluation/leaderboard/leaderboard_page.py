"""The files of a leaderboard, among them one self-contained page; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medrm.errors import printable
from medrm.evaluation.leaderboard.leaderboard_tables import (
    COLUMNS,
    RANKS,
    TO_BEST,
    Standings,
    explained,
    leaderboard_csv,
    leaderboard_markdown,
    missing_table,
    rank_range,
    ranking_table,
)
from medrm.evaluation.measures.accuracy import RULES
from medrm.evaluation.pages.document import Section, render_page, write_text
from medrm.evaluation.report import write_json
from medrm.evaluation.tables.table import Table, percent, table_of


class _Content(NamedTuple):
    """What the page is made of; `sentence` says what the ranks leave open."""

    standings: Standings
    benchmark: Mapping[str, Any]
    sentence: str


def write_leaderboard(folder: Path, standings: Standings) -> None:
    """Writes `leaderboard.json`, `leaderboard.csv`, `leaderboard.md` and `leaderboard.html`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "leaderboard.json", standings)
    (folder / "leaderboard.csv").write_text(leaderboard_csv(standings), encoding="utf-8")
    (folder / "leaderboard.md").write_text(leaderboard_markdown(standings), encoding="utf-8")
    write_text(folder / "leaderboard.html", leaderboard_page(standings))


def leaderboard_page(standings: Standings) -> str:
    """Returns the page; everything from the list or from a model is escaped."""
    benchmark = standings["benchmark"]
    return render_page(
        f"Leaderboard on {benchmark['name']}",
        "leaderboard/header.html.jinja",
        SECTIONS,
        _Content(standings, benchmark, _sentence(standings)),
    )


_RANKING = (
    *("model", "rank", "drawn", "accuracy (95 % CI)", "to the best (95 % CI)", "p"),
    *("official", "read", "consistent"),
)


def _ranking(page: _Content) -> Mapping[str, Any] | None:
    rule = page.standings["best_rule"]
    table = ranking_table(page.standings, rule and rule["accuracy"])
    if not table.rows:
        return None
    caption = (
        f"Accuracy on {page.standings['primary']} in percent, over the presented orders. What "
        "could not be read counts as wrong."
    )
    return {
        "rule": rule and (RULES[rule["name"]], rule["accuracy"]),
        "table": table.pick(_RANKING, caption),
        "explained": (
            RANKS.replace("`", ""),
            f"To the best: {TO_BEST[0].lower()}{TO_BEST[1:]}",
            explained(name for name in COLUMNS if name != "macro"),
        ),
    }


def _dimensions(page: _Content) -> Mapping[str, Any] | None:
    primary = page.standings["primary"]
    names = sorted(page.standings["dimensions"], key=lambda name: name != primary)
    rows = []
    for model in page.standings["models"]:
        measures = [model["dimensions"][name] for name in names]
        cells = [f"{percent(of['accuracy'])} ({rank_range(of)})" for of in measures]
        rows.append([model["name"], *cells])
    caption = "Accuracy in percent, and in brackets the ranks that it leaves open"
    return {"table": Table(caption, ["model", *names], rows)} if len(names) > 1 else None


def _missing(page: _Content) -> Mapping[str, Any] | None:
    table = missing_table(page.standings)
    rows = [[printable(str(cell)) for cell in row] for row in table.rows]
    return {"table": Table(table.caption, table.columns, rows)} if rows else None


def _models(page: _Content) -> Mapping[str, Any] | None:
    models = page.standings["models"]
    rows = [
        {
            "model": model["name"],
            "source": model["model"] or "-",
            "revision": model["revision"] or "-",
            "engine": model["engine"],
            "readout": model["readout"],
        }
        for model in models
    ]
    caption = "The folder of each model holds its verdicts, its replies and its report"
    notes = [(model["name"], model["note"]) for model in models if model["note"]]
    return {"table": table_of(caption, rows), "notes": notes} if rows else None


SECTIONS: dict[str, Section[_Content]] = {
    "ranking": Section("Ranks", "leaderboard/ranking.html.jinja", _ranking),
    "dimensions": Section("Every dimension", "leaderboard/dimensions.html.jinja", _dimensions),
    "missing": Section("Without a result", "leaderboard/missing.html.jinja", _missing),
    "models": Section("What was evaluated", "leaderboard/models.html.jinja", _models),
}
"""Name, also the anchor, of each section to what it is, in the order of the page."""


def _sentence(standings: Standings) -> str:
    """Returns what the ranks say of the best model."""
    primary = standings["primary"]
    ranges = {row["name"]: row["dimensions"][primary]["rank_range"] for row in standings["models"]}
    ranked = {name: bounds for name, bounds in ranges.items() if bounds is not None}
    if len(ranked) < 2:
        return f"{len(ranked) or 'No'} model judged all cases on {primary}: nothing is ranked."
    best = [name for name, bounds in ranked.items() if bounds[0] == 1]
    if len(best) == 1:
        return f"{best[0]} is the best of {len(ranked)} models on {primary}, with 95 % confidence."
    return (
        f"The cases leave open which of {len(best)} models is the best on {primary}: "
        f"{', '.join(best)}."
    )

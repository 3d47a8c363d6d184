"""A leaderboard's tables, and its forms as CSV, Markdown and in the terminal; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from medrm.errors import printable
from medrm.evaluation.benchmark import RULES
from medrm.evaluation.pages.document import Section, render_page, write_text
from medrm.evaluation.report import write_json
from medrm.evaluation.tables.reader_tables import CEILING, ceiling_cells
from medrm.evaluation.tables.table import (
    DASH,
    Cell,
    Table,
    Track,
    markdown_text,
    p_value,
    percent,
    plain,
    points,
    table_of,
    to_csv,
    to_markdown,
    to_terminal,
    with_interval,
)
from medrm.files import write_atomically

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

_IDENTITY = ("name", "model", "revision", "engine", "readout")
_SHARES = ("n", "official_micro", "official_macro", "coverage", "consistency")
_MEASURES = (
    *("accuracy", "ci95_low", "ci95_high", *_SHARES, "rank_best", "rank_worst"),
    *("to_best", "to_best_ci95_low", "to_best_ci95_high", "to_best_p"),
    *("reader", "by_other_readers", "to_reader"),
)
"""Columns of the CSV, for each dimension."""


def ranking_table(standings: Standings, rule: float | None = None) -> Table:
    """Returns all models by rank; `accuracy of <dimension>` are columns of the others.

    Args:
        standings: the leaderboard.
        rule: accuracy of the best rule that needs no model, which the page draws.
    """
    primary = standings["primary"]
    rows = []
    for model in standings["models"]:
        measures = model["dimensions"][primary]
        best = measures["to_best"]
        cells: dict[str, Cell] = {
            "model": model["name"],
            "rank": rank_range(measures),
            "drawn": Track(None, measures["accuracy"], rule, measures["ci95"], model["name"]),
            "accuracy (95 % CI)": with_interval(measures["accuracy"], measures["ci95"]),
            "to the best (95 % CI)": points(best) if best else DASH,
            "p": p_value(best["p"]) if best else DASH,
            "official": percent(measures["official_micro"]),
            "macro": percent(measures["official_macro"]),
            "read": percent(measures["coverage"]),
            "consistent": percent(measures["consistency"]),
        }
        for name in _others(standings):
            cells[_column(name)] = percent(model["dimensions"][name]["accuracy"])
        rows.append(cells)
    benchmark = standings["benchmark"]
    return table_of(
        f"{benchmark['name']}: {benchmark['cases']} cases in {benchmark['clusters']} clusters, "
        f"ranked by {primary} (robust accuracy, percent)",
        rows,
    )


def _others(standings: Standings) -> list[str]:
    """The dimensions that do not rank."""
    return [name for name in standings["dimensions"] if name != standings["primary"]]


def _column(dimension: str) -> str:
    return f"accuracy of {dimension}"


def _missing_models(standings: Standings) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the models without a result, after their state."""
    yield from ((state, model) for state in ("failed", "skipped") for model in standings[state])


def leaderboard_csv(standings: Standings) -> str:
    """Returns every measure of every model and dimension, unrounded; then those without any."""
    measures = [f"{name}_{key}" for name in standings["dimensions"] for key in _MEASURES]
    rows = [
        [model["rank"], *map(model.get, _IDENTITY), "done", *_csv_values(model["dimensions"])]
        for model in standings["models"]
    ]
    rows += [
        [None, *map(model.get, _IDENTITY), f"{state}: {model['reason']}", *[None] * len(measures)]
        for state, model in _missing_models(standings)
    ]
    return to_csv(["rank", *_IDENTITY, "state", *measures], rows)


def _csv_values(dimensions: Mapping[str, Mapping[str, Any]]) -> Iterator[Any]:
    """Yields the values of `_MEASURES` on each dimension."""
    for measures in dimensions.values():
        best = measures["to_best"] or {}
        yield from (measures["accuracy"], *(measures["ci95"] or (None, None)))
        yield from map(measures.get, _SHARES)
        yield from measures["rank_range"] or (None, None)
        yield from (best.get("delta"), *(best.get("ci95") or (None, None)), best.get("p"))
        human = measures.get("human_ceiling") or {}
        of_model, difference = human.get("model") or {}, human.get("difference") or {}
        yield from (human.get("accuracy"), of_model.get("accuracy"), difference.get("delta"))


def human_table(standings: Standings) -> Table | None:
    """Returns the human ceiling beside each model, on the dimension that ranks; None without."""
    primary = standings["primary"]
    measured = {
        model["name"]: human
        for model in standings["models"]
        if (human := model["dimensions"][primary].get("human_ceiling")) is not None
    }
    rows: list[dict[str, Cell]] = [
        {"model": name, **ceiling_cells(human, {"the model": human["model"]})}
        for name, human in measured.items()
    ]
    return table_of(f"{CEILING}, on {primary}", rows) if rows else None


def leaderboard_markdown(standings: Standings) -> str:
    """Returns the leaderboard as a page: percent, with 95 % intervals on the primary dimension."""
    table, primary = ranking_table(standings), standings["primary"]
    headings = {_column(name): name for name in _others(standings)}
    columns = ("rank", "model", "accuracy (95 % CI)", *headings, *COLUMNS)
    headings["accuracy (95 % CI)"] = f"{primary} (95 % CI)"
    blocks = [f"# {markdown_text(table.caption)}\n"]
    if table.rows:
        blocks.append(to_markdown(table.pick(columns, "", headings), left=(1,)))
    blocks.append(f"{explained(COLUMNS)}\n\n{RANKS}\n")
    headings = {"to the best (95 % CI)": "points (95 % CI)"}
    best = table.pick(("model", *headings, "p"), "", headings) if table.rows else table
    if compared := [row for row in best.rows if row[1] != DASH]:
        differences = to_markdown(replace(best, rows=compared))
        blocks.append(f"## Difference to the best\n\n{TO_BEST}\n\n{differences}")
    if readers := human_table(standings):
        beside = to_markdown(replace(readers, caption=""))
        blocks.append(f"## Beside readers\n\n{markdown_text(readers.caption)}\n\n{beside}")
    for state in ("failed", "skipped"):
        if standings[state]:
            rows = [[model["name"], model["reason"]] for model in standings[state]]
            reasons = to_markdown(Table("", ("model", "reason"), rows), left=(0, 1))
            blocks.append(f"## {state.capitalize()}\n\n{reasons}")
    notes = [
        f"- {markdown_text(model['name'])}: {markdown_text(model['note'])}"
        for model in standings["models"]
        if model["note"]
    ]
    if notes:
        blocks.append("\n".join(["## Notes", "", *notes, ""]))
    return "\n".join(blocks)


def print_leaderboard(standings: Standings, console: Console | None = None) -> None:
    """Prints the ranked models, and below them those without a result and why."""
    console = console or Console()
    table, unranked = ranking_table(standings), _others(standings)
    if table.rows:
        headings = {"accuracy (95 % CI)": f"{standings['primary']} (95 % CI)"}
        ranking = table.pick(("rank", "model", *headings, *COLUMNS), headings=headings)
        console.print(to_terminal(ranking, left=(1,), wrapped=(1,)))
        if unranked:
            headings = {_column(n): f"{n[:5]}." if len(n) > 6 else n for n in unranked}
            rest = table.pick(("rank", "model", *headings), "The other dimensions", headings)
            console.print(to_terminal(rest, left=(1,), wrapped=(1,)))
    if readers := human_table(standings):
        console.print(to_terminal(readers, wrapped=(0,)))
    for state, model in _missing_models(standings):
        console.print(plain(f"{state}: {model['name']}: {model['reason']}"))
    if len(table.rows) > 1:
        console.print(plain(explained(COLUMNS)))
        console.print(plain(RANKS.replace("`", "")))


def explained(names: Iterable[str]) -> str:
    """Returns what columns mean, in one line."""
    meanings = "; ".join(f"{name}: {COLUMNS[name]}" for name in names)
    return f"{meanings}. All are shares on the dimension that ranks."


def rank_range(measures: Mapping[str, Any]) -> str:
    """Returns a range of ranks as `2-4`, or as `2` where there is one; a dash where none is."""
    bounds: Sequence[int] | None = measures["rank_range"]
    return DASH if bounds is None else "-".join(str(rank) for rank in dict.fromkeys(bounds))


def write_leaderboard(folder: Path, standings: Standings) -> None:
    """Writes `leaderboard.json`, `leaderboard.csv`, `leaderboard.md` and `leaderboard.html`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "leaderboard.json", standings)
    write_atomically(folder / "leaderboard.csv", [leaderboard_csv(standings).encode()])
    write_atomically(folder / "leaderboard.md", [leaderboard_markdown(standings).encode()])
    write_text(folder / "leaderboard.html", leaderboard_page(standings))


def leaderboard_page(standings: Standings) -> str:
    """Returns the page; everything from the list or from a model is escaped."""
    return render_page(
        f"Leaderboard on {standings['benchmark']['name']}",
        "leaderboard/header.html.jinja",
        SECTIONS,
        {**standings, "sentence": _sentence(standings)},
    )


_RANKING = (
    *("model", "rank", "drawn", "accuracy (95 % CI)", "to the best (95 % CI)", "p"),
    *("official", "read", "consistent"),
)


def _ranking(standings: Standings) -> Mapping[str, Any] | None:
    rule = standings["best_rule"]
    table = ranking_table(standings, rule and rule["accuracy"])
    if not table.rows:
        return None
    caption = (
        f"Accuracy on {standings['primary']} in percent, over the presented orders. What "
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


def _dimensions(standings: Standings) -> Mapping[str, Any] | None:
    primary = standings["primary"]
    names = sorted(standings["dimensions"], key=lambda name: name != primary)
    rows = []
    for model in standings["models"]:
        measures = [model["dimensions"][name] for name in names]
        cells = [f"{percent(of['accuracy'])} ({rank_range(of)})" for of in measures]
        rows.append([model["name"], *cells])
    caption = "Accuracy in percent, and in brackets the ranks that it leaves open"
    return {"table": Table(caption, ["model", *names], rows)} if len(names) > 1 else None


def _readers(standings: Standings) -> Mapping[str, Any] | None:
    table = human_table(standings)
    return {"table": table} if table else None


def _missing(standings: Standings) -> Mapping[str, Any] | None:
    rows = [
        [printable(model["name"]), printable(f"{state}: {model['reason']}")]
        for state, model in _missing_models(standings)
    ]
    table = Table("Models without a result", ("model", "why there is none"), rows)
    return {"table": table} if rows else None


def _models(standings: Standings) -> Mapping[str, Any] | None:
    models = standings["models"]
    headings = {"model": "name", "source": "model"}
    headings |= {name: name for name in ("revision", "engine", "readout")}
    rows = [[model[key] or DASH for key in headings.values()] for model in models]
    caption = "The folder of each model holds its verdicts, its replies and its report"
    notes = [(model["name"], model["note"]) for model in models if model["note"]]
    return {"table": Table(caption, list(headings), rows), "notes": notes} if rows else None


SECTIONS: dict[str, Section[Standings]] = {
    "ranking": Section("Ranks", "leaderboard/ranking.html.jinja", _ranking),
    "dimensions": Section("Every dimension", "leaderboard/dimensions.html.jinja", _dimensions),
    "readers": Section("Beside readers", "leaderboard/dimensions.html.jinja", _readers),
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

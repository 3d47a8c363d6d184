"""Tables about readers: the human ceiling beside models, and how far readers agree; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medrm.evaluation.report import Report, robust_of
from medrm.evaluation.tables.report_tables import Sides, by_dimension, robust_on
from medrm.evaluation.tables.table import (
    DASH,
    Cell,
    Table,
    counted,
    decimal,
    percent,
    points,
    short,
    table_of,
    with_interval,
)
from medrm.evaluation.vote_audit import FAST_SECONDS

CEILING = "Human ceiling: by the label of the other readers, leaving out one after another"


def ceiling_table(sides: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Returns the human ceiling of each dimension beside the models; None where there is none.

    Args:
        sides: reports on the same cases, or what else has `human_ceiling`, by the name of the
            model's column; the difference is that of the last one.
    """
    rows: list[dict[str, Cell]] = []
    ceilings = {side: of.get("human_ceiling") or {} for side, of in sides.items()}  # none in 0.2
    for name, human in list(ceilings.values())[-1].items():
        if human is None:
            continue
        models = {
            side: (ceiling.get(name) or {}).get("model") for side, ceiling in ceilings.items()
        }
        rows.append({"dimension": name, **ceiling_cells(human, models)})
    return table_of(CEILING, rows) if rows else None


def ceiling_cells(
    human: Mapping[str, Any], models: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, Cell]:
    """Returns what a reader reaches, what models do by the same labels, and the difference.

    Args:
        human: an entry of `human_ceiling`.
        models: the heading of a model's column to its accuracy there.
    """
    of_models = {
        side: with_interval((model or {}).get("accuracy"), (model or {}).get("ci95"))
        for side, model in models.items()
    }
    return {
        "a reader (95 % CI)": with_interval(human["accuracy"], human["ci95"]),
        **of_models,
        "difference": points(human["difference"] or {"delta": None}),
        "n": str(human["n"]),
    }


def agreement_table(sides: Sides) -> Table:
    """Returns measures related to accuracy: agreement with the experts, bounds, coverage."""
    return by_dimension(
        "Agreement with the experts",
        sides,
        {
            "read": ("coverage", percent),
            "right of what was read": ("parsed_accuracy", percent),
            "bounds": ("bounds", lambda bounds: " to ".join(map(percent, bounds))),
            "balanced": ("balanced_accuracy", percent),
            "kappa": ("kappa", decimal),
            "AC1": ("ac1", decimal),
            "experts' ties": ("n_tie", str),
            "neither": ("n_neither", str),
        },
        robust_on,
    )


def neither_line(report: Report) -> str | None:
    """Returns on how many cases most readers accept neither answer; None where on none."""
    counts = {
        name: count
        for name, measures in robust_of(report).items()
        if (count := (measures or {}).get("n_neither"))
    }
    return f"Neither answer acceptable, outside n: {counted(counts)} (cases)." if counts else None


_MOST_ROWS = 20
"""Pairs of readers, or readers, of a dimension that a terminal shows; JSON has more."""


def agreement_tables(measured: Mapping[str, Any]) -> list[Table | str]:
    """Returns the tables of `reader_agreement`: dimensions, pairs of readers, readers."""
    dimensions = {name: of for name, of in measured["dimensions"].items() if of["units"]}
    apart = [name for name in measured["dimensions"] if name not in dimensions]
    tables: list[Table | str] = [
        table_of(
            f"{measured['name']}: agreement of {measured['readers']} readers (95 % CI)",
            [
                {
                    "dimension": short(name),
                    "pairs": str(of["units"]),
                    "votes": str(of["votes"]),
                    "agree": with_interval(of["raw"]["value"], of["raw"]["ci95"]),
                    **{heading: _estimate(of[key]) for heading, key in _COEFFICIENTS.items()},
                    "human ceiling": _share(of["human_ceiling"]),
                }
                for name, of in dimensions.items()
            ],
        )
    ]
    for name, of in dimensions.items():
        pairs = sorted(of["pairs"], key=lambda pair: -int(pair["units"]))
        pair_rows = [_pair_row(pair) for pair in pairs]
        tables.append(_shown(f"{name}: every two readers", pair_rows, len(pair_rows)))
        rows = [
            {
                "reader": short(reader["reader"]),
                "votes": str(reader["votes"]),
                "agrees with the others": _share(reader["raw"]),
                "right by the others": _share(reader["accuracy"]),
                "n": str((reader["accuracy"] or {"n": 0})["n"]),
            }
            for reader in of["by_reader"]
        ]
        tables.append(_shown(f"{name}: each reader against the others", rows, of["readers"]))
    if apart:
        tables.append(f"No case was judged by two readers on {', '.join(apart)}.")
    return [*tables, _LEGEND]


_LEGEND = (
    "pairs: two answers of a case that two readers or more judged. alpha, Fleiss, Cohen, AC1: by "
    "what is said (A, tie, B, neither); AC2: by how near it is on the scale of strength, neither "
    "left out. right by the others: where most of the other readers prefer one answer; the human "
    "ceiling is the mean of it."
)

_COEFFICIENTS = {"alpha": "alpha", "Fleiss": "fleiss", "AC1": "ac1", "AC2": "ac2"}


def _pair_row(pair: Mapping[str, Any]) -> dict[str, Cell]:
    return {
        "readers": " / ".join(short(name) for name in pair["readers"]),
        "pairs": str(pair["units"]),
        "agree": with_interval(pair["raw"]["value"], pair["raw"]["ci95"]),
        "Cohen": _estimate(pair["kappa"]),
        "AC1": _estimate(pair["ac1"]),
        "AC2": _estimate(pair["ac2"]),
    }


def _shown(caption: str, rows: Sequence[Mapping[str, Cell]], total: int) -> Table:
    """Returns the first rows as a table that says how many there are."""
    shown = rows[:_MOST_ROWS]
    more = f" (the first {len(shown)} of {total})" if len(shown) < total else ""
    return table_of(caption + more, shown)


def _estimate(estimate: Mapping[str, Any]) -> str:
    """Returns a coefficient with its interval, both with two decimals."""
    value, bounds = decimal(estimate["value"], 2), estimate["ci95"]
    return value if bounds is None else f"{value} ({bounds[0]:.2f}, {bounds[1]:.2f})"


def _share(share: Mapping[str, Any] | None) -> str:
    return with_interval(share["value"], share["ci95"]) if share else DASH


def vote_tables(votes: Mapping[str, Any]) -> list[Table]:
    """Returns the tables of `vote_measures`: none where no vote says more than what is better."""
    dimensions, readers = votes["dimensions"], votes["readers"]
    informative = [
        of for of in dimensions.values() if of["timed"] or of["confident"] or of["neither"]
    ]
    if not informative and len(readers) < 2:
        return []
    rows = {
        name: [{name: short(member), **_vote_cells(of)} for member, of in of_all]
        for name, of_all in (("dimension", dimensions.items()), ("reader", readers.items()))
    }
    return [
        _informative(table_of("votes by dimension", rows["dimension"])),
        _informative(_shown("votes by reader", rows["reader"], votes["all_readers"])),
    ]


def _informative(table: Table) -> Table:
    """Returns a table without the columns that say nothing in any row."""
    nothing = {
        name
        for name, *cells in zip(table.columns, *table.rows, strict=True)
        if {*cells} <= {DASH, "0"}
    }
    return table.without(*nothing)


def _vote_cells(of: Mapping[str, Any]) -> dict[str, Cell]:
    seconds = "{1:.0f} ({0:.0f}, {2:.0f})".format(*of["seconds"]) if of["seconds"] else DASH
    return {
        "votes": str(of["votes"]),
        "neither": percent(of["neither"]),
        "timed": str(of["timed"]),
        "seconds (quartiles)": seconds,
        f"under {FAST_SECONDS:g} s": percent(of["fast"]),
        "confidence": ", ".join(f"{word}: {n}" for word, n in of["confidence"].items()) or DASH,
        "reasons": str(of["reasons"]),
    }

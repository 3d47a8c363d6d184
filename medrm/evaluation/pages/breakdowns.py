"""Rows of a page that are drawn: groups of cases, and what else a model is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medrm.evaluation.compare import SIGNIFICANCE, Comparison
from medrm.evaluation.measures.accuracy import RULES
from medrm.evaluation.pages.document import Grid
from medrm.evaluation.pages.panels import maybe, robust, signed
from medrm.evaluation.report import Report
from medrm.evaluation.tables import CONTROLS, DASH, p_value, points, with_interval

SMALL = 50
"""Groups of fewer cases are shown faded: their intervals span tens of points."""


def group_rows(
    report: Report, comparison: Comparison | None, primary: str
) -> dict[str, list[dict[str, Any]]]:
    """Returns, for each grouping, its members on one dimension, those with most cases first.

    Of a comparison they are its cells, of one evaluation its groups; members without a labelled
    case are left out.
    """
    if comparison is None:
        groups = report["protocols"].get("robust", {}).get("groups", {})
        tables = {
            group: [_alone(member, measures[primary]) for member, measures in members.items()]
            for group, members in groups.items()
        }
    else:
        tables = {
            group: [_compared(cell) for cell in cells if cell["dimension"] == primary]
            for group, cells in (comparison["cells"] or {}).items()
        }
    return {
        group: sorted((row for row in rows if row["n"]), key=lambda row: (-row["n"], row["member"]))
        for group, rows in tables.items()
    }


def _alone(member: str, measures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "member": member,
        "before": None,
        "after": measures["accuracy"],
        "bounds": measures["ci95"],
        "shown": with_interval(measures["accuracy"], measures["ci95"]),
        "p": None,
        "n": measures["n"],
    }


def _compared(cell: Mapping[str, Any]) -> dict[str, Any]:
    """A difference with its interval, which is cut at 100 points for reading only."""
    bounds = cell["ci95"] and [max(-1.0, cell["ci95"][0]), min(1.0, cell["ci95"][1])]
    return {
        "member": cell["member"],
        "before": cell["before"],
        "after": cell["after"],
        "bounds": None,
        "shown": points({"delta": cell["delta"], "ci95": bounds}),
        "p": cell["p_bh"],
        "n": cell["n"],
    }


def cell_grids(comparison: Comparison) -> list[Grid]:
    """Returns the difference in every cell of every grouping, for who cannot see the heat map."""
    names = list(comparison["dimensions"])
    grids = []
    for group, cells in (comparison.get("cells") or {}).items():
        table: dict[str, dict[str, str]] = {}
        for cell in cells:
            mark = " *" if cell["p_bh"] is not None and cell["p_bh"] < SIGNIFICANCE else ""
            shown = maybe(cell["delta"], signed) + mark
            table.setdefault(cell["member"], {})[cell["dimension"]] = shown
        rows = [
            [member, *(by_name.get(name, DASH) for name in names)]
            for member, by_name in table.items()
        ]
        grids.append(
            Grid(
                f"Difference in points by {group} and dimension",
                [group, *names],
                rows,
                "* p below 0.05 after Benjamini and Hochberg's adjustment over all cells.",
            )
        )
    return grids


def controls(comparison: Comparison | None, report: Report, primary: str) -> list[dict[str, Any]]:
    """Returns what else there is beside the model: the run's controls, and rules."""
    after = (robust(report).get(primary) or {}).get("accuracy")
    found = ((comparison or {}).get("controls") or {}).items()
    rows: list[dict[str, Any]] = [
        {
            "name": CONTROLS.get(name, name),
            "control": entry["before"],
            "after": entry["after"],
            "ceiling": entry["ceiling"],
            "shown": points(entry),
            "p": p_value(entry["p"]),
        }
        for name, entry in found
    ]
    for name, text in RULES.items():
        accuracy = (report["baselines"].get(name) or {}).get(primary)
        row = {"name": f"rule: {text}", "control": accuracy, "after": after, "shown": "", "p": ""}
        rows.append({**row, "ceiling": report["ceiling"].get(primary)})
    return rows

"""Tables about readers: the human ceiling beside models, and how far readers agree; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medrm.evaluation.report import Report, robust_of
from medrm.evaluation.tables.report_tables import Sides, by_dimension, robust_on
from medrm.evaluation.tables.table import (
    Cell,
    Table,
    counted,
    decimal,
    percent,
    points,
    table_of,
    with_interval,
)


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
        row: dict[str, Cell] = {"dimension": name}
        row["a reader (95 % CI)"] = with_interval(human["accuracy"], human["ci95"])
        for side, ceiling in ceilings.items():
            model = (ceiling.get(name) or {}).get("model") or {}
            row[side] = with_interval(model.get("accuracy"), model.get("ci95"))
        row["difference"] = points(human["difference"] or {"delta": None})
        rows.append({**row, "n": str(human["n"])})
    caption = "Human ceiling: by the label of the other readers, leaving out one after another"
    return table_of(caption, rows) if rows else None


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

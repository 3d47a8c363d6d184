"""The comparability gate: what differs between two evaluations besides the weights.

A difference that was not declared beforehand blocks the headline. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medrm.errors import ConfigError, nearest, report
from medrm.evaluation.comparison.evaluations import Evaluation
from medrm.evaluation.report import Report

NAMES = ("benchmark", "cases", "labels", "readout", "dimensions", "orders")
"""What is compared besides the settings."""

OTHER_DATA = {"benchmark", "cases", "labels"}
"""Differences that leave nothing to compare; a recipe has no reason to declare them."""


def find_differences(before: Evaluation, after: Evaluation) -> dict[str, dict[str, Any]]:
    """Returns everything but the weights in which two evaluations differ: name -> both values.

    Settings that only one side has, and the presented orders, belong to the readout: they count
    only where the readout is the same. A setting that both have counts always.
    """
    pairs: dict[str, tuple[Any, Any]] = {
        "benchmark": (before.report["benchmark"]["digest"], after.report["benchmark"]["digest"]),
        "readout": (before.report["readout"], after.report["readout"]),
        "dimensions": (before.judged, after.judged),
    }
    same_readout = before.report["readout"] == after.report["readout"]
    if same_readout:
        pairs["orders"] = (before.orders, after.orders)
    early, late = before.report["settings"], after.report["settings"]
    for name in sorted({*early, *late}):
        if same_readout or (name in early and name in late):
            pairs[name] = (early.get(name), late.get(name))
    differences = {
        name: {"before": old, "after": new} for name, (old, new) in pairs.items() if old != new
    }
    if before.clusters.keys() != after.clusters.keys():
        differences["cases"] = {
            "before": len(before.clusters),
            "after": len(after.clusters),
            "shared": len(before.clusters.keys() & after.clusters.keys()),
        }
    if _labels(before, after) != _labels(after, before):
        differences["labels"] = {"before": "other labels or clusters", "after": "than these"}
    return differences


def check_declared(declared: Sequence[str], *reports: Report) -> None:
    """Raises unless every declared difference names something that is compared.

    Args:
        declared: the allowed differences.
        reports: of the evaluations; their settings are compared.

    Raises:
        ConfigError: names what is unknown.
    """
    known = [*NAMES, *sorted({name for one in reports for name in one["settings"]})]
    problems = [
        f"{name!r} is not compared.{nearest(name, known)}" for name in declared if name not in known
    ]
    if problems:
        raise ConfigError(
            report(
                f"allowed_differences: {len(problems)} unknown. Accepted: {', '.join(known)}.",
                problems,
            )
        )


def _labels(one: Evaluation, other: Evaluation) -> set[tuple[Any, ...]]:
    """Labels and clusters of the first evaluation, where both have judged."""
    return {
        (row.case_id, row.dimension, row.label, row.cluster)
        for name, rows in one.robust.items()
        if name in other.robust
        for row in rows
        if row.case_id in other.clusters
    }

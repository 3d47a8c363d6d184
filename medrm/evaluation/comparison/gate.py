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
    settings = (before.report["settings"], after.report["settings"])
    for name in sorted({*settings[0], *settings[1]}):
        if same_readout or all(name in of_side for of_side in settings):
            pairs[name] = (settings[0].get(name), settings[1].get(name))
    differences = {
        name: {"before": values[0], "after": values[1]}
        for name, values in pairs.items()
        if values[0] != values[1]
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
    names = [*NAMES, *sorted({name for side in reports for name in side["settings"]})]
    problems = [
        f"{name!r} is not compared.{nearest(name, names)}" for name in declared if name not in names
    ]
    if problems:
        raise ConfigError(
            report(
                f"allowed_differences: {len(problems)} unknown. Accepted: {', '.join(names)}.",
                problems,
            )
        )


def _labels(evaluation: Evaluation, other: Evaluation) -> set[tuple[Any, ...]]:
    """Labels and clusters of an evaluation, where another has judged as well."""
    return {
        (row.case_id, row.dimension, row.label, row.cluster)
        for name, rows in evaluation.robust.items()
        if name in other.robust
        for row in rows
        if row.case_id in other.clusters
    }

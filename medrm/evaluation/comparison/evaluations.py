"""What a comparison reads of evaluation folders, and the comparability gate; imports no torch.

The gate: what differs between two evaluations besides the weights. A difference that was not
declared beforehand blocks the headline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from medrm.errors import ConfigError, DataError, nearest
from medrm.errors import report as report_of
from medrm.evaluation.measures.accuracy import case_scores, verdicts_by_dimension
from medrm.evaluation.records.jsonl import VERDICTS_FILE, read_verdicts
from medrm.evaluation.report import Report, read_report
from medrm.schema import Verdict
from medrm.scorer.verdict_rules import EVALUATE_AGAIN

Scores = Mapping[str, Mapping[str, float]]
"""Dimension, in the benchmark's order, to case, by id, to its score."""

NAMES = ("benchmark", "cases", "labels", "readout", "dimensions", "orders")
"""What is compared besides the settings."""

OTHER_DATA = {"benchmark", "cases", "labels"}
"""Differences that leave nothing to compare; a recipe has no reason to declare them."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation folder: its report and its verdict rows by dimension, for each protocol."""

    folder: Path
    report: Report
    robust: Mapping[str, list[Verdict]]
    official: Mapping[str, list[Verdict]]

    @cached_property
    def scores(self) -> dict[str, Scores]:
        """The score of each case with a majority label, counted in three ways.

        `robust`: the mean over the presented orders; `forward`: in the stored order only;
        `official`: under the official protocol.
        """
        forward = {
            name: [row for row in rows if row.order == "forward"]
            for name, rows in self.robust.items()
        }
        counted = {"robust": self.robust, "forward": forward, "official": self.official}
        return {
            counting: {name: case_scores(rows) for name, rows in of_dimension.items()}
            for counting, of_dimension in counted.items()
        }

    @cached_property
    def judged_cases(self) -> dict[str, Verdict]:
        """One verdict on every judged case, which has its cluster and its groups."""
        return {row.case_id: row for row in chain.from_iterable(self.robust.values())}

    @cached_property
    def clusters(self) -> dict[str, str]:
        """The cluster of every judged case."""
        return {case_id: row.cluster for case_id, row in self.judged_cases.items()}

    @cached_property
    def orders(self) -> list[str]:
        """The orders in which cases were presented."""
        return sorted({row.order for row in chain.from_iterable(self.robust.values())})


def read_evaluation(folder: Path) -> Evaluation:
    """Reads an evaluation folder.

    Raises:
        DataError: it is incomplete, or was not judged under the robust protocol.
    """
    report = read_report(folder)
    rows = read_verdicts(folder / VERDICTS_FILE)
    foreign = [row.dimension for row in rows if row.dimension not in report["ceiling"]]
    if foreign:
        raise DataError(
            f"{VERDICTS_FILE} and report.json in {str(folder)!r} do not belong together: one "
            f"judges {foreign[0]!r}, the other does not. {EVALUATE_AGAIN}"
        )
    robust, official = (
        verdicts_by_dimension(rows, protocol, report["ceiling"])
        for protocol in ("robust", "official")
    )
    if not robust:
        raise DataError(
            f"{str(folder)!r} was not judged under the robust protocol, which a comparison needs. "
            "Evaluate again with --protocol both."
        )
    return Evaluation(folder, report, robust, official)


def find_differences(before: Evaluation, after: Evaluation) -> dict[str, dict[str, Any]]:
    """Returns everything but the weights in which two evaluations differ: name -> both values.

    Settings that only one side has, and the presented orders, belong to the readout: they count
    only where the readout is the same. A setting that both have counts always.
    """
    same_readout = before.report["readout"] == after.report["readout"]
    pairs: dict[str, tuple[Any, Any]] = {
        "benchmark": (before.report["benchmark"]["digest"], after.report["benchmark"]["digest"]),
        "readout": (before.report["readout"], after.report["readout"]),
        "dimensions": (list(before.robust), list(after.robust)),
        **({"orders": (before.orders, after.orders)} if same_readout else {}),
    }
    first, second = (side.report["settings"] for side in (before, after))
    for name in sorted(first.keys() | second.keys() if same_readout else first.keys() & second):
        pairs[name] = (first.get(name), second.get(name))
    differences = {
        name: {"before": values[0], "after": values[1]}
        for name, values in pairs.items()
        if values[0] != values[1]
    }
    cases = (before.clusters.keys(), after.clusters.keys())
    if cases[0] != cases[1]:
        counts = map(len, (*cases, cases[0] & cases[1]))
        differences["cases"] = dict(zip(("before", "after", "shared"), counts, strict=True))
    if _labels(before, after) != _labels(after, before):
        differences["labels"] = {"before": "other labels or clusters", "after": "than these"}
    return differences


def _labels(evaluation: Evaluation, other: Evaluation) -> set[tuple[Any, ...]]:
    """Labels and clusters of an evaluation, where another has judged as well."""
    return {
        (row.case_id, row.dimension, row.label, row.cluster)
        for row in chain.from_iterable(evaluation.robust.values())
        if row.dimension in other.robust and row.case_id in other.clusters
    }


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
        accepted = f"{len(problems)} unknown. Accepted: {', '.join(names)}."
        raise ConfigError(report_of(f"allowed_differences: {accepted}", problems))

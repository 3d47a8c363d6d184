"""What a comparison reads of an evaluation folder; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from medrm.errors import DataError
from medrm.evaluation.measures.accuracy import case_scores
from medrm.evaluation.records.verdicts import read_verdicts
from medrm.evaluation.report import Report, read_report
from medrm.schema import Verdict
from medrm.scorer.verdict_rules import EVALUATE_AGAIN

Scores = Mapping[str, Mapping[str, float]]
"""Dimension, in the benchmark's order, to case, by id, to its score."""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation folder: its report and its verdict rows by dimension, for each protocol."""

    folder: Path
    report: Report
    robust: Mapping[str, list[Verdict]]
    official: Mapping[str, list[Verdict]]

    @cached_property
    def scores(self) -> Scores:
        """The mean score over the presented orders of each case with a majority label."""
        return {name: case_scores(rows) for name, rows in self.robust.items()}

    @cached_property
    def forward_scores(self) -> Scores:
        """The same in the stored order only."""
        return {
            name: case_scores(row for row in rows if row.order == "forward")
            for name, rows in self.robust.items()
        }

    @cached_property
    def official_scores(self) -> Scores:
        """The scores under the official protocol."""
        return {name: case_scores(rows) for name, rows in self.official.items()}

    @cached_property
    def clusters(self) -> dict[str, str]:
        """The cluster of every judged case."""
        return {row.case_id: row.cluster for rows in self.robust.values() for row in rows}

    @cached_property
    def groups(self) -> dict[str, Mapping[str, str]]:
        """The groups of every judged case."""
        return {row.case_id: row.groups for rows in self.robust.values() for row in rows}

    @cached_property
    def orders(self) -> list[str]:
        """The orders in which cases were presented."""
        return sorted({row.order for rows in self.robust.values() for row in rows})

    @property
    def judged(self) -> list[str]:
        """The dimensions that were judged."""
        return list(self.robust)


def read_evaluation(folder: Path) -> Evaluation:
    """Reads an evaluation folder.

    Raises:
        DataError: it is incomplete, or was not judged under the robust protocol.
    """
    report = read_report(folder)
    rows_of: dict[str, dict[str, list[Verdict]]] = {"robust": {}, "official": {}}
    for protocol in rows_of:
        rows_of[protocol] = {name: [] for name in report["ceiling"]}
    for row in read_verdicts(folder / "verdicts.jsonl"):
        if row.dimension not in report["ceiling"]:
            raise DataError(
                f"verdicts.jsonl and report.json in {str(folder)!r} do not belong together: one "
                f"judges {row.dimension!r}, the other does not. {EVALUATE_AGAIN}"
            )
        rows_of[str(row.protocol)][row.dimension].append(row)
    robust, official = (
        {name: rows for name, rows in of_protocol.items() if rows}
        for of_protocol in rows_of.values()
    )
    if not robust:
        raise DataError(
            f"{str(folder)!r} was not judged under the robust protocol, which a comparison needs. "
            "Evaluate again with --protocol both."
        )
    return Evaluation(folder, report, robust, official)

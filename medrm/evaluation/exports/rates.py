"""Every rate of a run with its numerator and denominator, as rows of summary.csv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from medrm.evaluation.compare import Comparison
from medrm.evaluation.measures.accuracy import (
    case_scores,
    member_of,
    verdicts_by_dimension,
)
from medrm.evaluation.measures.biases import consistent, named_first
from medrm.evaluation.records.jsonl import verdicts_by_case
from medrm.evaluation.report import Report
from medrm.schema import UNREAD, Verdict


@dataclass(frozen=True)
class Rate:
    """A row of summary.csv; empty where a number has no such part.

    `value` is numerator / denominator, as it stands in report.json or comparison.json.
    """

    side: str
    protocol: str
    measure: str
    dimension: str = ""
    group: str = ""
    member: str = ""
    value: float | None = None
    numerator: float | None = None
    denominator: float | None = None
    ci95_low: float | None = None
    ci95_high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    clusters: int | None = None


def evaluation_rates(side: str, report: Report, rows: Sequence[Verdict]) -> Iterator[Rate]:
    """Yields the rates of one evaluation.

    Args:
        side: before or after.
        report: of the evaluation.
        rows: its verdicts.
    """
    protocols = report["protocols"]
    for protocol, rates in {"robust": _robust, "official": _official}.items():
        if protocol in protocols:
            judged = verdicts_by_dimension(rows, protocol, report["ceiling"])
            yield from rates(side, protocols[protocol], judged)
    for parser in ("strict", "official"):
        stages = ((report["parsing"] or {}).get(parser) or {}).get("stages", {})
        total = sum(stages.values())
        for stage, count in stages.items():
            labels = (side, f"{parser} parser", f"replies read by rule: {stage}", "", "", "")
            yield Rate(*labels, count / total, count, total)


def _robust(
    side: str, report: Mapping[str, Any], rows: Mapping[str, Sequence[Verdict]]
) -> Iterator[Rate]:
    accuracy = partial(_accuracy, side, "robust")
    for name, verdicts in rows.items():
        measures = report["dimensions"][name]
        yield accuracy(measures, verdicts, name)
        cases = list(verdicts_by_case(verdicts).values())
        read = sum(row.outcome != UNREAD for row in verdicts)
        counts: dict[str, tuple[float, float]] = {"coverage": (read, len(verdicts))}
        for measure, count in (("consistency", consistent), ("first_rate", named_first)):
            sums = count(cases)
            counts[measure] = (float(sums.numerator.sum()), float(sums.denominator.sum()))
        for measure in ("both_correct", "net_correct"):
            counts[measure] = (round((measures[measure] or 0) * measures["n"]), measures["n"])
        for measure, (numerator, denominator) in counts.items():
            value = measures[measure]
            if value is not None:
                yield _rate(side, measure, name, value, numerator, denominator)
    for group, members in report["groups"].items():
        for member, cells in members.items():
            for name, verdicts in rows.items():
                of_member = [row for row in verdicts if member_of(row, group) == member]
                yield accuracy(cells[name], of_member, name, group, member)


def _official(
    side: str, report: Mapping[str, Any], rows: Mapping[str, Sequence[Verdict]]
) -> Iterator[Rate]:
    accuracy = partial(_accuracy, side, "official")
    for name, verdicts in rows.items():
        yield accuracy({"accuracy": report["micro"][name]}, verdicts, name)
    for organ, cells in report["organs"].items():
        for name, verdicts in rows.items():
            of_organ = [row for row in verdicts if member_of(row, "organ") == organ]
            yield accuracy({"accuracy": cells[name]}, of_organ, name, "organ", organ)


def _accuracy(
    side: str,
    protocol: str,
    measures: Mapping[str, Any],
    rows: Sequence[Verdict],
    dimension: str,
    group: str = "",
    member: str = "",
) -> Rate:
    """The accuracy over the labelled cases of some rows, with their sum and number."""
    scores = case_scores(rows)
    low, high = measures.get("ci95") or (None, None)
    return Rate(
        *(side, protocol, "accuracy", dimension, group, member),
        measures["accuracy"],
        sum(scores.values()),
        len(scores),
        low,
        high,
        clusters=measures.get("clusters"),
    )


def _rate(
    side: str, measure: str, dimension: str, value: float, numerator: float, denominator: float
) -> Rate:
    """A share under the robust protocol, without an interval."""
    labels = (side, "robust", measure, dimension, "", "")
    return Rate(*labels, value, numerator, denominator)


def comparison_rates(comparison: Comparison) -> Iterator[Rate]:
    """Yields the differences of a comparison, and the shares of cases behind them."""
    for name, difference in comparison["dimensions"].items():
        if difference["n"]:
            yield _difference("difference", difference, difference["p_unadjusted"], difference["p"])
            for count in ("both_right", "fixed", "broken", "both_wrong"):
                share = difference[count] / difference["n"]
                yield _rate("difference", count, name, share, difference[count], difference["n"])
    for group, cells in comparison["cells"].items():
        for cell in cells:
            if cell["delta"] is not None:
                yield _difference("difference", cell, cell["p"], cell["p_bh"], group)
    for name, control in comparison["controls"].items():
        if control["delta"] is not None:
            yield _difference(f"after minus {name}", control, control["p"])


def _difference(
    side: str,
    difference: Mapping[str, Any],
    p: float | None,
    adjusted: float | None = None,
    group: str = "",
) -> Rate:
    low, high = difference["ci95"] or (None, None)
    return Rate(
        *(side, "robust", "accuracy", difference["dimension"], group, difference.get("member", "")),
        difference["delta"],
        difference["delta"] * difference["n"],
        difference["n"],
        low,
        high,
        p,
        adjusted,
        difference["clusters"],
    )

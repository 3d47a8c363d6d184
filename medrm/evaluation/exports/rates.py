"""Every rate of a run with its numerator and denominator, as rows of summary.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from medrm.evaluation.compare import Comparison
from medrm.evaluation.exports.text_tables import spreadsheet_text
from medrm.evaluation.measures.accuracy import case_scores, member_of
from medrm.evaluation.measures.position import consistent, named_first
from medrm.evaluation.records.verdicts import by_case
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


def summary(rates: Iterable[Rate]) -> str:
    """Returns rates as CSV; text of data is harmless in a spreadsheet, numbers are unrounded."""
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(field.name for field in fields(Rate))
    for rate in rates:
        table.writerow(
            spreadsheet_text(cell) if isinstance(cell, str) else cell
            for cell in asdict(rate).values()
        )
    return file.getvalue()


def evaluation_rates(side: str, report: Report, rows: Sequence[Verdict]) -> Iterator[Rate]:
    """Yields the rates of one evaluation.

    Args:
        side: before or after.
        report: of the evaluation.
        rows: its verdicts.
    """
    protocols = report["protocols"]
    for protocol in ("robust", "official"):
        if protocol in protocols:
            of_dimension: dict[str, list[Verdict]] = {name: [] for name in report["ceiling"]}
            for row in rows:
                if row.protocol == protocol:
                    of_dimension[row.dimension].append(row)
            judged = {name: chosen for name, chosen in of_dimension.items() if chosen}
            make = _robust if protocol == "robust" else _official
            yield from make(side, protocols[protocol], judged)
    for parser in ("strict", "official"):
        stages = ((report["parsing"] or {}).get(parser) or {}).get("stages", {})
        total = sum(stages.values())
        for stage, count in stages.items():
            yield Rate(
                side,
                f"{parser} parser",
                f"replies read by rule: {stage}",
                value=count / total,
                numerator=count,
                denominator=total,
            )


def _robust(
    side: str, found: Mapping[str, Any], rows: Mapping[str, Sequence[Verdict]]
) -> Iterator[Rate]:
    for name, chosen in rows.items():
        measures = found["dimensions"][name]
        yield _accuracy(side, "robust", measures, chosen, dimension=name)
        cases = [presented for _, presented in by_case(chosen)]
        read = sum(row.outcome != UNREAD for row in chosen)
        yield _rate(side, "coverage", name, measures["coverage"], read, len(chosen))
        for measure, counted in (("consistency", consistent), ("first_rate", named_first)):
            if measures[measure] is not None:
                parts = counted(cases)
                top, bottom = float(parts.numerator.sum()), float(parts.denominator.sum())
                yield _rate(side, measure, name, measures[measure], top, bottom)
        for measure in ("both_correct", "net_correct"):
            if measures[measure] is not None:
                right = round(measures[measure] * measures["n"])
                yield _rate(side, measure, name, measures[measure], right, measures["n"])
    for group, members in found["groups"].items():
        for member, cells in members.items():
            for name, chosen in rows.items():
                some = [row for row in chosen if member_of(row, group) == member]
                place = {"dimension": name, "group": group, "member": member}
                yield _accuracy(side, "robust", cells[name], some, **place)


def _official(
    side: str, found: Mapping[str, Any], rows: Mapping[str, Sequence[Verdict]]
) -> Iterator[Rate]:
    for name, chosen in rows.items():
        yield _accuracy(
            side, "official", {"accuracy": found["micro"][name]}, chosen, dimension=name
        )
    for organ, cells in found["organs"].items():
        for name, chosen in rows.items():
            some = [row for row in chosen if member_of(row, "organ") == organ]
            place = {"dimension": name, "group": "organ", "member": organ}
            yield _accuracy(side, "official", {"accuracy": cells[name]}, some, **place)


def _accuracy(
    side: str,
    protocol: str,
    measures: Mapping[str, Any],
    rows: Sequence[Verdict],
    *,
    dimension: str,
    group: str = "",
    member: str = "",
) -> Rate:
    """The accuracy over the labelled cases of some rows, with their sum and number."""
    scores = case_scores(rows)
    low, high = measures.get("ci95") or (None, None)
    return Rate(
        side,
        protocol,
        "accuracy",
        dimension,
        group,
        member,
        value=measures["accuracy"],
        numerator=sum(scores.values()),
        denominator=len(scores),
        ci95_low=low,
        ci95_high=high,
        clusters=measures.get("clusters"),
    )


def _rate(
    side: str, measure: str, dimension: str, value: float, numerator: float, denominator: float
) -> Rate:
    return Rate(
        side,
        "robust",
        measure,
        dimension,
        value=value,
        numerator=numerator,
        denominator=denominator,
    )


def comparison_rates(comparison: Comparison) -> Iterator[Rate]:
    """Yields the differences of a comparison, and the shares of cases behind them."""
    for name, entry in comparison["dimensions"].items():
        if entry["n"]:
            yield _difference("difference", entry, entry["p_unadjusted"], entry["p"])
            for part in ("both_right", "fixed", "broken", "both_wrong"):
                share = entry[part] / entry["n"]
                yield _rate("difference", part, name, share, entry[part], entry["n"])
    for group, cells in comparison["cells"].items():
        for cell in cells:
            if cell["delta"] is not None:
                yield _difference("difference", cell, cell["p"], cell["p_bh"], group)
    for name, entry in comparison["controls"].items():
        if entry["delta"] is not None:
            yield _difference(f"after minus {name}", entry, entry["p"])


def _difference(
    side: str,
    entry: Mapping[str, Any],
    p: float | None,
    adjusted: float | None = None,
    group: str = "",
) -> Rate:
    low, high = entry["ci95"] or (None, None)
    return Rate(
        side,
        "robust",
        "accuracy",
        entry["dimension"],
        group,
        entry.get("member", ""),
        value=entry["delta"],
        numerator=entry["delta"] * entry["n"],
        denominator=entry["n"],
        ci95_low=low,
        ci95_high=high,
        p=p,
        p_adjusted=adjusted,
        clusters=entry["clusters"],
    )

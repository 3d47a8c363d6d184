"""The tables of a run that go into a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medrm.evaluation.compare import Comparison
from medrm.evaluation.exports.text_tables import Table
from medrm.evaluation.figures import RunFiles
from medrm.evaluation.report import Report
from medrm.evaluation.tables import DASH, p_value, percent, points, with_interval

_HEAD = ("dimension", "before", "after", "difference (95 % CI)", "p (adjusted)")


def dimension_table(run: RunFiles) -> Table:
    """Returns every dimension's accuracy in percent: both sides, or that of one evaluation."""
    if run.comparison is None:
        return _one_side(run.after)
    rows = [
        [
            name,
            percent(entry["before"]),
            percent(entry["after"]),
            points(entry),
            p_value(entry["p"]),
            DASH if entry["fixed"] is None else f"{entry['fixed']} / {entry['broken']}",
            str(entry["n"]),
            percent(entry["ceiling"]),
        ]
        for name, entry in run.comparison["dimensions"].items()
    ]
    rules = set()
    if run.comparison["mean"] is not None:
        rules.add(len(rows))
        rows.append(_plain_row("mean", run.comparison["mean"]))
    if run.comparison["official"]:
        rules.add(len(rows))
        rows += [
            _plain_row(f"official: {name}", entry)
            for name, entry in run.comparison["official"].items()
        ]
    return Table(
        _caption(run.after), (*_HEAD, "fixed / broken", "n", "ceiling"), rows, frozenset(rules)
    )


def _plain_row(name: str, entry: Mapping[str, Any]) -> list[str]:
    """A row without a test."""
    delta = points({"ci95": None, **entry})
    return [name, percent(entry["before"]), percent(entry["after"]), delta, *[DASH] * 4]


def _one_side(report: Report) -> Table:
    columns = ("dimension", "accuracy (95 % CI)", "official", "read", "same in both orders", "n")
    robust = report["protocols"].get("robust", {}).get("dimensions", {})
    official = report["protocols"].get("official", {}).get("micro", {})
    rows = []
    for name in report["ceiling"]:
        one = robust.get(name) or {}
        rows.append(
            [
                name,
                with_interval(one.get("accuracy"), one.get("ci95")),
                percent(official.get(name)),
                percent(one.get("coverage")),
                percent(one.get("consistency")),
                str(one.get("n", DASH)),
            ]
        )
    return Table(f"{report['model']}. {_caption(report)}", columns, rows)


def _caption(report: Report) -> str:
    benchmark = report["benchmark"]
    return (
        f"Accuracy in percent on {benchmark['name']}: {benchmark['cases']} cases in "
        f"{benchmark['clusters']} clusters."
    )


def organ_table(run: RunFiles, dimension: str) -> Table | None:
    """Returns each organ's accuracy on one dimension, most cases first; None without organs."""
    if run.comparison is not None:
        return _organ_changes(run.comparison, dimension)
    groups = run.after["protocols"].get("robust", {}).get("groups", {}).get("organ", {})
    found = [(organ, one[dimension]) for organ, one in groups.items()]
    rows = [
        [organ, with_interval(one["accuracy"], one["ci95"]), str(one["n"])]
        for organ, one in sorted(found, key=lambda pair: (-pair[1]["n"], pair[0]))
    ]
    caption = f"Accuracy in percent on {dimension} by organ."
    return Table(caption, ("organ", "accuracy (95 % CI)", "n"), rows) if rows else None


def _organ_changes(comparison: Comparison, dimension: str) -> Table | None:
    cells = [one for one in comparison["cells"].get("organ", ()) if one["dimension"] == dimension]
    rows = [
        [
            one["member"],
            percent(one["before"]),
            percent(one["after"]),
            points(one),
            p_value(one["p_bh"]),
            str(one["n"]),
            str(one["clusters"]),
        ]
        for one in sorted(cells, key=lambda one: (-one["n"], one["member"]))
    ]
    columns = ("organ", *_HEAD[1:4], "p (BH over all cells)", "n", "clusters")
    caption = f"Accuracy in percent on {dimension} by organ; exploratory."
    return Table(caption, columns, rows) if rows else None


def official_table(reports: Sequence[Report]) -> Table | None:
    """Returns the released scorer's table, 4 decimals, with its means; None where it was not run.

    Args:
        reports: one below the other.
    """
    rows: list[list[str]] = []
    rules = set()
    columns: list[str] = []
    for report in reports:
        official = report["protocols"].get("official")
        if official is not None:
            columns = list(official["micro"])
            cells = official["organs"] | {
                f"mean over {what}": official[mean]
                for mean, what in (("micro", "cases"), ("macro", "organs"))
            }
            rules |= {len(rows), len(rows) + len(official["organs"])} - {0}
            rows += [
                [organ, report["model"], *(_decimals(values[name]) for name in columns)]
                for organ, values in cells.items()
            ]
    if not rows:
        return None
    head = ("modality", "model", *(f"{name}_acc" for name in columns))
    label = reports[-1]["protocols"]["official"]["label"]
    return Table(f"Released order, {label}.", head, rows, frozenset(rules))


def _decimals(value: float | None) -> str:
    return DASH if value is None else f"{value:.4f}"

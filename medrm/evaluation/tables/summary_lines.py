"""What reports and comparisons say in sentences beside their tables; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medrm.evaluation.compare import Comparison
from medrm.evaluation.measures.benchmark_metrics import CRITERIA
from medrm.evaluation.report import Report
from medrm.evaluation.tables.comparison_tables import CONTROLS
from medrm.evaluation.tables.table import counted, percent, with_interval

_IMPLIED_LEVELS = ("members", "subset", "subsets")
"""Levels of a metric that a line leaves out."""


def joint_lines(report: Report) -> list[str]:
    """Returns what the dimensions say jointly, one sentence for each measure."""
    means, structure = report["protocols"].get("robust", {}).get("means"), report["structure"]
    if means is None or structure is None:
        return []
    mean, joint = (with_interval(means[key]["accuracy"], means[key]["ci95"]) for key in _MEANS)
    lines = []
    if means["mean"]["n"]:
        lines.append(f"Mean over the dimensions: {mean} %.")
    if means["joint"]["n"]:
        lines.append(f"Right on all at once: {joint} % of {means['joint']['n']} cases.")
    if structure["halo"] is not None:
        lines.append(
            f"One answer on all dimensions: {percent(structure['all_same'])} %, the experts "
            f"{percent(structure['all_same_label'])} % ({structure['cases']} cases)."
        )
    return lines


_MEANS = ("mean", "joint")


def metric_lines(report: Report) -> list[str]:
    """Returns a line for each metric of the benchmark's authors, in percent."""
    return [
        f"Metric {metric} ({dimension}): "
        + ", ".join(f"{name} {percent(value)}" for name, value in _flat(numbers))
        + "."
        for dimension, metrics in report["metrics"].items()
        for metric, numbers in metrics.items()
    ]


def _flat(numbers: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Yields the numbers with their names joined; without HealthBench's 34 criteria."""
    for name, value in numbers.items():
        if not isinstance(value, Mapping):
            yield f"{prefix}{name}", value
        elif name != CRITERIA:
            yield from _flat(value, prefix if name in _IMPLIED_LEVELS else f"{prefix}{name} ")


def parsing_lines(parsing: Mapping[str, Any] | None) -> list[str]:
    """Returns how a judge's replies were read, one sentence for each parser."""
    if parsing is None:
        return []
    lines = []
    if set(parsing["states"]) != {"ok"}:
        lines.append(f"Calls: {counted(parsing['states'])}.")
    for parser in ("strict", "official"):
        counts = parsing[parser]
        if counts:
            notes = {
                name.replace("_", " "): counts[name]
                for name in ("suspect", "voided_but_readable")
                if counts.get(name)
            }
            stages = counted({**counts["stages"], **notes})
            lines.append(f"Replies read by the {parser} parser: {stages}.")
    return lines


def comparison_lines(comparison: Comparison) -> list[str]:
    """Returns what stands beside the headline, one sentence or two each."""
    gain, pictures = gain_sentence(comparison), comparison["pictures"]
    lines = [gain] if gain else []
    if pictures is not None:
        lines.append(pictures["sentence"])
    official = (comparison["official"] or {}).get(comparison["primary"]["dimension"])
    if official is not None and official["delta"] is not None:
        lines.append(
            f"Official protocol on {comparison['primary']['dimension']}: "
            f"{percent(official['before'])} % -> {percent(official['after'])} %."
        )
    least = comparison["minimum_detectable"]["points"]
    if least is not None:
        lines.append(f"Smallest gain that such cases show (power 80 %): {100 * least:.1f} points.")
    return [*lines, *comparison["notes"]]


def gain_sentence(comparison: Comparison) -> str | None:
    """Returns what the primary dimension's difference consists of; None unless both are judges.

    Where one side wrote nothing that could be read, the split says nothing about judgement.
    """
    dimension, coverage = comparison["primary"]["dimension"], comparison["guardrails"]["coverage"]
    gain = (comparison["gain"] or {}).get(dimension)
    if gain is None:
        return None
    mute = [side for side in ("before", "after") if coverage[side] == 0]
    if not mute:
        return (
            f"Of the difference on {dimension}, {100 * gain['judgement']:+.1f} points come from "
            f"judging better what was read, {100 * gain['format']:+.1f} points from how much could "
            "be read."
        )
    sentence = (
        f"Nothing could be read {' and '.join(mute)} on {dimension}, so the difference says "
        "nothing about judging better."
    )
    control = comparison["controls"].get("base_skeleton")
    if "before" in mute and control is not None:
        sentence += (
            f" With the JSON given, the base is right in {percent(control['before'])} % "
            f"({CONTROLS['base_skeleton']})."
        )
    return sentence

"""Figures of what a model's probabilities are worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from medrm.evaluation.figures import canvas
from medrm.evaluation.report import robust_of
from medrm.evaluation.run_files import RunFiles

_STYLES = {
    "before": (canvas.OLD, canvas.BACK, "--"),
    "after": (canvas.NEW, canvas.NEW, "-"),
    "model": (canvas.NEW, canvas.NEW, "-"),
}
"""Colour, filling and dashes of each side."""


def reliability(run: RunFiles) -> Figure | None:
    """Returns accuracy by confidence with Wilson intervals, over the share of less sure cases.

    The bins hold equally many cases, so their spread is what the lower panel shows. None where no
    side has probabilities.
    """
    calibrations = _calibrations(run)
    if not calibrations:
        return None
    figure = canvas.sheet(f"Reliability: {canvas.short(run.primary)}", 268)
    upper, lower = canvas.axes(figure, 36, 96, 90, 24), canvas.axes(figure, 36, 44, 90, 182)
    upper.plot([50, 100], [50, 100], color=canvas.LINE, linewidth=1, zorder=0)
    for number, (side, calibration) in enumerate(calibrations.items()):
        colour, fill, dashes = _STYLES[side]
        line: dict[str, Any] = {"linestyle": dashes, "color": colour, "clip_on": False}
        bins = [group for group in calibration["bins"] if group["n"]]
        confidences = [100 * group["confidence"] for group in bins]
        for x, group in zip(confidences, bins, strict=True):
            bounds = [100 * group["low"], 100 * group["high"]]
            upper.plot([x, x], bounds, color=colour, linewidth=1.2)
        accuracies = [100 * group["accuracy"] for group in bins]
        dots: dict[str, Any] = {"marker": "o", "markersize": 5, "markerfacecolor": fill}
        upper.plot(confidences, accuracies, linewidth=1, **dots, **line)
        counts = [group["n"] for group in bins]
        below = [100 * (sum(counts[:i]) + n / 2) / sum(counts) for i, n in enumerate(counts)]
        lower.plot(confidences, below, linestyle=dashes, color=colour, linewidth=1.2)
        ece, brier = f"ECE {100 * calibration['ece']:.1f} %", f"Brier {calibration['brier']:.3f}"
        lines = [_title(side), ece, brier, f"n {calibration['n']}"]
        canvas.list_beside(upper, lines, 1 - 0.5 * number, 0.1, colour)
    for axes in (upper, lower):
        axes.set_xlim(48, 101)
        axes.set_ylim(0, 101)
        axes.tick_params(axis="y", labelsize=canvas.SMALL, labelcolor=canvas.SOFT)
    upper.tick_params(axis="x", labelbottom=False)
    upper.set_ylabel("right (%)")
    lower.set_ylabel("less sure (%)")
    lower.set_xlabel("confidence in the named answer (%)")
    canvas.note(figure, "bars: 95 % Wilson intervals; below the diagonal: too sure")
    return figure


def risk_coverage(run: RunFiles) -> Figure | None:
    """Returns the share of wrong verdicts among the surest ones; None without probabilities."""
    calibrations = {
        side: calibration
        for side, calibration in _calibrations(run).items()
        if calibration["risk_coverage"]
    }
    if not calibrations:
        return None
    figure = canvas.sheet(f"Wrong among the surest (%): {canvas.short(run.primary)}", 190)
    axes = canvas.axes(figure, 36, 46, 98, 26)
    for number, (side, calibration) in enumerate(calibrations.items()):
        colour, _, dashes = _STYLES[side]
        shares, risks = zip(*calibration["risk_coverage"], strict=True)
        percents = [[100 * value for value in values] for values in (shares, risks)]
        axes.plot(*percents, linestyle=dashes, color=colour, lw=1.5)
        lines = [_title(side), f"all: {100 * risks[-1]:.1f} %"]
        if calibration["accuracy_at_80"] is not None:
            lines.append(f"surest 80 %: {100 - 100 * calibration['accuracy_at_80']:.1f} %")
        canvas.list_beside(axes, lines, 1 - 0.5 * number, 0.13, colour)
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    canvas.value_axis(axes)
    axes.set_xlabel("share of cases, the surest first (%)")
    canvas.note(figure, "a curve that rises: where the model is sure it is right")
    return figure


def _title(side: str) -> str:
    return "the model" if side == "model" else side


def _calibrations(run: RunFiles) -> dict[str, Mapping[str, Any]]:
    """The `calibration` of the primary dimension, of each side that states probabilities."""
    measures = {side: robust_of(report).get(run.primary) for side, report in run.sides.items()}
    return {
        side: of_side["calibration"]
        for side, of_side in measures.items()
        if of_side and of_side["calibration"]
    }

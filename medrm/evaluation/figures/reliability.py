"""Figures of what a model's probabilities are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medrm.evaluation.figures.canvas import (
    BACK,
    LINE,
    NEW,
    OLD,
    SMALL,
    SOFT,
    axes,
    note,
    sheet,
    short,
)

Calibrated = Mapping[str, Any] | None
"""The `calibration` of a dimension in report.json."""

_STYLES = (("before", OLD, BACK, "--"), ("after", NEW, NEW, "-"))
_ALONE = "the model"
"""What the second side is called where there is no first."""


def reliability(
    dimension: str, before: Calibrated, after: Calibrated, *, alone: bool = False
) -> Figure | None:
    """Returns accuracy by confidence with Wilson intervals, over the share of less sure cases.

    The bins hold equally many cases, so their spread is what the lower panel shows.

    None where neither side has probabilities.

    Args:
        dimension: in the title.
        before: calibration before.
        after: that after.
        alone: whether there is no before at all.
    """
    sides = _sides(before, after)
    if not sides:
        return None
    figure = sheet(f"Reliability: {short(dimension)}", 268)
    place = axes(figure, 36, 96, 90, 24)
    lower = axes(figure, 36, 44, 90, 182)
    place.plot([50, 100], [50, 100], color=LINE, linewidth=1, zorder=0)
    for number, (found, (name, colour, fill, dashes)) in enumerate(sides):
        bins = [one for one in found["bins"] if one["n"]]
        for one in bins:
            x = 100 * one["confidence"]
            place.plot([x, x], [100 * one["low"], 100 * one["high"]], color=colour, linewidth=1.2)
        xs = [100 * one["confidence"] for one in bins]
        ys = [100 * one["accuracy"] for one in bins]
        place.plot(
            xs,
            ys,
            linestyle=dashes,
            color=colour,
            linewidth=1,
            marker="o",
            markersize=5,
            markerfacecolor=fill,
            clip_on=False,
        )
        counts = [one["n"] for one in bins]
        below = [100 * (sum(counts[:i]) + n / 2) / sum(counts) for i, n in enumerate(counts)]
        lower.plot(xs, below, linestyle=dashes, color=colour, linewidth=1.2)
        lines = [
            _ALONE if alone else name,
            f"ECE {100 * found['ece']:.1f} %",
            f"Brier {found['brier']:.3f}",
        ]
        _list(place, [*lines, f"n {found['n']}"], 1 - 0.5 * number, 0.1, colour)
    for one in (place, lower):
        one.set_xlim(48, 101)
        one.tick_params(axis="y", labelsize=SMALL, labelcolor=SOFT)
    place.tick_params(axis="x", labelbottom=False)
    place.set_ylim(0, 101)
    place.set_ylabel("right (%)")
    lower.set_ylabel("less sure (%)")
    lower.set_ylim(0, 101)
    lower.set_xlabel("confidence in the named answer (%)")
    note(figure, "bars: 95 % Wilson intervals; below the diagonal: too sure")
    return figure


def risk_coverage(
    dimension: str, before: Calibrated, after: Calibrated, *, alone: bool = False
) -> Figure | None:
    """Returns the share of wrong verdicts among the surest ones; None without probabilities."""
    sides = [(found, style) for found, style in _sides(before, after) if found["risk_coverage"]]
    if not sides:
        return None
    figure = sheet(f"Wrong among the surest (%): {short(dimension)}", 190)
    place = axes(figure, 36, 46, 98, 26)
    for number, (found, (name, colour, _, dashes)) in enumerate(sides):
        xs, ys = zip(*found["risk_coverage"], strict=True)
        place.plot(
            [100 * x for x in xs], [100 * y for y in ys], linestyle=dashes, color=colour, lw=1.5
        )
        lines = [_ALONE if alone else name, f"all: {100 * ys[-1]:.1f} %"]
        if found["accuracy_at_80"] is not None:
            lines.append(f"surest 80 %: {100 - 100 * found['accuracy_at_80']:.1f} %")
        _list(place, lines, 1 - 0.5 * number, 0.13, colour)
    place.set_xlim(0, 100)
    place.set_ylim(bottom=0)
    place.tick_params(axis="y", labelsize=SMALL, labelcolor=SOFT)
    place.grid(axis="y", color=LINE, linewidth=0.5)
    place.set_xlabel("share of cases, the surest first (%)")
    note(figure, "a curve that rises: where the model is sure it is right")
    return figure


def _list(place: Axes, lines: Sequence[str], top: float, step: float, colour: str) -> None:
    """Writes lines beside the axes, the first one in the colour of a curve."""
    for index, line in enumerate(lines):
        place.text(
            1.04,
            top - step * index,
            line,
            transform=place.transAxes,
            size=SMALL,
            color=SOFT if index else colour,
            weight="normal" if index else "bold",
            va="top",
        )


def _sides(
    before: Calibrated, after: Calibrated
) -> list[tuple[Mapping[str, Any], tuple[str, str, str, str]]]:
    return [
        (found, style)
        for found, style in zip((before, after), _STYLES, strict=True)
        if found is not None
    ]

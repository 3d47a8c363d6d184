"""Figures of what else than quality moves verdicts: position, length, and one impression of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from medrm.evaluation.figures import canvas
from medrm.evaluation.report import robust_of
from medrm.evaluation.run_files import RunFiles

_SQUARE = 174.0
"""Points of the side of a square plot."""

_LEAST_DISTANCE = 4.0
"""Percent between two points whose numbers do not cover each other."""


def position(run: RunFiles) -> Figure | None:
    """Returns accuracy with the preferred answer shown second against shown first, by dimension.

    On the diagonal the order does not matter; towards a corner it decides. Both accuracies are the
    robust one plus and minus half of `position_gap`. None for scalar models.
    """
    before = {} if run.before is None else robust_of(run.before)
    points = {
        name: (_by_order(before.get(name)), after)
        for name, measures in robust_of(run.after).items()
        if (after := _by_order(measures)) is not None
    }
    if not points:
        return None
    figure = canvas.sheet("Accuracy by place of the preferred answer (%)", _SQUARE + 70)
    axes = canvas.axes(figure, 36, 46, canvas.WIDTH - 36 - _SQUARE, 24)
    axes.plot([0, 100], [0, 100], color=canvas.LINE, linewidth=1, zorder=0)
    numbered: list[tuple[float, float]] = []
    for number, (name, (earlier, after)) in enumerate(points.items(), start=1):
        if earlier is not None and earlier != after:
            style = {"arrowstyle": "-|>", "color": canvas.SOFT, "shrinkA": 4, "shrinkB": 4}
            axes.annotate("", after, earlier, arrowprops=style, annotation_clip=False)
            canvas.dot(axes, *earlier, canvas.OLD, canvas.BACK)
        canvas.dot(axes, *after, canvas.NEW, canvas.NEW)
        if all(max(abs(after[0] - x), abs(after[1] - y)) > _LEAST_DISTANCE for x, y in numbered):
            axes.annotate(str(number), after, (5, 4), textcoords="offset points", size=canvas.SMALL)
            numbered.append(after)
        height = 1 - 0.13 * (number - 1)
        if height >= 0:
            lines = [f"{number} {canvas.short(name, 18)}", f" {after[0]:.1f} | {after[1]:.1f}"]
            canvas.list_beside(axes, lines, height, 0.055, canvas.INK, "normal", 1.08, "baseline")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.tick_params(axis="y", labelsize=canvas.SMALL, labelcolor=canvas.SOFT)
    axes.set_xlabel("preferred answer shown first")
    axes.set_ylabel("shown second")
    sides = "" if run.before is None else "hollow: before, filled: after; "
    canvas.note(figure, f"{sides}on the diagonal the order does not matter")
    return figure


def _by_order(measures: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """Accuracy in percent with the preferred answer shown first, and shown second."""
    if measures is None or measures["accuracy"] is None or measures["position_gap"] is None:
        return None
    middle, half = 100 * measures["accuracy"], 50 * measures["position_gap"]
    return middle + half, middle - half


def length(run: RunFiles) -> Figure | None:
    """Returns how often the longer answer is chosen, by the model and by the labels, by dimension.

    None where no pair's answers differ in length.
    """
    earlier = {} if run.before is None else run.before["length"]
    measured = {
        name: measures
        for name, measures in run.after["length"].items()
        if measures and measures["longer_rate"] is not None
    }
    if not measured:
        return None
    names = canvas.named(list(measured))
    title, height = "How often the longer answer is preferred (%)", 66 + 19 * len(names)
    figure, axes = canvas.row_chart(title, names, height, bottom=34, right=84)
    for row, (name, measures) in enumerate(measured.items()):
        label, after = measures["longer_rate_label"], 100 * measures["longer_rate"]
        before = (earlier.get(name) or {}).get("longer_rate")
        text = f"{after:.0f}"
        if label is not None:
            style: dict[str, Any] = {"markersize": 15, "markeredgewidth": 2, "color": canvas.INK}
            axes.plot(100 * label, row, marker="|", **style)
        if before is not None:
            canvas.dot(axes, 100 * before, row, canvas.OLD, canvas.BACK)
            text = f"{100 * before:.0f} \u2192 {text}"
        canvas.dot(axes, after, row, canvas.NEW, canvas.NEW)
        canvas.beside(axes, row, text if label is None else f"{text} | {100 * label:.0f}")
    axes.set_xlim(-2, 102)
    axes.axvline(50, color=canvas.LINE, linewidth=1, zorder=0)
    sides = "dot: the model" if run.before is None else "hollow: before, filled: after"
    canvas.note(figure, f"{sides}, bar: the labels, on the same pairs")
    return figure


def halo(run: RunFiles) -> Figure | None:
    """Returns the correlations (phi) between dimensions, of the verdicts and of the labels.

    Verdicts that agree more across dimensions than the experts' do come from one impression of all.
    None below two dimensions.
    """
    structure = run.after["structure"]
    if structure is None or structure["phi"] is None or len(structure["dimensions"]) < 2:
        return None
    names = canvas.named(structure["dimensions"], 18)
    size = len(names)
    font_size = 8.0 if size <= 4 else 7.0 if size <= 7 else 5.0
    left = canvas.margin(names)
    side = (canvas.WIDTH - left - 22) / 2
    figure = canvas.sheet("Correlation of the dimensions (phi, in hundredths)", side + 76)
    for panel, (title, key) in enumerate((("the model", "phi"), ("the labels", "phi_label"))):
        start = left + panel * (side + 14)
        axes = canvas.axes(figure, start, 36, canvas.WIDTH - start - side, 40)
        axes.set_title(title, size=canvas.SMALL, color=canvas.SOFT, loc="left")
        for row, values in enumerate(structure[key]):
            for column, value in enumerate(values):
                if row != column:
                    text = "\u2013" if value is None else str(round(100 * value))
                    canvas.tile(axes, row, column, 0.5 * (value or 0.0), text, font_size)
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_xticks(range(size), [str(index + 1) for index in range(size)])
        axes.tick_params(axis="x", length=0)
        canvas.rows(axes, [f"{name} {index + 1}" for index, name in enumerate(names)])
        axes.set_ylim(size - 0.5, -0.5)
        axes.tick_params(axis="y", labelleft=panel == 0, labelsize=canvas.SMALL)
        axes.spines["bottom"].set_visible(False)
    canvas.note(figure, "above the labels' values: verdicts follow one impression of the answers")
    return figure

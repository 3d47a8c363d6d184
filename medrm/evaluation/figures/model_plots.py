"""Figures of models: what moves their verdicts, their probabilities, replies and training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medrm.evaluation.figures import canvas
from medrm.evaluation.report import RunFiles, robust_of
from medrm.evaluation.tables.table import short

_SQUARE = 174.0
"""Points of the side of a square plot."""

_LEAST_DISTANCE = 4.0
"""Percent between two points whose numbers do not cover each other."""

_STYLES = {
    "before": ("before", canvas.OLD, canvas.BACK, "--"),
    "after": ("after", canvas.NEW, canvas.NEW, "-"),
    "model": ("the model", canvas.NEW, canvas.NEW, "-"),
}
"""Name, colour, filling and dashes of each side."""

_SHARES = ("confidence", "accuracy", "low", "high")
"""Of a bin of the reliability diagram."""

_MOST_OUTCOMES = 10
"""Outcomes that the legend of the replies names."""

_PANEL = 124.0
"""Points of one panel's height in the figure of a training."""

Points = list[tuple[float, float]]
"""Step and value."""


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
    numbered: Points = []
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
            lines = [f"{number} {short(name, 18)}", f" {after[0]:.1f} | {after[1]:.1f}"]
            canvas.list_beside(axes, lines, 1.08, height, 0.055)
    axes.set(xlim=(0, 100), ylim=(0, 100))
    axes.set(xlabel="preferred answer shown first", ylabel="shown second")
    sides = "" if run.before is None else "hollow: before, filled: after; "
    canvas.note(figure, f"{sides}on the diagonal the order does not matter")
    return figure


def _by_order(measures: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """Accuracy in percent with the preferred answer shown first, and shown second."""
    if measures is None or None in (measures["accuracy"], measures["position_gap"]):
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
    names, title = list(map(short, measured)), "How often the longer answer is preferred (%)"
    figure, axes = canvas.row_chart(title, names, 66 + 19 * len(names), bottom=34, right=84)
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
    names = [short(name, 18) for name in structure["dimensions"]]
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


def reliability(run: RunFiles) -> Figure | None:
    """Returns accuracy by confidence with Wilson intervals, over the share of less sure cases.

    The bins hold equally many cases, so their spread is what the lower panel shows. None where no
    side has probabilities.
    """
    calibrations = _calibrations(run)
    if not calibrations:
        return None
    figure = canvas.sheet(f"Reliability: {short(run.primary)}", 268)
    upper, lower = canvas.axes(figure, 36, 96, 90, 24), canvas.axes(figure, 36, 44, 90, 182)
    upper.plot([50, 100], [50, 100], color=canvas.LINE, linewidth=1, zorder=0)
    for number, (side, calibration) in enumerate(calibrations.items()):
        title, colour, fill, dashes = _STYLES[side]
        line: dict[str, Any] = {"linestyle": dashes, "color": colour}
        shares = [[100 * group[key] for group in calibration["bins"]] for key in _SHARES]
        confidences, accuracies, low, high = shares
        upper.vlines(confidences, low, high, color=colour, linewidth=1.2)
        dots: dict[str, Any] = {"marker": "o", "markersize": 5, "markerfacecolor": fill}
        upper.plot(confidences, accuracies, linewidth=1, clip_on=False, **dots, **line)
        counts = np.array([group["n"] for group in calibration["bins"]])
        below = 100 * (counts.cumsum() - counts / 2) / counts.sum()
        lower.plot(confidences, below, linewidth=1.2, **line)
        ece, brier = f"ECE {100 * calibration['ece']:.1f} %", f"Brier {calibration['brier']:.3f}"
        lines = [title, ece, brier, f"n {calibration['n']}"]
        first = {"color": colour, "weight": "bold"}
        canvas.list_beside(upper, lines, 1.04, 1 - 0.5 * number, 0.1, va="top", **first)
    for axes in (upper, lower):
        axes.set(xlim=(48, 101), ylim=(0, 101))
    upper.tick_params(axis="x", labelbottom=False)
    upper.set_ylabel("right (%)")
    lower.set(xlabel="confidence in the named answer (%)", ylabel="less sure (%)")
    canvas.note(figure, "bars: 95 % Wilson intervals; below the diagonal: too sure")
    return figure


def risk_coverage(run: RunFiles) -> Figure | None:
    """Returns the share of wrong verdicts among the surest ones; None without probabilities."""
    calibrations = _calibrations(run)
    if not calibrations:
        return None
    figure = canvas.sheet(f"Wrong among the surest (%): {short(run.primary)}", 190)
    axes = canvas.axes(figure, 36, 46, 98, 26)
    for number, (side, calibration) in enumerate(calibrations.items()):
        title, colour, _, dashes = _STYLES[side]
        shares, risks = 100 * np.array(calibration["risk_coverage"]).T
        axes.plot(shares, risks, linestyle=dashes, color=colour, lw=1.5)
        surest = f"surest 80 %: {100 - 100 * calibration['accuracy_at_80']:.1f} %"
        lines = [title, f"all: {risks[-1]:.1f} %", surest]
        first = {"color": colour, "weight": "bold"}
        canvas.list_beside(axes, lines, 1.04, 1 - 0.5 * number, 0.13, va="top", **first)
    axes.set_xlim(0, 100)
    canvas.value_axis(axes)
    axes.set_xlabel("share of cases, the surest first (%)")
    canvas.note(figure, "a curve that rises: where the model is sure it is right")
    return figure


def _calibrations(run: RunFiles) -> dict[str, Mapping[str, Any]]:
    """The `calibration` of the primary dimension, of each side that states probabilities."""
    measures = {side: robust_of(report).get(run.primary) for side, report in run.sides.items()}
    stated = {side: (of_side or {}).get("calibration") for side, of_side in measures.items()}
    return {side: calibration for side, calibration in stated.items() if calibration}


def funnel(run: RunFiles) -> Figure | None:
    """Returns how many replies each rule of each parser read, and why others were not wholly read.

    None unless a judge wrote text. What was read is blue, from the strictest rule on ever paler;
    `none` counts replies of which nothing was read, split by its reasons where they add up.
    """
    bars = [
        (parser if side == "model" else f"{parser} {side}", _outcomes(report["parsing"][parser]))
        for parser in ("strict", "official")
        for side, report in run.sides.items()
        if report["parsing"] is not None and report["parsing"][parser] is not None
    ]
    if not bars:
        return None
    colours = _colours(outcome for _, counts in bars for outcome in counts)
    legend_lines = (min(len(colours), _MOST_OUTCOMES) + 1) // 2
    height, bottom = 52 + 20 * len(bars) + 13 * legend_lines, 28 + 13 * legend_lines
    names, title = [name for name, _ in bars], "How the replies were read"
    figure, axes = canvas.row_chart(title, names, height, bottom=bottom, right=44)
    for row, (_, counts) in enumerate(bars):
        pieces = [(count, *colours[outcome]) for outcome, count in counts.items()]
        canvas.stacked_bar(axes, row, pieces, least_labelled=12.0)
        canvas.beside(axes, row, f"n {sum(counts.values())}", canvas.SOFT)
    canvas.percent_axis(axes)
    for index, (outcome, (colour, _, alpha)) in enumerate(list(colours.items())[:_MOST_OUTCOMES]):
        x, y = 6 + 158 * (index % 2), 4 + 13 * (legend_lines - 1 - index // 2)
        canvas.legend_entry(figure, short(outcome, 32), x, y, colour, alpha, 11)
    return figure


def _outcomes(parsing: Mapping[str, Any]) -> dict[str, int]:
    """Counts by the rule that read a reply, then of those that none read."""
    stages = dict(parsing["stages"])
    unread = stages.pop("none", 0)
    counts = {f"read by rule: {stage}": count for stage, count in stages.items()}
    if unread and sum(parsing["unread"].values()) == unread:
        reasons = parsing["unread"].items()
        return counts | {f"unread: {reason}": count for reason, count in reasons}
    return counts | ({"unread": unread} if unread else {})


def _colours(outcomes: Iterable[str]) -> dict[str, tuple[str, str, float]]:
    """Colour, that of its label, and opacity of each outcome, those that were read first."""
    distinct = list(dict.fromkeys(outcomes))
    read = [outcome for outcome in distinct if outcome.startswith("read")]
    unread = [outcome for outcome in distinct if outcome not in read]
    return {
        outcome: (colour, canvas.BACK if index < 2 else canvas.INK, max(0.2, 1.0 - 0.27 * index))
        for colour, group in ((canvas.GOOD, read), (canvas.BAD, unread))
        for index, outcome in enumerate(group)
    }


def training(run: RunFiles) -> Figure | None:
    """Returns the logged loss and accuracy over steps; None where neither was logged.

    The accuracy of the benchmark is a diamond at the last step: it was looked at once.
    """
    if run.comparison is None:
        return None
    key, title = f"accuracy_{run.primary}", f"accuracy on {short(run.primary)} (%)"
    panels = {title: _logged(run.metrics, key, 100.0), "loss": _logged(run.metrics, "loss", 1.0)}
    panels = {title: curves for title, curves in panels.items() if any(curves)}
    if not panels:
        return None
    figure = canvas.sheet("Training", 40 + _PANEL * len(panels))
    last = max(step for curves in panels.values() for points in curves for step, _ in points)
    for number, (title, curves) in enumerate(reversed(panels.items())):
        top = 34 + (len(panels) - 1 - number) * _PANEL
        axes = canvas.axes(figure, 34, 44 + number * _PANEL, 54, top)
        axes.set_title(title, loc="left", size=canvas.SMALL, color=canvas.SOFT)
        _draw(axes, *curves)
        if title != "loss":
            _reference(axes, run.comparison["primary"], last)
        axes.set_xlim(0, last * 1.03)
        if number == 0:
            axes.set_xlabel("step")
    look = "; diamond: the one look at the benchmark" if len(panels) > 1 else ""
    canvas.note(figure, f"dashed: training, solid: development{look}")
    return figure


def _logged(metrics: Sequence[Mapping[str, Any]], key: str, factor: float) -> tuple[Points, Points]:
    """Step and value as logged on training and on development cases."""
    training_curve, development_curve = (
        [(float(line["step"]), factor * float(line[name])) for line in metrics if name in line]
        for name in (key, f"eval_{key}")
    )
    return training_curve, development_curve


def _draw(axes: Axes, on_training: Points, on_development: Points) -> None:
    """Both curves, and the last value of the one that counts more."""
    for points, side, shape in ((on_training, "before", ""), (on_development, "after", "o")):
        if points:
            _, colour, _, dashes = _STYLES[side]
            style: dict[str, Any] = {"linestyle": dashes, "marker": shape, "markersize": 4}
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4, **style)
    points = on_development or on_training
    style = {"color": canvas.NEW if on_development else canvas.OLD, "annotation_clip": False}
    style |= {"textcoords": "offset points", "va": "center", "size": canvas.SMALL}
    axes.annotate(f"{points[-1][1]:.3g}", points[-1], (8, 0), **style)
    canvas.value_axis(axes)


def _reference(axes: Axes, primary: Mapping[str, Any], last: float) -> None:
    """Chance, the ceiling where it is known, and the benchmark's accuracy after training."""
    axes.set_ylim(0, 104)
    for name, value in (("chance", 0.5), ("ceiling", primary["ceiling"])):
        if value is not None:
            axes.axhline(100 * value, color=canvas.SOFT, linewidth=0.8, linestyle=(0, (1, 2)))
            axes.text(0, 100 * value - 2, f" {name}", size=7.5, color=canvas.SOFT, va="top")
    if primary["after"] is not None:
        canvas.dot(axes, last, 100 * primary["after"], canvas.NEW, canvas.BACK, shape="D")

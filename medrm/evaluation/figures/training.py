"""The figure of a training's course."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medrm.evaluation.figures import canvas
from medrm.evaluation.run_files import RunFiles

_PANEL = 124.0
"""Points of one panel's height."""

Points = list[tuple[float, float]]
"""Step and value."""


def training(run: RunFiles) -> Figure | None:
    """Returns the logged loss and accuracy over steps; None where neither was logged.

    The accuracy of the benchmark is a diamond at the last step: it was looked at once.
    """
    if run.comparison is None:
        return None
    key, title = f"accuracy_{run.primary}", f"accuracy on {canvas.short(run.primary)} (%)"
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
    for points, colour, dashes, shape in (
        (on_training, canvas.OLD, "--", ""),
        (on_development, canvas.NEW, "-", "o"),
    ):
        if points:
            style: dict[str, Any] = {
                "linestyle": dashes,
                "marker": shape,
                "markersize": 4,
                "linewidth": 1.4,
            }
            axes.plot(*zip(*points, strict=True), color=colour, **style)
    points = on_development or on_training
    axes.annotate(
        f"{points[-1][1]:.3g}",
        points[-1],
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        size=canvas.SMALL,
        color=canvas.NEW if on_development else canvas.OLD,
        annotation_clip=False,
    )
    axes.set_ylim(bottom=0)
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

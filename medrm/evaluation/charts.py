"""Positions of lines and dots in the report's charts, in percent of a chart's width and height."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TICKS = 4
"""A chart has at most this many steps between its ticks."""


@dataclass(frozen=True, slots=True)
class Line:
    """One series; `path` is the `d` of an SVG path in a 100 x 100 box, `style` its CSS class."""

    name: str
    style: str
    path: str
    last: float


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled place on an axis."""

    label: str
    at: float


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart over training steps."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    references: tuple[Tick, ...]


def step_chart(
    title: str,
    metrics: Sequence[Mapping[str, Any]],
    series: Mapping[str, str],
    *,
    share: bool = False,
    references: Mapping[str, float] | None = None,
) -> Chart | None:
    """Returns a chart of logged values over steps, or None where nothing of it was logged.

    Args:
        title: what is shown.
        metrics: the lines of metrics.jsonl.
        series: logged key to the name it is shown under; the n-th gets the style `line-n`.
        share: the axis runs from 0 to 100 %; otherwise from 0 to the largest value.
        references: horizontal lines, name to value.
    """
    points = {
        key: [(float(line["step"]), float(line[key])) for line in metrics if key in line]
        for key in series
    }
    points = {key: found for key, found in points.items() if found}
    if not points:
        return None
    last_step = max(step for found in points.values() for step, _ in found) or 1.0
    top = 1.0 if share else max(value for found in points.values() for _, value in found) or 1.0
    lines = [
        Line(
            series[key],
            f"line-{number}",
            _path([(100 * step / last_step, 100 - 100 * value / top) for step, value in found]),
            found[-1][1],
        )
        for number, (key, found) in enumerate(points.items())
    ]
    heights = [top * number / TICKS for number in range(TICKS + 1)]
    labels = [f"{100 * height:.0f} %" if share else f"{height:.2f}" for height in heights]
    return Chart(
        title,
        tuple(lines),
        tuple(
            Tick(f"{last_step * number / TICKS:.0f}", 100 * number / TICKS)
            for number in range(TICKS + 1)
        ),
        tuple(
            Tick(label, 100 - 100 * height / top)
            for label, height in zip(labels, heights, strict=True)
        ),
        tuple(Tick(name, 100 - 100 * value / top) for name, value in (references or {}).items()),
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    """A line through the points; a single point becomes a dot."""
    if len(points) == 1:
        return f"M {points[0][0]:.2f} {points[0][1]:.2f} h 0"
    return "M " + " L ".join(f"{x:.2f} {y:.2f}" for x, y in points)

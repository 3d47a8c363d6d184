"""Figures of a comparison over seeds: each training's gain, and what the recipe gains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medrm.evaluation.comparison.sentences import SIGNIFICANCE
from medrm.evaluation.figures import canvas
from medrm.evaluation.tables.table import short

Seeds = Mapping[str, Any]
"""The content of `seeds.json`."""


def seeds(comparison: Seeds) -> Figure | None:
    """Returns each seed's difference on the primary dimension, and below them the recipe's.

    The seeds' intervals are over the cases, the recipe's, a diamond, over seeds and cases. A marker
    is hollow where its interval holds 0.
    """
    primary = comparison["primary"]
    if primary["delta"] is None:
        return None
    rows = [(f"seed {run['seed']}", run, "o") for run in comparison["by_seed"]]
    rows.append(("seeds and cases", primary, "D"))
    names = [name for name, *_ in rows]
    title = short(f"{primary['dimension']}: after minus before, in points", 60)
    figure, axes = canvas.row_chart(title, names, 66 + 19 * len(rows), bottom=34, right=104)
    for row, (_, difference, shape) in enumerate(rows):
        bounds = difference["ci95"]
        clear = bounds is not None and not bounds[0] <= 0 <= bounds[1]
        _difference(axes, row, difference, shape, clear)
    _zero(axes)
    canvas.note(figure, "95 % intervals, of a seed over the cases alone; hollow: it holds 0")
    return figure


def seed_dimensions(comparison: Seeds) -> Figure | None:
    """Returns each dimension's difference over seeds and cases, and above its line the seeds.

    A marker is hollow where p, adjusted over the dimensions, is 0.05 or more.
    """
    entries = {
        name: entry
        for name, entry in comparison["dimensions"].items()
        if entry["delta"] is not None
    }
    if not entries:
        return None
    names = [short(name) for name in entries]
    title = "Gains over seeds and cases, in points"
    figure, axes = canvas.row_chart(title, names, 66 + 22 * len(names), bottom=34, right=104)
    for row, entry in enumerate(entries.values()):
        for gain in entry["delta_spread"]["by_seed"]:
            axes.plot(100 * gain, row - 0.27, marker="|", markersize=7, color=canvas.SOFT)
        clear = entry["p"] is not None and entry["p"] < SIGNIFICANCE
        _difference(axes, row, entry, "D", clear)
    _zero(axes)
    canvas.note(figure, "95 % intervals; strokes: the seeds; hollow: adjusted p \u2265 0.05")
    return figure


def _difference(
    axes: Axes, row: int, difference: Mapping[str, Any], shape: str, clear: bool
) -> None:
    """Draws a difference with its interval, and writes both beside it."""
    delta: float = difference["delta"]
    bounds: Sequence[float] = difference["ci95"] or (delta, delta)
    low, high = max(-1.0, bounds[0]), min(1.0, bounds[1])
    axes.plot([100 * low, 100 * high], [row, row], color=canvas.NEW, linewidth=1.6)
    fill = canvas.NEW if clear else canvas.BACK
    canvas.dot(axes, 100 * delta, row, canvas.NEW, fill, shape=shape)
    interval = f" ({100 * low:+.1f}, {100 * high:+.1f})" if difference["ci95"] else ""
    canvas.beside(axes, row, f"{100 * delta:+.1f}{interval}")


def _zero(axes: Axes) -> None:
    """Draws the line of no difference, and keeps it inside."""
    axes.axvline(0, color=canvas.SOFT, linewidth=1)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, -1), max(high, 1))

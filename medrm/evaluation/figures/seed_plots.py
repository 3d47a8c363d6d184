"""Figures of a comparison over seeds: each training's gain, and what the recipe gains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
        canvas.difference_row(axes, row, difference, shape, clear)
    canvas.zero_line(axes)
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
        canvas.difference_row(axes, row, entry, "D", clear)
    canvas.zero_line(axes)
    canvas.note(figure, "95 % intervals; strokes: the seeds; hollow: adjusted p \u2265 0.05")
    return figure

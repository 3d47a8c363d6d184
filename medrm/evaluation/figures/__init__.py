"""Figures of a run or of one evaluation, for the page and as files; imports no torch.

To add a figure: write a function of the run's files in one of these modules, drawn on
`canvas.sheet`,
and put it into `FIGURES`. A section of the page shows it by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.figure import Figure

from medrm.evaluation.figures import comparison_plots, model_plots
from medrm.evaluation.figures.canvas import drawing, svg_inline, write_figure
from medrm.evaluation.report import RunFiles

FIGURES: dict[str, Callable[[RunFiles], Figure | None]] = {
    "forest": comparison_plots.forest,
    "heatmap": comparison_plots.heatmap,
    "transitions": comparison_plots.transitions,
    "position": model_plots.position,
    "reliability": model_plots.reliability,
    "risk_coverage": model_plots.risk_coverage,
    "length": model_plots.length,
    "halo": model_plots.halo,
    "funnel": model_plots.funnel,
    "training": model_plots.training,
}
"""Name to what draws the figure; None where the run has no data for it."""


def inline_figures(run: RunFiles) -> dict[str, str]:
    """Returns name -> `<svg>` element of each figure that the run has data for."""
    with drawing():
        return {name: svg_inline(figure, name) for name, figure in _drawn(run)}


def write_plots(run: RunFiles, folder: Path) -> list[Path]:
    """Writes each figure as `<name>.svg` and `<name>.png` and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    with drawing():
        return [path for name, figure in _drawn(run) for path in write_figure(figure, name, folder)]


def _drawn(run: RunFiles) -> Iterator[tuple[str, Figure]]:
    """Yields each figure under its name, a dumbbell for each grouping; call it inside `drawing`."""
    figures = {name: draw(run) for name, draw in FIGURES.items()}
    for group in run.comparison["cells"] if run.comparison else ():
        name = re.sub(r"[^A-Za-z0-9_-]", "_", group)
        figures[f"dumbbell_{name}"] = comparison_plots.dumbbell(run, group)
    yield from ((name, figure) for name, figure in figures.items() if figure is not None)

"""Figures of a run, of one evaluation or of several seeds, for the page and as files; no torch.

To add a figure: write a function of the run's files in one of these modules, drawn on
`canvas.sheet`,
and put it into `FIGURES` (of several seeds: of what `seeds.json` holds, `SEED_FIGURES`). A section
of the page shows it by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from medrm.evaluation.figures import comparison_plots, model_plots, seed_plots
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


SEED_FIGURES: dict[str, Callable[[Mapping[str, Any]], Figure | None]] = {
    "seeds": seed_plots.seeds,
    "seed_dimensions": seed_plots.seed_dimensions,
}
"""The same of a comparison over seeds."""

Drawn = RunFiles | Mapping[str, Any]
"""A run's files, or the content of `seeds.json`."""


def inline_figures(content: Drawn) -> dict[str, str]:
    """Returns name -> `<svg>` element of each figure that there are data for."""
    with drawing():
        return {name: svg_inline(figure, name) for name, figure in _drawn(content)}


def write_plots(content: Drawn, folder: Path) -> list[Path]:
    """Writes each figure as `<name>.svg` and `<name>.png` and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    with drawing():
        drawn = _drawn(content)
        return [path for name, figure in drawn for path in write_figure(figure, name, folder)]


def _drawn(content: Drawn) -> Iterator[tuple[str, Figure]]:
    """Yields each figure under its name; call it inside `drawing`."""
    if isinstance(content, RunFiles):
        figures = _of_run(content)
    else:
        figures = {name: draw(content) for name, draw in SEED_FIGURES.items()}
    yield from ((name, figure) for name, figure in figures.items() if figure is not None)


def _of_run(run: RunFiles) -> dict[str, Figure | None]:
    """The figures of a run, a dumbbell for each grouping."""
    figures = {name: draw(run) for name, draw in FIGURES.items()}
    for group in run.comparison["cells"] if run.comparison else ():
        name = re.sub(r"[^A-Za-z0-9_-]", "_", group)
        figures[f"dumbbell_{name}"] = comparison_plots.dumbbell(run, group)
    return figures

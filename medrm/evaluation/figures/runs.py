"""Which figures a run's files give, as SVG of a page or as files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from medrm.evaluation.compare import Comparison
from medrm.evaluation.figures.bias import halo, length, position
from medrm.evaluation.figures.canvas import drawing, svg_inline, write_figure
from medrm.evaluation.figures.change import dumbbell, forest, heatmap, transitions
from medrm.evaluation.figures.reliability import reliability, risk_coverage
from medrm.evaluation.figures.replies import funnel
from medrm.evaluation.figures.training import training
from medrm.evaluation.report import robust_of
from medrm.evaluation.run_files import RunFiles


def inline_figures(run: RunFiles) -> dict[str, str]:
    """Returns name -> `<svg>` element of each figure that the run has data for."""
    with drawing():
        return {name: svg_inline(figure, name) for name, figure in _figures(run)}


def write_plots(run: RunFiles, folder: Path) -> list[Path]:
    """Writes each figure as `<name>.svg` and `<name>.png` and returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    with drawing():
        for name, figure in _figures(run):
            write_figure(figure, name, folder)
            names.append(name)
    return [folder / f"{name}.{suffix}" for name in names for suffix in ("svg", "png")]


def _figures(run: RunFiles) -> Iterator[tuple[str, Figure]]:
    """Yields each figure under its name; call it inside `drawing`."""
    found: dict[str, Figure | None] = {}
    if run.comparison is not None:
        found |= _changes(run.comparison)
    found |= _states(run)
    if run.comparison is not None:
        found["training"] = training(run.metrics, run.comparison)
    yield from ((name, figure) for name, figure in found.items() if figure is not None)


def _changes(comparison: Comparison) -> dict[str, Figure | None]:
    """The figures of a comparison."""
    cells, dimension = comparison["cells"], comparison["primary"]["dimension"]
    found = {"forest": forest(comparison)}
    for group, members in cells.items():
        found[f"dumbbell_{_plain(group)}"] = dumbbell(group, members, dimension)
    if cells:
        group = "organ" if "organ" in cells else next(iter(cells))
        found["heatmap"] = heatmap(group, cells[group], list(comparison["dimensions"]))
    found["transitions"] = transitions(comparison)
    return found


def _states(run: RunFiles) -> dict[str, Figure | None]:
    """The figures of what each side is like by itself."""
    before, after = run.before, run.after
    old, new = (report and robust_of(report) for report in (before, after))
    dimension = run.primary
    calibrations = [((side or {}).get(dimension) or {}).get("calibration") for side in (old, new)]
    alone = before is None
    return {
        "position": position(old, new or {}),
        "reliability": reliability(dimension, *calibrations, alone=alone),
        "risk_coverage": risk_coverage(dimension, *calibrations, alone=alone),
        "length": length(before and before["length"], after["length"]),
        "halo": halo(after["structure"]),
        "funnel": funnel(before and before["parsing"], after["parsing"], alone=alone),
    }


def _plain(group: str) -> str:
    """A group's name as part of a file name and of an id."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", group)

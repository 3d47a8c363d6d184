"""Which figures a run's files give, as SVG of a page or as files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from medrm.errors import DataError
from medrm.evaluation.compare import Comparison
from medrm.evaluation.figures.bias import halo, length, position
from medrm.evaluation.figures.canvas import drawing, svg_inline, write_figure
from medrm.evaluation.figures.change import dumbbell, forest, heatmap, transitions
from medrm.evaluation.figures.reliability import reliability, risk_coverage
from medrm.evaluation.figures.replies import funnel
from medrm.evaluation.figures.training import training
from medrm.evaluation.report import Report, read_json, read_report


@dataclass(frozen=True)
class RunFiles:
    """What the figures and exports of a run are made from.

    A single evaluation has `after` alone; `metrics` are the lines of metrics.jsonl.
    """

    before: Report | None
    after: Report
    comparison: Comparison | None = None
    metrics: list[Mapping[str, Any]] = field(default_factory=list)


def read_run(folder: Path) -> RunFiles:
    """Reads a run folder, or a single evaluation folder.

    Raises:
        DataError: a report is missing, or a file is not JSON.
    """
    alone = (folder / "report.json").is_file()  # where a comparison may lie beside it
    if alone or not (folder / "comparison.json").is_file():
        return RunFiles(None, read_report(folder))
    metrics = folder / "metrics.jsonl"
    try:
        stored = metrics.read_bytes() if metrics.is_file() else b""
        lines = [json.loads(line) for line in stored.splitlines()]
    except ValueError as error:
        raise DataError(f"{metrics} is not what a run writes: {error}. Remove it.") from error
    before, after = (read_report(folder / "evaluation" / side) for side in ("before", "after"))
    comparison = read_json(folder / "comparison.json")
    return RunFiles(before, after, comparison, lines)


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
    old, new = (report and measures_of(report) for report in (before, after))
    dimension = primary_of(run)
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


def measures_of(report: Report) -> Mapping[str, Any]:
    """Returns a report's robust measures by dimension; empty where that protocol was not run."""
    found: Mapping[str, Any] = report["protocols"].get("robust", {}).get("dimensions", {})
    return found


def primary_of(run: RunFiles) -> str:
    """Returns the dimension of the headline: the comparison's, else overall, else the first."""
    if run.comparison is not None:
        return str(run.comparison["primary"]["dimension"])
    names = list(run.after["ceiling"])
    return "overall" if "overall" in names else names[0]


def _plain(group: str) -> str:
    """A group's name as part of a file name and of an id."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", group)

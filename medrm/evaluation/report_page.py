"""`report.html`: one page of a run or of one evaluation, from what lies in its folder.

It needs no model and no torch. Every part is optional but the report itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from medrm.errors import DataError
from medrm.evaluation.figures import RunFiles, inline_figures, read_run
from medrm.evaluation.pages import breakdowns, panels
from medrm.evaluation.pages.document import render_page, write_text
from medrm.evaluation.pages.panels import Sides
from medrm.evaluation.pages.samples import Samples, read_samples
from medrm.evaluation.report import Report, read_json
from medrm.evaluation.tables import counted, gain_sentence, metric_lines

SECTIONS = {
    "headline": "Every dimension",
    "groups": "Organ by organ",
    "changed": "What changed",
    "bias": "Position, length and halo",
    "format": "How the replies were read",
    "calibration": "Calibration",
    "controls": "Controls and baselines",
    "training": "Training",
    "cases": "Case by case",
    "others": "Numbers of others",
    "method": "Method and manifest",
    "notes": "Notes and limits",
}
"""Anchor of each section, also the name of its template, to its heading."""


def write_page(folder: Path, images: bool = True) -> Path:
    """Writes `report.html` into a run folder or an evaluation folder and returns its path.

    Args:
        folder: of a run, with `comparison.json`, or of one evaluation.
        images: whether the kept copies of the images go into the page.

    Raises:
        DataError: the folder is neither, or an earlier version wrote its files.
    """
    folder = Path(folder)
    run = _read(folder)
    sides = _sides(run)
    primary = _primary(run)
    samples = read_samples(
        _folders(folder, run),
        {side: report["dimensions"] for side, report in sides.items()},
        primary,
        images,
    )
    header = "report/header.html.jinja"
    sections = {name: (heading, f"report/{name}.html.jinja") for name, heading in SECTIONS.items()}
    context = _context(folder, run, sides, primary, samples)
    text = render_page(
        _title(run, primary),
        header,
        sections,
        {**context, "images": images},
        script=None if samples is None else "browser.js",
        data=None if samples is None else samples.data,
    )
    path = folder / "report.html"
    write_text(path, text)
    return path


def _read(folder: Path) -> RunFiles:
    if not any((folder / name).is_file() for name in ("comparison.json", "report.json")):
        raise DataError(
            f"{str(folder)!r} holds neither comparison.json nor report.json. Give the folder of a "
            "finished run, or of one evaluation."
        )
    run = read_run(folder)
    if run.comparison is not None and "cells" not in run.comparison:
        raise DataError(
            f"comparison.json in {str(folder)!r} was written by an earlier version of medrm. "
            "Run `medrm compare` on its two evaluations again, with this folder as --output_dir."
        )
    return run


def _sides(run: RunFiles) -> dict[str, Report]:
    if run.before is None:
        return {"model": run.after}
    return {"before": run.before, "after": run.after}


def _folders(folder: Path, run: RunFiles) -> dict[str, Path]:
    if run.before is None:
        return {"model": folder}
    return {side: folder / "evaluation" / side for side in ("before", "after")}


def _primary(run: RunFiles) -> str:
    """The dimension of the headline: the comparison's, else overall, else the first judged."""
    if run.comparison is not None:
        return str(run.comparison["primary"]["dimension"])
    names = list(panels.robust(run.after)) or list(run.after["ceiling"])
    return "overall" if "overall" in names else names[0]


def _title(run: RunFiles, primary: str) -> str:
    name = run.after["benchmark"]["name"]
    if run.comparison is None:
        return f"medrm: {run.after['model']}, {name}"
    return f"medrm: {run.comparison['verdict']} on {primary}, {name}"


def _context(
    folder: Path, run: RunFiles, sides: Sides, primary: str, samples: Samples | None
) -> dict[str, Any]:
    """What the templates show."""
    comparison, after = run.comparison, run.after
    manifest_path = folder / "run.json"
    manifest = read_json(manifest_path) if manifest_path.is_file() else {}
    return {
        "comparison": comparison,
        "sides": sides,
        "before": run.before,
        "after": after,
        "primary": primary,
        "robust": {side: panels.robust(report) for side, report in sides.items()},
        "figures": {name: Markup(svg) for name, svg in inline_figures(run).items()},
        "samples": samples,
        "groups": breakdowns.group_rows(after, comparison, primary),
        "cells": [] if comparison is None else breakdowns.cell_grids(comparison),
        "small": breakdowns.SMALL,
        "transitions": None if comparison is None else panels.transitions(comparison),
        "position": panels.position(sides),
        "length": panels.length(sides),
        "halo": panels.halo(sides),
        "correlations": panels.correlations(after),
        "guardrails": None if comparison is None else panels.guardrails(comparison),
        "agreement": panels.agreement(sides),
        "funnels": panels.funnels(sides),
        "gain": None if comparison is None else gain_sentence(comparison),
        "calibration": panels.calibration(sides),
        "controls": breakdowns.controls(comparison, after, primary),
        "metrics": {side: metric_lines(report) for side, report in sides.items()},
        "settings": panels.settings_grid(sides),
        "folds": panels.folds_grid(after.get("crossfit")),
        "manifest": {key: _pretty(value) for key, value in manifest.items()},
        "remarks": _remarks(sides, manifest),
    }


def _remarks(sides: Sides, manifest: Mapping[str, Any]) -> list[str]:
    """What was left out of, or counted wrong in, the numbers."""
    remarks = []
    for side, report in sides.items():
        if report["unread"]:
            remarks.append(
                f"Benchmark cases that could not be read ({side}), counted wrong: "
                f"{counted(report['unread'])}."
            )
        if report["verdict_mass"] is not None:
            remarks.append(
                f"Mean probability ({side}) of naming one of the two answers at all: "
                f"{report['verdict_mass']:.2g}. Where it is small, the verdicts compare two things "
                "the model would hardly say."
            )
        if report["not_scored"]:
            names = ", ".join(report["not_scored"])
            remarks.append(f"Labelled but not scored ({side}): {names}.")
    excluded = Counter(entry["reason"] for entry in manifest.get("data", {}).get("excluded", []))
    if excluded:
        remarks.append(
            f"Training cases set aside: {counted(dict(excluded.most_common()))}. run.json lists "
            "them."
        )
    return remarks


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)

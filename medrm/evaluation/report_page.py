"""`report.html`: one page of a run or of one evaluation, from what lies in its folder.

It needs no model and no torch. Every section is optional but the headline.
"""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from medrm.errors import DataError
from medrm.evaluation.figures import inline_figures
from medrm.evaluation.pages.document import render_page, write_text
from medrm.evaluation.pages.samples import read_samples
from medrm.evaluation.pages.sections import SECTIONS, PageContent
from medrm.evaluation.report import read_json
from medrm.evaluation.run_files import RunFiles, read_run


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
    samples = read_samples(
        run.evaluation_folders(folder),
        {side: report["dimensions"] for side, report in run.sides.items()},
        run.primary,
        images,
    )
    manifest = folder / "run.json"
    page = PageContent(
        run,
        read_json(manifest) if manifest.is_file() else {},
        {name: Markup(svg) for name, svg in inline_figures(run).items()},
        samples,
        images,
    )
    text = render_page(
        _title(run),
        "report/header.html.jinja",
        SECTIONS,
        page,
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


def _title(run: RunFiles) -> str:
    name = run.after["benchmark"]["name"]
    if run.comparison is None:
        return f"medrm: {run.after['model']}, {name}"
    return f"medrm: {run.comparison['verdict']} on {run.primary}, {name}"

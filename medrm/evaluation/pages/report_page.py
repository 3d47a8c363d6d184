"""`report.html`: one page of a run or of one evaluation, from what lies in its folder; no torch.

It needs no model. Every section of the registry `SECTIONS` is optional but the headline. To add
one: write a function that returns what its template shows (or None where there is nothing to show),
a template in `templates/report/`, and an entry in `SECTIONS`. From outside the package an entry may
name a template by its path.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from medrm.errors import DataError, without_paths
from medrm.evaluation.figures import inline_figures
from medrm.evaluation.leak_check import leak_line
from medrm.evaluation.pages.document import Section, render_page, write_text
from medrm.evaluation.pages.samples import Samples, read_samples
from medrm.evaluation.report import RunFiles, read_json, read_run, robust_of
from medrm.evaluation.shared_run import SharedNames, shared_manifest
from medrm.evaluation.tables import comparison_tables, report_tables
from medrm.evaluation.tables.comparison_tables import FEW, gain_sentence
from medrm.evaluation.tables.reader_tables import agreement_table, ceiling_table, neither_line
from medrm.evaluation.tables.table import DASH, Table, counted
from medrm.files import RUN_FILE

Context = Mapping[str, Any]
"""What a section's template shows, by name."""


@dataclass(frozen=True)
class PageContent:
    """What a page is made of.

    Attributes:
        run: reports, comparison and metrics.
        manifest: content of `run.json`; empty where there is none.
        figures: name to SVG of each figure that the run has data for.
        samples: of the browser of cases; None where no cases are kept.
        images: whether pictures may go into the page.
        texts: whether texts of data and models may; else the page may be shown outside.
    """

    run: RunFiles
    manifest: Mapping[str, Any]
    figures: Mapping[str, Markup]
    samples: Samples | None
    images: bool
    texts: bool = True

    @property
    def gain(self) -> str | None:
        """What the primary dimension's difference consists of."""
        return None if self.run.comparison is None else gain_sentence(self.run.comparison)


def _headline(page: PageContent) -> Context:
    run = page.run
    in_both_orders = any(
        (measures or {}).get("consistency") is not None
        for report in run.sides.values()
        for measures in robust_of(report).values()
    )
    same_verdict = ["same verdict"] if in_both_orders else []
    if run.comparison is None:
        caption = "Accuracy in percent, over the presented orders."
        table = report_tables.accuracy_table(run.after, mean=True, unscored="not scored")
        names = ["dimension", "drawn", "accuracy (95 % CI)", "official", "read", *same_verdict]
        names += ["ceiling", "n"]
    else:
        caption = "Accuracy in percent over the presented orders, difference in points."
        table = comparison_tables.comparison_table(run.comparison, run.sides, [run.primary])
        table = _with_case_links(table, page)
        names = ["dimension", "drawn", "before", "after", "difference (95 % CI)", "p"]
        names += ["fixed / broken", *same_verdict, "read", "n"]
    caption += " What could not be read counts as wrong."
    table = table.pick(names, caption, {"p": "adjusted p", "n": "cases"})
    sides = {"the model": run.after} if run.comparison is None else run.sides
    return {"table": table, "in_both_orders": in_both_orders, "readers": ceiling_table(sides)}


def _with_case_links(table: Table, page: PageContent) -> Table:
    """The numbers of fixed and broken cases lead to those cases, where cases are kept."""
    if page.samples is None or page.run.comparison is None:
        return table
    cells, link = [], Markup('<a href="#show={}&amp;dimension={}">{}</a>')
    for name, difference in page.run.comparison["dimensions"].items():
        counts = {key: difference[key] for key in ("fixed", "broken")}
        links = [link.format(key, quote(name), n) if n else str(n) for key, n in counts.items()]
        cells.append(DASH if difference["fixed"] is None else Markup(" / ").join(links))
    return table.with_cells("fixed / broken", cells)


def _groups(page: PageContent) -> Context:
    run, primary, tables = page.run, page.run.primary, {}
    groups = run.after["protocols"].get("robust", {}).get("groups", {})
    for group in groups if run.comparison is None else run.comparison["cells"]:
        table = comparison_tables.group_table(run.after, run.comparison, group, primary)
        if table is None:
            continue
        if page.samples is not None and group in page.samples.data["groups"]:
            link = Markup('<a href="#by-{}={}&amp;dimension={}">{}</a>')
            members = [str(row[0]) for row in table.rows]
            links = [(quote(group), quote(member), quote(primary), member) for member in members]
            table = table.with_cells("member", [link.format(*texts) for texts in links])
        caption = f"Accuracy on {primary} by {group}, in percent"
        headings = {"member": group, "n": "cases"}
        tables[group] = table.without("clusters", caption=caption, headings=headings)
    cells = [] if run.comparison is None else comparison_tables.cell_tables(run.comparison)
    return {"tables": tables, "cells": [table for table in cells if table.rows], "few": FEW}


def _changed(page: PageContent) -> Context | None:
    if page.run.comparison is None:
        return None
    table = comparison_tables.transitions_table(page.run.comparison)
    return {"table": table, "legend": comparison_tables.FIXED_LEGEND}


def _bias(page: PageContent) -> Context:
    sides, comparison = page.run.sides, page.run.comparison
    position = report_tables.position_table(sides)
    checks = None if comparison is None else comparison_tables.non_inferiority_table(comparison)
    return {
        "position": position.without("kappa", "AC1"),
        "length": report_tables.length_table(sides),
        "halo": report_tables.halo_table(sides),
        "checks": checks,
        "correlations": report_tables.correlation_tables(page.run.after),
        "agreement": agreement_table(sides),
    }


def _format(page: PageContent) -> Context:
    return {"tables": report_tables.parsing_tables(page.run.sides)}


def _calibration(page: PageContent) -> Context:
    return {"table": report_tables.calibration_table(page.run.sides)}


def _controls(page: PageContent) -> Context:
    comparison, primary = page.run.comparison, page.run.primary
    caption, names = f"What else could explain it, on {primary}. Accuracy in percent", []
    if comparison is not None and comparison["controls"]:
        caption += ", difference in points"
        names = ["difference (95 % CI)", "p"]
    table = comparison_tables.control_table(comparison, primary, page.run.after)
    headings = {"difference (95 % CI)": "adapter minus control (95 % CI)"}
    return {"table": table.pick(["control", "drawn", "accuracy", *names], f"{caption}.", headings)}


def _others(page: PageContent) -> Context:
    sides = page.run.sides
    tables = {}
    for side, report in reversed(sides.items()):
        table = report_tables.official_table({side: report})
        if table is not None:
            headings = {name: name.removesuffix("_acc") for name in table.columns}
            caption = f"The released scorer's table, {side}"
            tables[side] = table.without("model", caption=caption, headings=headings)
    return {
        "metrics": {side: report_tables.metric_lines(report) for side, report in sides.items()},
        "published": report_tables.published_table(page.run.after),
        "official": tables,
    }


def _method(page: PageContent) -> Context:
    return {
        "settings": report_tables.settings_table(page.run.sides),
        "folds": report_tables.folds_table(page.run.after.get("crossfit")),
        "manifest": {key: _written(value) for key, value in page.manifest.items()},
    }


def _written(value: Any) -> str:
    value = _without_paths(value)
    return value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def _without_paths(value: Any) -> Any:
    """Returns JSON without absolute paths; run.json has them."""
    if isinstance(value, Mapping):
        return {name: _without_paths(member) for name, member in value.items()}
    if isinstance(value, list):
        return list(map(_without_paths, value))
    return without_paths(value) if isinstance(value, str) else value


def _notes(page: PageContent) -> Context:
    """What was left out of, or counted wrong in, the numbers."""
    remarks = []
    if not page.texts:
        remarks.append(
            "Made to be shown: without single cases, texts, pictures and names of data; members of "
            "groups that are not medrm's own are numbered."
        )
    for side, report in page.run.sides.items():
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
        if noise := report_tables.noise_line(report):
            remarks.append(f"{side.capitalize()}: {noise}")
        remarks.append(f"{side.capitalize()}: {leak_line(report)}")
        if neither := neither_line(report):
            remarks.append(f"{side.capitalize()}: {neither}")
        if report["not_scored"]:
            names = ", ".join(report["not_scored"])
            remarks.append(f"Labelled but not scored ({side}): {names}.")
    excluded = Counter(case["reason"] for case in page.manifest.get("data", {}).get("excluded", []))
    if excluded:
        remarks.append(
            f"Training cases set aside: {counted(dict(excluded.most_common()))}. run.json lists "
            "them."
        )
    return {"remarks": remarks}


SECTIONS: dict[str, Section[PageContent]] = {
    "headline": Section("Every dimension", "report/headline.html.jinja", _headline),
    "groups": Section("Organ by organ", "report/groups.html.jinja", _groups),
    "changed": Section("What changed", "report/changed.html.jinja", _changed),
    "bias": Section("Position, length and halo", "report/bias.html.jinja", _bias),
    "format": Section("How the replies were read", "report/format.html.jinja", _format),
    "calibration": Section("Calibration", "report/calibration.html.jinja", _calibration),
    "controls": Section("Controls and baselines", "report/controls.html.jinja", _controls),
    "training": Section("Training", "report/training.html.jinja"),
    "cases": Section("Case by case", "report/cases.html.jinja"),
    "others": Section("Numbers of others", "report/others.html.jinja", _others),
    "method": Section("Method and manifest", "report/method.html.jinja", _method),
    "notes": Section("Notes and limits", "report/notes.html.jinja", _notes),
}
"""Name, also the anchor, of each section to what it is, in the order of the page."""


def write_page(folder: Path, images: bool = True, texts: bool = True) -> Path:
    """Writes `report.html` into a run folder or an evaluation folder and returns its path.

    Args:
        folder: of a run, with `comparison.json`, or of one evaluation.
        images: whether the kept copies of the images go into the page.
        texts: whether what data and models say does; else neither that nor images, names of data
            and single cases are in it (`medrm.evaluation.shared_run`).

    Raises:
        DataError: the folder is neither, or an earlier version wrote its files.
    """
    folder = Path(folder)
    run = _read(folder)
    samples = read_samples(run, folder, images) if texts else None
    manifest, path = folder / RUN_FILE, folder / "report.html"
    contents = read_json(manifest) if manifest.is_file() else {}
    if not texts:
        run, contents = SharedNames(run).run(run), shared_manifest(contents)
    figures = {name: Markup(svg) for name, svg in inline_figures(run).items()}
    page = PageContent(run, contents, figures, samples, images, texts)
    data = None if samples is None else samples.data
    write_text(path, render_page(_title(run), "report/header.html.jinja", SECTIONS, page, data))
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

"""The page and the exports of a comparison over seeds, from `seeds.json`; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from medrm.evaluation.figures import inline_figures, write_plots
from medrm.evaluation.pages.document import Section, render_page, write_text
from medrm.evaluation.report import read_json
from medrm.evaluation.seeds import seed_tables
from medrm.evaluation.seeds.seed_comparison import SEEDS_FILE
from medrm.evaluation.seeds.seed_tables import INTERVAL, Seeds
from medrm.evaluation.shared_run import shared_set
from medrm.evaluation.tables.comparison_tables import non_inferiority_table
from medrm.evaluation.tables.table import Cell, write_tables

Context = Mapping[str, Any]


@dataclass(frozen=True)
class SeedPage:
    """What the page is made of.

    Attributes:
        comparison: content of `seeds.json`.
        figures: name to SVG.
        lines: what stands beside the headline.
        pages: seed to the address of its own page, where there is one.
    """

    comparison: Seeds
    figures: Mapping[str, Markup]
    lines: Sequence[str]
    pages: Mapping[str, str]


def _dimensions(page: SeedPage) -> Context:
    caption = "Accuracy in percent, over the presented orders; difference in points."
    columns = ["dimension", "drawn", "before", "after", "least to most", INTERVAL]
    columns += ["over cases alone", "p", "n"]
    headings = {"p": "adjusted p (Holm)", "n": "cases"}
    return {"table": seed_tables.dimension_table(page.comparison).pick(columns, caption, headings)}


def _seeds(page: SeedPage) -> Context:
    table = seed_tables.seed_table(page.comparison)
    link = Markup('<a href="{}">{}</a>')
    cells: list[Cell] = [
        link.format(page.pages[str(row[0])], row[0]) if str(row[0]) in page.pages else row[0]
        for row in table.rows
    ]
    return {"table": table.with_cells("seed", cells)}


def _controls(page: SeedPage) -> Context | None:
    table = seed_tables.control_table(page.comparison)
    headings = {INTERVAL: "adapter minus control (95 % CI)"}
    return {"table": table.pick(table.columns, headings=headings)} if table.rows else None


def _guardrails(page: SeedPage) -> Context:
    return {"table": non_inferiority_table(page.comparison)}


def _notes(page: SeedPage) -> Context:
    return {"remarks": seed_tables.note_lines(page.comparison)}


SEED_SECTIONS: dict[str, Section[SeedPage]] = {
    "dimensions": Section("Every dimension", "seeds/dimensions.html.jinja", _dimensions),
    "seeds": Section("Seed by seed", "seeds/seeds.html.jinja", _seeds),
    "controls": Section("Controls", "seeds/table.html.jinja", _controls),
    "guardrails": Section("What must not get worse", "seeds/table.html.jinja", _guardrails),
    "notes": Section("Notes and limits", "seeds/notes.html.jinja", _notes),
}
"""Name, also the anchor, of each section to what it is, in the order of the page."""


def write_seed_page(folder: Path, texts: bool = True) -> Path:
    """Writes `report.html` beside `seeds.json` and returns its path.

    Args:
        folder: of the runs of all seeds.
        texts: whether the name of the data is in it.
    """
    comparison, path = _comparison(folder, texts), folder / "report.html"
    pages = {
        str(run["seed"]): quote(f"{run['folder']}/report.html")
        for run in comparison["by_seed"]
        if (folder / run["folder"] / "report.html").is_file()
    }
    figures = {name: Markup(svg) for name, svg in inline_figures(comparison).items()}
    page = SeedPage(comparison, figures, seed_tables.seed_lines(comparison), pages)
    title = (
        f"medrm: {comparison['verdict']} on {comparison['primary']['dimension']} over "
        f"{len(comparison['seeds'])} seeds, {comparison['benchmark']['name']}"
    )
    write_text(path, render_page(title, "seeds/header.html.jinja", SEED_SECTIONS, page))
    return path


def _comparison(folder: Path, texts: bool) -> Seeds:
    comparison = read_json(folder / SEEDS_FILE)
    shared = {} if texts else {"benchmark": shared_set(comparison["benchmark"])}
    return {**comparison, **shared}


def write_seed_exports(folder: Path, texts: bool = True) -> Path:
    """Writes the tables for papers, all numbers and the figures; returns `<folder>/exports`.

    `texts` as of `write_seed_page`.
    """
    comparison, target = _comparison(folder, texts), folder / "exports"
    columns = ("dimension", "before", "after", INTERVAL, "p", "n", "ceiling")
    full_table = seed_tables.dimension_table(comparison)
    tables = {
        "dimensions": full_table.pick(columns, f"{full_table.caption}.", {"p": "p (adjusted)"}),
        "seeds": seed_tables.seed_table(comparison),
        "controls": seed_tables.control_table(comparison) if comparison["controls"] else None,
    }
    write_tables(target, tables, {"seeds.csv": seed_tables.seeds_csv(comparison)})
    write_plots(comparison, target / "plots")
    return target

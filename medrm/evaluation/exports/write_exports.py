"""Writes `exports/` of a run folder or of a single evaluation folder."""

from __future__ import annotations

from pathlib import Path

from medrm.evaluation.exports.hub_entries import eval_results, model_index
from medrm.evaluation.exports.paper import dimension_table, official_table, organ_table
from medrm.evaluation.exports.rates import comparison_rates, evaluation_rates, summary
from medrm.evaluation.exports.text_tables import latex, markdown
from medrm.evaluation.exports.verdict_table import write_verdicts
from medrm.evaluation.figures import RunFiles, primary_of, read_run, write_plots
from medrm.evaluation.records.verdicts import read_rows
from medrm.schema import Verdict

FOLDER = "exports"


def write_exports(folder: Path) -> Path:
    """Writes all exports that a folder has numbers for and returns `<folder>/exports`.

    Every number is one of report.json, comparison.json and verdicts.jsonl.

    Args:
        folder: of a run, or of a single evaluation.

    Raises:
        DataError: a file is missing or is none of ours.
    """
    run = read_run(folder)
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    rows = {
        side: read_rows(where / "verdicts.jsonl") for side, where in _folders(folder, run).items()
    }
    _write_tables(run, target)
    files = {
        "summary.csv": _summary(run, rows),
        "model_index.yaml": model_index(run.after),
        "eval_results.yaml": eval_results(run.after),
    }
    for name, text in files.items():
        _write(target / name, text)
    write_verdicts(target / "verdicts.parquet", rows)
    write_plots(run, target / "plots")
    return target


def _folders(folder: Path, run: RunFiles) -> dict[str, Path]:
    """The evaluations of a folder, by side."""
    if run.before is None:
        return {"after": folder}
    return {side: folder / "evaluation" / side for side in ("before", "after")}


def _write_tables(run: RunFiles, target: Path) -> None:
    reports = [report for report in (run.before, run.after) if report is not None]
    tables = {
        "dimensions": dimension_table(run),
        "organs": organ_table(run, primary_of(run)),
        "official": official_table(reports),
    }
    for name, table in tables.items():
        if table is not None:
            _write(target / f"{name}.md", markdown(table))
            _write(target / f"{name}.tex", latex(table))


def _summary(run: RunFiles, rows: dict[str, list[Verdict]]) -> str:
    """summary.csv: both sides, then their differences."""
    rates = []
    for side, report in (("before", run.before), ("after", run.after)):
        if report is not None:
            rates += list(evaluation_rates(side, report, rows[side]))
    if run.comparison is not None:
        rates += list(comparison_rates(run.comparison))
    return summary(rates)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="replace")

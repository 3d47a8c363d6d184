"""Writes `exports/` of a run folder or of a single evaluation folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from medrm.evaluation.exports.hub_entries import eval_results, model_index
from medrm.evaluation.exports.rates import Rate, comparison_rates, evaluation_rates
from medrm.evaluation.figures import write_plots
from medrm.evaluation.records.jsonl import read_verdicts
from medrm.evaluation.run_files import RunFiles, read_run
from medrm.evaluation.tables.comparison_tables import comparison_table, group_table
from medrm.evaluation.tables.report_tables import accuracy_table, official_table
from medrm.evaluation.tables.table import Table
from medrm.evaluation.tables.writers import to_csv, to_latex, to_markdown
from medrm.schema import Expected, Verdict

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
    verdicts = {
        "after" if side == "model" else side: read_verdicts(where / "verdicts.jsonl")
        for side, where in run.evaluation_folders(folder).items()
    }
    texts = {
        "summary.csv": _summary(run, verdicts),
        "model_index.yaml": model_index(run.after),
        "eval_results.yaml": eval_results(run.after),
    }
    tables = {
        "dimensions": _dimension_table(run),
        "organs": _organ_table(run),
        "official": official_table(run.sides),
    }
    for name, table in tables.items():
        if table is not None:
            texts |= {f"{name}.md": to_markdown(table), f"{name}.tex": to_latex(table)}
    for name, text in texts.items():
        (target / name).write_text(text, encoding="utf-8", errors="replace")
    write_verdicts(target / "verdicts.parquet", verdicts)
    write_plots(run, target / "plots")
    return target


_COMPARED = {
    "dimension": "dimension",
    "before": "before",
    "after": "after",
    "difference (95 % CI)": "difference (95 % CI)",
    "p": "p (adjusted)",
    "fixed / broken": "fixed / broken",
    "n": "n",
    "ceiling": "ceiling",
}

_ALONE = {
    "dimension": "dimension",
    "accuracy (95 % CI)": "accuracy (95 % CI)",
    "official": "official",
    "read": "read",
    "same verdict": "same in both orders",
    "n": "n",
}


def _dimension_table(run: RunFiles) -> Table:
    """Every dimension's accuracy in percent: both sides, or that of one evaluation."""
    benchmark = run.after["benchmark"]
    caption = (
        f"Accuracy in percent on {benchmark['name']}: {benchmark['cases']} cases in "
        f"{benchmark['clusters']} clusters."
    )
    if run.comparison is None:
        return accuracy_table(run.after).pick(_ALONE, f"{run.after['model']}. {caption}")
    table = comparison_table(run.comparison, official=list(run.after["ceiling"]))
    return table.pick(_COMPARED, caption)


def _organ_table(run: RunFiles) -> Table | None:
    """Each organ's accuracy on the primary dimension; None without organs."""
    table = group_table(run.after, run.comparison, "organ", run.primary)
    if table is None:
        return None
    columns = {name: name for name in table.columns if name != "drawn"} | {"member": "organ"}
    if run.comparison is None:
        columns.pop("clusters")
    else:
        columns["p (BH)"] = "p (BH over all cells)"
    return table.pick(columns)


def _summary(run: RunFiles, verdicts: Mapping[str, Sequence[Verdict]]) -> str:
    """summary.csv: both sides, then their differences."""
    rates: list[Rate] = []
    for side, rows in verdicts.items():
        report = run.before if side == "before" else run.after
        rates += evaluation_rates(side, report or {}, rows)
    if run.comparison is not None:
        rates += comparison_rates(run.comparison)
    return to_csv([column.name for column in fields(Rate)], map(astuple, rates))


_TEXT, _NUMBER, _NUMBERS = pa.string(), pa.float64(), pa.list_(pa.float64())

_COLUMNS: tuple[tuple[str, pa.DataType, Callable[[Verdict], Any]], ...] = (
    ("case_id", _TEXT, lambda row: _valid(row.case_id)),
    ("dimension", _TEXT, lambda row: row.dimension),
    ("protocol", _TEXT, lambda row: row.protocol),
    ("order", _TEXT, lambda row: row.order),
    ("outcome", _TEXT, lambda row: _answer(row.outcome)),
    ("reason", _TEXT, lambda row: _valid(row.reason)),
    ("label", _TEXT, lambda row: _answer(row.label)),
    ("label_shares", _NUMBERS, lambda row: row.label_shares),
    ("correct", _NUMBER, lambda row: row.correct),
    ("probability_a", _NUMBER, lambda row: row.probability_a),
    ("score_a", _NUMBER, lambda row: row.score_a),
    ("score_b", _NUMBER, lambda row: row.score_b),
    ("scores", _NUMBERS, lambda row: row.scores),
    ("cluster", _TEXT, lambda row: _valid(row.cluster)),
)
"""Name, type and value of each column of verdicts.parquet."""


def write_verdicts(path: Path, sides: Mapping[str, Sequence[Verdict]]) -> None:
    """Writes verdicts.parquet: one row for each verdict.

    `side` says of which evaluation; each group has a column `group_<name>`. Outcomes and labels are
    text, in JSON where a label names several answers.

    Args:
        path: to write.
        sides: such as before and after, to their verdicts.
    """
    rows = [row for of_side in sides.values() for row in of_side]
    names = [side for side, of_side in sides.items() for _ in of_side]
    columns = {"side": pa.array(names, pa.string())}
    for name, data_type, value in _COLUMNS:
        columns[name] = pa.array([value(row) for row in rows], data_type)
    for group in sorted({group for row in rows for group in row.groups}):
        column = pa.array([_valid(row.groups.get(group)) for row in rows], pa.string())
        columns[f"group_{_valid(group)}"] = column
    parquet.write_table(pa.table(columns), path)


def _answer(answer: Expected | None) -> str | None:
    """An outcome or a label as text."""
    return answer if answer is None or isinstance(answer, str) else json.dumps(answer)


def _valid(text: str | None) -> str | None:
    """Text as UTF-8 can hold it: half a surrogate pair becomes a question mark."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")

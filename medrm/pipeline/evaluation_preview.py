"""What the evaluations of a run will ask: its own rows, each with its calls and tokens.

The code that measures a run's rows runs here with a context that opens no model and notes each row
in place of measuring it.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from medrm.errors import MedrmError
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.tables.table import DASH, Row, Table, table_of
from medrm.pipeline.context import DEVELOPMENT, ReportRow, RunContext
from medrm.pipeline.dry_run import CallEstimate, asked
from medrm.pipeline.stages import measure_before, rows_after
from medrm.scorer.specs import ScorerPlan, judge_spec


class PlannedRow(NamedTuple):
    """A row of the report that will be measured.

    Attributes:
        name: of the row.
        readout: by which its model is read; None: what another row's said is read again.
        dimensions: that are asked about.
        benchmark: what is judged.
    """

    name: str
    readout: str | None
    dimensions: tuple[str, ...]
    benchmark: Benchmark


class _PreviewedScorer(NamedTuple):
    """Stands for an opened scorer."""

    readout: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True)
class _NotedContext(RunContext):
    """Notes the rows that it is to measure; its folder is a temporary one."""

    noted: list[PlannedRow]

    @property
    def base_weights(self) -> str:
        """Not asked of the weights, which may not be here."""
        return ""

    def holds(self, name: str, weights: str | None = None, digest: str | None = None) -> bool:
        """Whether the row was noted."""
        return (self.folder(name) / "report.json").is_file()

    def base(self) -> Any:
        """Loads nothing."""

    def with_head(self) -> Any:
        """Loads nothing."""

    def trainable(self) -> Any:
        """Loads nothing."""

    def in_memory(self, model: Any) -> Any:
        """Returns nothing."""

    def scorer(
        self, loaded: Any, readout: str | None = None, dimensions: Sequence[str] | None = None
    ) -> Any:
        """Returns how the model would be read."""
        return _PreviewedScorer(
            readout or self.readout, tuple(dimensions or self.splits.dimensions)
        )

    def measure(self, row: ReportRow) -> float:
        """Notes the row."""
        benchmark = row.benchmark or self.splits.benchmark
        reading: Any = self.scorer(None)
        try:
            if row.weights is not None:  # else a head that is drawn or trained for this row alone
                reading = row.open()
        except (OSError, MedrmError):  # it reads what another row's model has said
            reading = _PreviewedScorer("", self.splits.dimensions)
        self.noted.append(PlannedRow(row.name, reading[0] or None, reading[1], benchmark))
        folder = self.folder(row.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(row.name), encoding="utf-8")
        return 0.0


def planned_rows(context: RunContext) -> list[PlannedRow]:
    """Returns the rows that the stages of a run measure, as of a run that is new."""
    values = {field.name: getattr(context, field.name) for field in fields(RunContext)}
    with tempfile.TemporaryDirectory() as folder:
        noted = _NotedContext(**{**values, "output": Path(folder)}, noted=[])
        logging.disable(logging.INFO)
        try:
            if "before" in context.run.job.stages:
                measure_before(noted)
            if "after" in context.run.job.stages:
                for row in rows_after(noted, lambda: noted.base(), lambda: noted.scorer(None), ""):
                    noted.measure(row)
        finally:
            logging.disable(logging.NOTSET)
    return noted.noted


def evaluations_table(context: RunContext) -> Table:
    """Returns the calls and tokens of each row, and of all."""
    counted: dict[Any, CallEstimate] = {}
    rows: list[Row] = []
    totals = [0, 0, 0]
    for name, readout, dimensions, benchmark in planned_rows(context):
        judged = benchmark if name.endswith(DEVELOPMENT) else context.splits.benchmark
        cells = {
            "row": name,
            "read by": readout or "another row",
            "cases": f"{len(judged.cases):,}",
        }
        numbers = [0, 0, 0]
        if readout is not None:
            key = (readout, dimensions, judged is context.splits.benchmark)
            if key not in counted:
                plan = ScorerPlan(readout, dimensions, judge_spec(context.run.judge))
                collator, facts = context.collator, context.splits.facts
                counted[key] = asked(plan, collator, judged, facts)
            estimate = counted[key]
            numbers = [estimate.calls, estimate.prompt_tokens, estimate.reply_tokens]
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        rows.append(cells | _cells(numbers))
    rows.append({"row": "all", "read by": "", "cases": "", **_cells(totals)})
    note = (
        "Rows with other images or none are counted as the benchmark itself. No service is asked, "
        "so nothing is paid by the token."
    )
    return table_of("Evaluations", rows, note, {len(rows) - 1: "sum"})


def _cells(numbers: Sequence[int]) -> dict[str, str]:
    names = ("calls", "prompt tokens", "reply, at most")
    return {name: f"{n:,}" if n else DASH for name, n in zip(names, numbers, strict=True)}

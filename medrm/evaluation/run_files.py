"""What the page, the figures and the exports of a run are made from; imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medrm.errors import DataError
from medrm.evaluation.compare import Comparison
from medrm.evaluation.report import Report, read_json, read_report


@dataclass(frozen=True)
class RunFiles:
    """The files of a run folder; of a single evaluation there is `after` alone.

    Attributes:
        before: report of the model before training.
        after: report of the trained model.
        comparison: of both.
        metrics: lines of `metrics.jsonl`.
    """

    before: Report | None
    after: Report
    comparison: Comparison | None = None
    metrics: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def sides(self) -> dict[str, Report]:
        """The reports by name: `before` and `after`, or `model` alone."""
        before, after = self.before, self.after
        return {"model": after} if before is None else {"before": before, "after": after}

    @property
    def primary(self) -> str:
        """The dimension of the headline: the comparison's, else overall, else the first."""
        if self.comparison is not None:
            return str(self.comparison["primary"]["dimension"])
        names = list(self.after["ceiling"])
        return "overall" if "overall" in names else names[0]

    def evaluation_folders(self, folder: Path) -> dict[str, Path]:
        """Returns the evaluation folder of each side in the folder that was read."""
        if self.before is None:
            return {"model": folder}
        return {side: folder / "evaluation" / side for side in self.sides}


def read_run(folder: Path) -> RunFiles:
    """Reads a run folder, or a single evaluation folder.

    Raises:
        DataError: a report is missing, or a file is not JSON.
    """
    single = (folder / "report.json").is_file()  # where a comparison may lie beside it
    if single or not (folder / "comparison.json").is_file():
        return RunFiles(None, read_report(folder))
    metrics = folder / "metrics.jsonl"
    try:
        stored = metrics.read_bytes() if metrics.is_file() else b""
        lines = [json.loads(line) for line in stored.splitlines()]
    except ValueError as error:
        raise DataError(f"{metrics} is not what a run writes: {error}. Remove it.") from error
    before, after = (read_report(folder / "evaluation" / side) for side in ("before", "after"))
    return RunFiles(before, after, read_json(folder / "comparison.json"), lines)

"""The lines of `medrm score`: what the rewards of a row become, and the file that holds them."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from medrm.data.batched import batched
from medrm.data.medical.conversions import ImageConversion
from medrm.data.readers.unlabelled import STANDARD_INPUT
from medrm.errors import DataError, printable
from medrm.files import write_output
from medrm.models.adapter_config import AdapterConfig
from medrm.pipeline.score_parts import Line, RowCase
from medrm.schema import Case, Response
from medrm.scorer.caller_cases import unscored_reason
from medrm.statistics.calibration import win_probabilities

logger = logging.getLogger(__name__)

_LINES_AT_ONCE = 4096

_NAMED_PROBLEMS = 5
"""How many rows without a reward are named; the output says why of each."""


class ScorePlan(NamedTuple):
    """How the rewards of a row become its line.

    Attributes:
        contract: of the reward model.
        dimension: by which the best answer is chosen; None: none is.
        statistics: of the development cases, by dimension; None: rewards are not normalised.
        conversion: by which medical images become pictures; None: rows with some are no cases.
    """

    contract: AdapterConfig
    dimension: str | None
    statistics: dict[str, dict[str, float]] | None
    conversion: ImageConversion | None = None


def line_of(
    plan: ScorePlan, row: RowCase, response: Response | None, longest_row: int | None = None
) -> Line:
    """Returns the line of a row; without a response it says why the row is none.

    Args:
        plan: how rewards become a line.
        row: of the input.
        response: of the model, to the row's case.
        longest_row: that the model reads, in tokens.
    """
    if row.case is None or response is None:
        columns = {"row": row.number, "case_id": None, "state": "bad_row", "reason": row.problem}
        return columns | _rewards(plan, None, None)
    reason = unscored_reason(row.case, response, longest_row)
    if reason is not None and response.state == "ok":
        response = replace(response, state="error", rewards=None)
    columns = {"row": row.number, "case_id": row.case.case_id, "state": response.state}
    return columns | {"reason": reason or response.reason} | _rewards(plan, row.case, response)


def _rewards(plan: ScorePlan, case: Case | None, response: Response | None) -> Line:
    """Returns the columns of a row's rewards, null where it has none."""
    rewards = None if response is None else response.rewards
    line: Line = {"rewards": rewards}
    if plan.statistics is not None:
        line |= dict.fromkeys(("normalised", "win_probability"))
        if rewards is not None:
            line["normalised"] = {
                name: [(value - about["mean"]) / (about["std"] or 1) for value in rewards[name]]
                for name, about in plan.statistics.items()
            }
            line["win_probability"] = {
                name: win_probabilities(rewards[name], about["temperature"])
                if "temperature" in about
                else None
                for name, about in plan.statistics.items()
            }
    if plan.dimension is not None:
        line |= dict.fromkeys(("best", "best_answer"))
        if rewards is not None and case is not None:
            values = rewards[plan.dimension]
            line["best"] = max(range(len(values)), key=values.__getitem__)
            line["best_answer"] = case.answers[line["best"]]
    return line


def write_lines(output: str, plan: ScorePlan, lines: Iterable[Line]) -> dict[str, int]:
    """Writes the lines; returns how many rows have which state, the first problems logged."""
    counts: Counter[str] = Counter()

    def counted() -> Iterator[Line]:
        for line in lines:
            counts[line["state"]] += 1
            if line["state"] != "ok" and counts.total() - counts["ok"] <= _NAMED_PROBLEMS:
                told = printable(f"{line['case_id'] or ''} {line['reason'] or ''}".strip())
                logger.warning("row %d has no reward: %s", line["row"], told)
            yield line

    if output.endswith(".parquet"):
        _write_parquet(Path(output), plan, counted())
    elif output == STANDARD_INPUT:
        for line in counted():
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
    else:
        write_output(Path(output), (json.dumps(line).encode() + b"\n" for line in counted()))
    return dict(counts)


def _write_parquet(output: Path, plan: ScorePlan, lines: Iterable[Line]) -> None:
    import pyarrow as pa

    from medrm.data.parquet_files import parquet_writer

    by_dimension = pa.struct([(name, pa.list_(pa.float64())) for name in plan.contract.dimensions])
    names = ("case_id", "state", "reason")
    columns = [("row", pa.int64()), *((name, pa.string()) for name in names)]
    columns.append(("rewards", by_dimension))
    if plan.statistics is not None:
        columns += [("normalised", by_dimension), ("win_probability", by_dimension)]
    if plan.dimension is not None:
        columns += [("best", pa.int64()), ("best_answer", pa.string())]
    schema = pa.schema(columns)
    target = Path(os.path.realpath(output))
    target.parent.mkdir(parents=True, exist_ok=True)
    with parquet_writer(target, schema) as writer:
        for chunk in batched(lines, _LINES_AT_ONCE):
            writer.write_table(pa.Table.from_pylist(chunk, schema))


def report_counts(output: str, counts: dict[str, int]) -> None:
    """Says what was written.

    Raises:
        DataError: no row has a reward.
    """
    unscored = ", ".join(f"{count} {state}" for state, count in counts.items() if state != "ok")
    total = sum(counts.values())
    if counts.get("bad_image"):
        unscored += "; paths of images are relative to the input's folder, or to --image_root"
    if not counts.get("ok"):
        raise DataError(
            f"None of {total} rows has a reward ({unscored or 'the input is empty'}); {output} "
            "says why of each."
        )
    left_out = f" ({unscored})" if unscored else ""
    logger.info("%d of %d rows scored%s: %s", counts["ok"], total, left_out, output)

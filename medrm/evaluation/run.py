"""Scores a model on a benchmark and writes an evaluation folder; every case stays in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medrm.errors import ConfigError, DataError, nearest, printable
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.report import Report, build_report, write_report
from medrm.evaluation.verdicts import VerdictRow, rows_from_scored, write_lines, write_rows
from medrm.schema import Case

if TYPE_CHECKING:
    from medrm.scorer.batches import Scored


PROTOCOLS: dict[str, tuple[Literal["official", "robust"], ...]] = {
    "official": ("official",),
    "robust": ("robust",),
    "both": ("official", "robust"),
}

T = TypeVar("T")

_STATES = ("too_long", "bad_image")


class Scorer(Protocol):
    """What can be evaluated: a reward model, or a readout of a base model."""

    readout: str

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The names of its columns."""

    def judge(self, cases: Sequence[Case]) -> Iterator[Scored]:
        """Yields what it says of every case, in each order it presents."""


def evaluate(
    scorer: Scorer,
    benchmark: Benchmark,
    output_dir: Path,
    model_name: str,
    protocol: str = "both",
    settings: Mapping[str, Any] | None = None,
) -> Report:
    """Scores all cases, writes the evaluation folder and returns its report.

    Under several processes each scores a share of the cases; the first one writes.

    Args:
        scorer: the model and its readout.
        benchmark: what is judged.
        output_dir: the folder to write; what an earlier evaluation left there is replaced.
        model_name: the name under which the model is reported.
        protocol: `official`, `robust` or `both`.
        settings: what besides the weights could change a number; `compare` checks it.

    Raises:
        ConfigError: the protocol is unknown, or the model scores none of the dimensions.
        DataError: the benchmark is empty.
    """
    _check(scorer, benchmark, protocol)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    rows: list[VerdictRow] = []
    responses: list[dict[str, Any]] = []
    for scored in _judged(scorer, benchmark.cases[rank::world], benchmark.name, show=rank == 0):
        rows += rows_from_scored(
            [scored], scorer.dimensions, benchmark.dimensions, scorer.readout, PROTOCOLS[protocol]
        )
        responses += _responses(scored, scorer)
    if world > 1:
        rows, responses = _gather(rows), _gather(responses)
    place = {case.case_id: number for number, case in enumerate(benchmark.cases)}
    missing = place.keys() - {row.case_id for row in rows}
    if missing:
        raise RuntimeError(
            f"The scorer passed over {len(missing)} cases, such as {min(missing)!r}."
        )
    columns = {name: number for number, name in enumerate(benchmark.dimensions)}
    rows.sort(key=lambda row: (place[row.case_id], columns[row.dimension], row.protocol, row.order))
    responses.sort(key=lambda line: (place[line["case_id"]], line["order"], line["dimension"]))
    report = build_report(
        rows, benchmark, model_name, scorer.readout, settings or {}, _mass(responses)
    )
    if rank == 0:
        _write(output_dir, rows, responses, report)
    if world > 1:
        _gather([rank])  # nobody reads the folder before it is written
    return report


def _check(scorer: Scorer, benchmark: Benchmark, protocol: str) -> None:
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"protocol {protocol!r} is unknown; accepted: {', '.join(PROTOCOLS)}."
            f"{nearest(protocol, PROTOCOLS)}"
        )
    if not benchmark.cases:
        raise DataError(
            f"Benchmark {benchmark.name!r} has no case. Give a set with labelled cases."
        )
    if protocol == "official" and any(len(case.answers) != 2 for case in benchmark.cases):
        raise ConfigError(
            f"The official protocol judges pairs; benchmark {benchmark.name!r} has cases of more "
            "than two answers. Give --protocol robust or both."
        )
    if not set(scorer.dimensions) & set(benchmark.dimensions):
        raise ConfigError(
            f"The model scores {', '.join(scorer.dimensions)}; benchmark {benchmark.name!r} labels "
            f"{', '.join(benchmark.dimensions) or 'nothing'}. Give a benchmark that labels one of "
            "the model's dimensions."
        )


def _judged(scorer: Scorer, cases: Sequence[Case], name: str, *, show: bool) -> Iterator[Scored]:
    """Yields what the scorer says, with a progress bar on a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not (show and console.is_terminal)
    ) as bar:
        task = bar.add_task(escape(printable(f"{name} ({scorer.readout})")), total=len(cases))
        for scored in scorer.judge(cases):
            yield scored
            if scored.order == "forward":
                bar.advance(task)


def _responses(scored: Scored, scorer: Scorer) -> list[dict[str, Any]]:
    """The lines of `responses.jsonl`: one for each prompt of a judge, none for a scalar model."""
    if scorer.readout != "verdict_probability":
        return []
    state = "ok" if scored.reason is None else "error"
    lines = []
    for column, dimension in enumerate(scorer.dimensions):
        values = None if scored.probabilities is None else scored.probabilities[column].tolist()
        lines.append(
            {
                "case_id": scored.case.case_id,
                "order": scored.order,
                "dimension": dimension,
                "vote": 0,
                "readout": scorer.readout,
                "prompt_digest": scored.prompt_digest,
                "text": None,
                "probabilities": None if values is None else {dimension: values},
                "finish_reason": None,
                "state": scored.reason if scored.reason in _STATES else state,
            }
        )
    return lines


def _mass(responses: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean probability of naming one of the two answers at all; None for scalar models.

    Where it is small, the verdicts compare two things the model would hardly ever say.
    """
    masses = [
        probabilities[2]
        for line in responses
        if line["probabilities"] is not None
        for probabilities in line["probabilities"].values()
    ]
    return fmean(masses) if masses else None


def _gather(mine: list[T]) -> list[T]:
    """Returns the items of all processes."""
    from accelerate.utils import gather_object

    gathered: list[T] = gather_object(mine)
    return gathered


def _write(
    folder: Path, rows: list[VerdictRow], responses: list[dict[str, Any]], report: Report
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("responses.jsonl", "official.csv"):
        (folder / name).unlink(missing_ok=True)
    if responses:
        write_lines(folder / "responses.jsonl", responses)
    write_rows(folder / "verdicts.jsonl", rows)
    write_report(folder, report)

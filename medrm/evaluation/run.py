"""Scores a model on a benchmark and writes an evaluation folder; every case stays in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medrm.errors import ConfigError, DataError, nearest, printable
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.lines import write_lines
from medrm.evaluation.readings import is_official, rows_from_scored
from medrm.evaluation.report import Report, build_report, write_report
from medrm.evaluation.verdicts import VerdictRow, write_rows
from medrm.schema import DIMENSIONS, Case, Response

if TYPE_CHECKING:
    from medrm.scorer.batches import Scored


PROTOCOLS: dict[str, tuple[Literal["official", "robust"], ...]] = {
    "official": ("official",),
    "robust": ("robust",),
    "both": ("official", "robust"),
}

T = TypeVar("T")


class Scorer(Protocol):
    """What can be evaluated: a reward model, a judge, or a readout of a base model."""

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
    responses: list[Response] = []
    for scored in _judged(scorer, benchmark.cases[rank::world], benchmark.name, show=rank == 0):
        if protocol == "official":
            _check_official(scored, scorer.dimensions)
        rows += rows_from_scored(
            [scored], scorer.dimensions, benchmark.dimensions, scorer.readout, PROTOCOLS[protocol]
        )
        responses += scored.responses
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
    asked = [None, *scorer.dimensions]
    responses.sort(
        key=lambda one: (place[one.case_id], one.order, asked.index(one.dimension), one.vote)
    )
    report = build_report(
        rows, responses, benchmark, model_name, scorer.readout, scorer.dimensions, settings or {}
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


def _check_official(scored: Scored, asked: Sequence[str]) -> None:
    if scored.responses and not is_official(scored.responses[0], asked):
        raise ConfigError(
            f"The official protocol reads one reply on all of {', '.join(DIMENSIONS)}; this judge "
            "is asked about less at a time. Give --protocol robust or both, or the prompt 'json' "
            "and all six dimensions."
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


def _gather(mine: list[T]) -> list[T]:
    """Returns the items of all processes."""
    from accelerate.utils import gather_object

    gathered: list[T] = gather_object(mine)
    return gathered


def _write(folder: Path, rows: list[VerdictRow], responses: list[Response], report: Report) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("responses.jsonl", "official.csv"):
        (folder / name).unlink(missing_ok=True)
    if responses:
        write_lines(folder / "responses.jsonl", map(asdict, responses))
    write_rows(folder / "verdicts.jsonl", rows)
    write_report(folder, report)

"""Asks a model about a benchmark and writes an evaluation folder; every case stays in it.

What the model says is on the disk after each case. Started again, an evaluation asks only for what
is not there yet.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from medrm.errors import ConfigError, DataError, printable
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.folder import (
    Setup,
    check_protocol,
    conclude,
    held,
    prepare,
    rows_of,
)
from medrm.evaluation.records.journal import RESPONSES_FILE, Journal
from medrm.evaluation.records.responses import write_responses
from medrm.evaluation.records.scoring import Said, said_of
from medrm.evaluation.report import Report
from medrm.schema import Case, Verdict

if TYPE_CHECKING:
    from medrm.scorer.runner import Scored

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Scorer(Protocol):
    """What can be evaluated: a reward model, a judge, or a readout of a base model."""

    readout: str

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The names of its columns."""

    @property
    def window(self) -> int | None:
        """How many cases it computes together, so that they may change each other's rounding.

        None: what it says of a case depends on the case alone.
        """

    def judge(self, cases: Sequence[Case]) -> Iterator[Scored]:
        """Yields what it says of every case: a judge in the forward order, then in the reversed."""


def evaluate(
    scorer: Scorer,
    benchmark: Benchmark,
    output_dir: Path,
    model_name: str,
    protocol: str = "both",
    settings: Mapping[str, Any] | None = None,
    *,
    identity: str | None = None,
    images: bool = False,
    overwrite: bool = False,
) -> Report:
    """Asks about all cases, writes the evaluation folder and returns its report.

    Under several processes each asks about a share of the cases; the first one writes. A folder
    that holds a part of the same evaluation is continued.

    Args:
        scorer: the model and its readout.
        benchmark: what is judged.
        output_dir: the folder to write.
        model_name: the name under which the model is reported.
        protocol: `official`, `robust` or `both`.
        settings: what besides the weights could change a number; `compare` checks it.
        identity: of the weights; None: nothing says whether they are those of an earlier start, so
            that nothing is continued.
        images: whether small copies of the images are kept.
        overwrite: whether another evaluation that lies in the folder is replaced.

    Raises:
        ConfigError: the protocol is unknown, or the model scores none of the dimensions, or the
            folder holds another evaluation, or one is writing it.
        DataError: the benchmark is empty.
    """
    _check(scorer, benchmark, protocol)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    setup = Setup(
        model_name,
        identity,
        scorer.readout,
        tuple(scorer.dimensions),
        dict(settings or {}),
        protocol,
        scorer.window,
        world,
    )
    with held(output_dir) if rank == 0 else nullcontext():
        if rank == 0:
            prepare(output_dir, setup, benchmark, images=images, overwrite=overwrite)
        return _continued(scorer, setup, benchmark, output_dir, rank)


def _continued(
    scorer: Scorer, setup: Setup, benchmark: Benchmark, folder: Path, rank: int
) -> Report:
    """Asks for what is not there yet, and writes the folder anew."""
    world = setup.processes
    _meet(world)  # nobody reads what the first process removes
    mine = benchmark.cases[rank::world]
    address = setup.address(benchmark.cases)
    journal = Journal(folder, address, setup.dimensions, rank, world)
    said, rows = _ask(scorer, mine, journal, setup, benchmark)
    grown = world == 1 and list(said) == [case.case_id for case in benchmark.cases]
    if world > 1:
        said, rows = dict(_gather(list(said.items()))), _gather(rows)
    _check_all(benchmark, said)
    if rank == 0 and not grown:
        _write_in_order(folder, benchmark, said)
    report = conclude(setup, benchmark, said, rows, folder if rank == 0 else None)
    _meet(world)  # nobody reads the folder before it is written
    journal.remove()
    return report


def _check(scorer: Scorer, benchmark: Benchmark, protocol: str) -> None:
    check_protocol(protocol)
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


def _ask(
    scorer: Scorer, cases: Sequence[Case], journal: Journal, setup: Setup, benchmark: Benchmark
) -> tuple[dict[str, Said], list[Verdict]]:
    """Returns what the scorer says of the cases, in the order of the journal, and its rows."""
    judged = set(setup.dimensions) & set(benchmark.dimensions)
    good = {
        case.case_id: known
        for case in cases
        if (known := journal.known.get(case.case_id)) is not None
        and not known.failed
        and known.covers(judged, len(case.answers))
    }
    kept, missing = _parts(cases, good, scorer.window)
    if kept:
        _log.info("%d of %d cases are there already.", len(kept), len(cases))
    journal.start(kept)
    said = {one.case_id: one for one in kept}
    by_id = {case.case_id: case for case in cases}
    rows = [
        row for one in kept for row in rows_of(one, by_id[one.case_id], setup, benchmark.dimensions)
    ]
    try:
        for one in _heard(scorer, missing, benchmark.name, len(cases), len(kept)):
            rows += rows_of(one, by_id[one.case_id], setup, benchmark.dimensions)
            journal.append(one)
            said[one.case_id] = one
    finally:
        journal.close()
    return said, rows


def _parts(
    cases: Sequence[Case], good: Mapping[str, Said], window: int | None
) -> tuple[list[Said], list[Sequence[Case]]]:
    """Returns what need not be asked again, and the cases to ask about, by windows.

    A window is kept whole or not at all: its cases were computed together.

    Args:
        cases: of this process.
        good: what was said and need not be asked again, by case.
        window: how many cases are computed together.
    """
    if window is None:
        missing = [case for case in cases if case.case_id not in good]
        kept = [good[case.case_id] for case in cases if case.case_id in good]
        return kept, [missing] if missing else []
    kept, windows = [], []
    for start in range(0, len(cases), window):
        together = cases[start : start + window]
        if all(case.case_id in good for case in together):
            kept += [good[case.case_id] for case in together]
        else:
            windows.append(together)
    return kept, windows


def _heard(
    scorer: Scorer, windows: Iterable[Sequence[Case]], name: str, total: int, done: int
) -> Iterator[Said]:
    """Yields what the scorer says of each case, with a progress bar on a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    show = os.environ.get("RANK", "0") == "0" and console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not show) as bar:
        label = escape(printable(f"{name} ({scorer.readout})"))
        task = bar.add_task(label, total=total, completed=done)
        for cases in windows:
            presented: list[Scored] = []
            for scored in scorer.judge(cases):
                presented.append(scored)
                if scored.responses and scored.order == "forward":
                    continue  # a judge is shown the reversed order next
                yield said_of(presented, scorer.dimensions)
                presented = []
                bar.advance(task)


def _check_all(benchmark: Benchmark, said: Mapping[str, Said]) -> None:
    missing = [case.case_id for case in benchmark.cases if case.case_id not in said]
    if missing:
        raise RuntimeError(
            f"The scorer passed over {len(missing)} cases, such as {min(missing)!r}."
        )


def _write_in_order(folder: Path, benchmark: Benchmark, said: Mapping[str, Said]) -> None:
    """Writes `responses.jsonl` of a judge, where it has not grown in order."""
    responses = [one for case in benchmark.cases for one in said[case.case_id].responses]
    if responses:
        write_responses(folder / RESPONSES_FILE, responses)


def _gather(mine: list[T]) -> list[T]:
    """Returns the items of all processes."""
    from accelerate.utils import gather_object

    gathered: list[T] = gather_object(mine)
    return gathered


def _meet(world: int) -> None:
    """Waits until every process is here."""
    if world > 1:
        _gather([0])

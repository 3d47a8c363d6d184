"""A base read by its words, and which of its readouts is `before`: the better on development.

What the readouts reached on the development cases is kept in `before.json`, so that a run that goes
on chooses as it did. A readout that was considered once stays considered: controls that are asked
for later only add to the choice.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

from accelerate import PartialState

from medrm.data.store.indexed_cases import column
from medrm.errors import first_line
from medrm.evaluation.folder import read_setup
from medrm.evaluation.records.jsonl import RESPONSES_FILE, read_responses
from medrm.files import DRAFT, replace_folder
from medrm.integrity import read_record, write_record
from medrm.pipeline.context import DEVELOPMENT, ReportRow, RunContext
from medrm.pipeline.processes import from_main
from medrm.pipeline.whole_evaluations import is_undamaged
from medrm.schema import Case
from medrm.scorer import Scorer
from medrm.scorer.open import JudgeRecord, LoadedModel, open_scorer

logger = logging.getLogger(__name__)

ZERO_SHOT = {"zero_shot_verdict": "verdict_probability", "zero_shot_likelihood": "likelihood"}
"""The controls that read a base by its words, and their readouts."""

AVERAGED = {"zero_shot_verdict": "zero_shot_averaged", "base_skeleton": "base_averaged"}
"""The controls in which what another one's readout said counts with both orders averaged."""

CHOICE_FILE = "before.json"


def read_choice(output: Path) -> dict[str, float]:
    """Returns the accuracies on the development cases by which `before` was chosen.

    Nothing where there was no choice.
    """
    path = output / CHOICE_FILE
    if not os.path.lexists(path):
        return {}
    try:
        development = read_record(path)["development"]
        return {str(name): float(share) for name, share in development.items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        logger.warning("%s is damaged, and is measured again: %s", path, first_line(error))
        return {}


def measure_zero_shot(context: RunContext) -> None:
    """Measures the base by its words, and makes the readout that is better on development `before`.

    A readout that no control asks for is not run. Where none is asked for, the headline needs the
    better of all: they are run on the development cases, and the better one alone on the benchmark
    (all in a cross-fitted run, which chooses by the mean over its folds).
    """
    crossfit, wanted = context.run.data.crossfit, {*context.run.evaluation.controls}
    asked = [name for name in ZERO_SHOT if wanted & {name, AVERAGED.get(name)}]
    earlier, measured = from_main(
        lambda: (read_choice(context.output), [name for name in ZERO_SHOT if context.holds(name)])
    )
    names = {*(asked or ZERO_SHOT), *earlier, *measured}
    if not all(map(are_pairs, (context.splits.benchmark.cases, context.splits.development))):
        names = {"zero_shot_likelihood"}
    considered = [name for name in ZERO_SHOT if name in names]
    base = cache(lambda: context.in_memory(context.base()))
    development: dict[str, float] = {}
    # A fold may have no pairs alone, but the folds choose together.
    if len(considered) > 1 or earlier or (crossfit and len(asked) != 1):
        development = {
            name: earlier[name]
            if name in earlier
            else context.measure(_development_row(context, name, base))
            for name in considered
        }
    better = max(considered, key=lambda name: development.get(name, 0.0))
    for name in considered:
        if crossfit or name in (*asked, better):
            for row in rows_with_average(context, name, ZERO_SHOT[name], base):
                context.measure(row)
    _settle(context, development, better)


def _settle(context: RunContext, development: Mapping[str, float], better: str) -> None:
    """Keeps what was measured to choose by, and makes the better readout `before`.

    Args:
        context: of the run.
        development: the readouts' accuracies; empty where there was no choice.
        better: the readout to take, of this model alone.
    """
    state, crossfit = PartialState(), context.run.data.crossfit
    state.wait_for_everyone()
    if state.is_main_process:
        if development != read_choice(context.output):
            write_record(context.output / CHOICE_FILE, {"development": development})
        for name in development:
            kept = context.holds(name)
            shutil.rmtree(context.folder(name) / (DEVELOPMENT if kept else ""), ignore_errors=True)
        if crossfit and context.holds("before"):
            pass  # all folds together choose in the end
        elif development:
            settle_before([context.folder("")], [development])
        else:
            _copy_as_before(context.folder(""), better)
    state.wait_for_everyone()


def _development_row(context: RunContext, name: str, base: Callable[[], LoadedModel]) -> ReportRow:
    """Returns the row in which one of the base's readouts is measured to choose by."""
    return ReportRow(
        f"{name}/{DEVELOPMENT}",
        lambda: context.scorer(base(), ZERO_SHOT[name], (context.splits.primary,)),
        context.base_weights,
        context.development_benchmark(),
    )


def rows_with_average(
    context: RunContext, name: str, readout: str, base: Callable[[], LoadedModel]
) -> Iterator[ReportRow]:
    """Yields the base by one readout, and what it said with both orders averaged, if wanted.

    The model is not asked again. More than two answers are compared by wins, not by means.
    """

    def open_average() -> Scorer:
        folder = context.folder(name)
        setup, responses = read_setup(folder)[0], read_responses(folder / RESPONSES_FILE)
        record = JudgeRecord(responses, setup.dimensions, setup.settings)
        return open_scorer(record, "verdict_averaged")

    yield ReportRow(name, lambda: context.scorer(base(), readout), context.base_weights)
    averaged = AVERAGED.get(name)
    pairs = are_pairs(context.splits.benchmark.cases)
    if pairs and averaged in context.run.evaluation.controls:
        yield ReportRow(str(averaged), open_average, context.base_weights)


def settle_before(evaluations: Sequence[Path], accuracies: Sequence[Mapping[str, float]]) -> None:
    """Makes the readout that is best on the development cases `before`, the same in all folds.

    Args:
        evaluations: the folder of the evaluations of each fold, or of the one model.
        accuracies: of the readouts that each measured on its development cases.
    """
    means = {name: fmean(shares[name] for shares in accuracies) for name in in_all(accuracies)}
    better = max(means, key=means.__getitem__)
    for folder in evaluations:
        _copy_as_before(folder, better)
    shares = ", ".join(f"{name} {share:.3f}" for name, share in means.items())
    of_folds = ", mean over the folds" if len(evaluations) > 1 else ""
    logger.info("before: %s (development%s: %s)", better, of_folds, shares)


def _copy_as_before(evaluations: Path, name: str) -> None:
    """Makes one evaluation `before` as well, whole or not at all; nothing where it is already."""
    reports = [evaluations / folder / "report.json" for folder in (name, "before")]
    is_there = reports[1].is_file() and is_undamaged(evaluations / "before")
    if is_there and reports[0].read_bytes() == reports[1].read_bytes():
        return
    with tempfile.TemporaryDirectory(dir=evaluations, prefix=DRAFT) as scratch:
        draft = Path(scratch) / "before"
        shutil.copytree(evaluations / name, draft, ignore=shutil.ignore_patterns(DEVELOPMENT))
        replace_folder(draft, evaluations / "before")


def in_all(names_of_folds: Sequence[Iterable[str]]) -> list[str]:
    """Returns the names that every fold has, in the order of the first."""
    first, *others = names_of_folds
    return [name for name in first if all(name in names for names in others)]


def are_pairs(cases: Sequence[Case]) -> bool:
    """Returns whether every case has two answers."""
    return bool((column(cases, "answer_count") == 2).all())

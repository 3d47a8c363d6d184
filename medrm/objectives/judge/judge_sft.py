"""Supervised judges: TRL's `SFTTrainer` learns to write the experts' verdict, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from trl import SFTTrainer

from medrm.config import Run
from medrm.data.images import ImageFacts
from medrm.objectives.judge.common import (
    Quiet,
    Rows,
    check_judge,
    check_rationales,
    own_arguments,
    rationales_of,
    rows_of,
    run_dimensions,
    verdict_lengths,
)
from medrm.objectives.judge.judge_arguments import JudgeSFTConfig
from medrm.objectives.judge.judge_collator import Writer, Written, numbered, supervised
from medrm.objectives.objective import Objective, TrainingInputs
from medrm.objectives.trainer import MetricsFile
from medrm.schema import Case
from medrm.scorer.collator import Collator

NAME = "judge_sft"


class JudgeSFTTrainer(Quiet, SFTTrainer):  # type: ignore[misc] # TRL has no types
    """TRL's trainer, quiet."""


def check(
    run: Run, dimensions: Sequence[str], train: Sequence[Case], development: Sequence[Case]
) -> None:
    """Refuses what can be known to be wrong without a model; see `Objective.check`.

    Raises:
        ConfigError: options that do not fit each other or the cases.
        DataError: no case with a label to learn from, or bad rationales.
    """
    check_rationales(run)
    check_judge(run, NAME, dimensions, train, development)
    rationales_of(run, dimensions, [*train, *development])


def lengths(
    run: Run,
    collator: Collator,
    dimensions: Sequence[str],
    cases: Sequence[Case],
    facts: Mapping[str, ImageFacts],
) -> list[int]:
    """Returns the tokens of each case's longest row; see `Objective.lengths`."""
    rationales = rationales_of(run, dimensions, cases)
    return verdict_lengths(run, collator, dimensions, cases, facts, rationales)


def write(writer: Writer, rows: Rows, number: int) -> Written:
    """Returns the row of a number."""
    return writer.verdict(rows[number], rows.prompt)


def build_trainer(inputs: TrainingInputs) -> JudgeSFTTrainer:
    """Returns the trainer of `inputs.model`.

    Raises:
        ConfigError: options that do not fit each other or the cases.
        DataError: no case with a label to learn from, or bad rationales.
    """
    run, model, collator, train, development = (
        inputs.run,
        inputs.model,
        inputs.collator,
        inputs.train,
        inputs.development,
    )
    dimensions = run_dimensions(run, train)
    rationales = rationales_of(run, dimensions, [*train, *development])
    rows = rows_of(run, dimensions, train, development, rationales)
    writer = Writer.of(collator)
    return JudgeSFTTrainer(
        model=model,
        args=own_arguments(run),
        data_collator=partial(supervised, writer, partial(write, writer, rows)),
        train_dataset=numbered(len(rows.train)),
        eval_dataset=numbered(len(rows.development), len(rows.train)),
        processing_class=collator.processor,
        callbacks=[MetricsFile()],
    )


OBJECTIVE = Objective(
    config=JudgeSFTConfig,
    readout=lambda run: run.judge.judge_readout,
    head_spec=None,
    lengths=lengths,
    check=check,
    build_trainer=build_trainer,
)

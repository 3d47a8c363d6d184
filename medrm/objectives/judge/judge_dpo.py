"""Preference-trained judges: TRL's `DPOTrainer` on right and wrong verdicts, or on the answers.

The reference is the adapter as it started: a fresh one is the base itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from trl import DPOTrainer

from medrm.config import Run
from medrm.data.images import ImageFacts
from medrm.errors import ConfigError
from medrm.objectives.judge.common import (
    Referenced,
    Rows,
    check_judge,
    check_rationales,
    own_arguments,
    rationales_of,
    rows_of,
    run_dimensions,
    verdict_lengths,
)
from medrm.objectives.judge.judge_arguments import JudgeDPOConfig
from medrm.objectives.judge.judge_collator import Writer, Written, numbered, preferred
from medrm.objectives.judge.verdict_targets import LabelRule, drawn_dimension, learned_answer
from medrm.objectives.objective import Objective, TrainingInputs
from medrm.objectives.trainer import MetricsFile
from medrm.schema import Case
from medrm.scorer.collator import Collator, Row

NAME = "judge_dpo"

Pair = tuple[Written, Written]
"""What is preferred, and to what."""


class JudgeDPOTrainer(Referenced, DPOTrainer):  # type: ignore[misc] # TRL has no types
    """TRL's trainer, quiet."""


def readout(run: Run) -> str:
    """Returns how the adapter is scored: as what its pairs are."""
    return "implicit_reward" if run.training.dpo_pairs == "answers" else run.judge.judge_readout


def check(
    run: Run, dimensions: Sequence[str], train: Sequence[Case], development: Sequence[Case]
) -> None:
    """Refuses what can be known to be wrong without a model; see `Objective.check`.

    Raises:
        ConfigError: options that do not fit each other or the cases.
        DataError: no case with a label to learn from, or bad rationales.
    """
    if not run.adapter.use_peft:
        raise ConfigError(
            "use_peft false with judge_dpo would hold a second whole model as the reference; train "
            "an adapter, whose reference is the base"
        )
    if run.training.dpo_pairs == "answers":
        if len(dimensions) != 1:
            raise ConfigError(
                f"dpo_pairs answers learns one preference between two answers, the run has "
                f"{len(dimensions)} dimensions ({', '.join(dimensions)}); choose one, such as "
                "`--dimensions overall`"
            )
        if run.judge.init_adapter is not None:
            raise ConfigError(
                "init_adapter with dpo_pairs answers: the implicit reward compares the adapter "
                "with the base, so it must start there; leave init_adapter out"
            )
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
    if run.training.dpo_pairs == "verdicts":
        rationales = rationales_of(run, dimensions, cases)
        return verdict_lengths(run, collator, dimensions, cases, facts, rationales)
    writer = Writer.of(collator)

    def rows(case: Case) -> list[Row]:
        return [writer.answer(case, place).row for place in range(len(case.answers))]

    return collator.lengths(cases, facts, rows)


def write_verdicts(writer: Writer, rows: Rows, one: bool, number: int) -> Pair:
    """Returns the right verdict of a row, and the wrong one.

    Args:
        writer: of the run.
        rows: of the run.
        one: whether one letter alone is wrong.
        number: of the row.
    """
    row = rows[number]
    flipped = (drawn_dimension(row),) if one else row.learned
    return writer.verdict(row, rows.prompt), writer.verdict(row, rows.prompt, flipped)


def write_answers(writer: Writer, pairs: Sequence[tuple[Case, int]], number: int) -> Pair:
    """Returns the conversations with the better and with the worse answer of a case.

    Args:
        writer: of the run.
        pairs: cases and the place of their better answer.
        number: of the pair.
    """
    case, better = pairs[number]
    return writer.answer(case, better), writer.answer(case, 1 - better)


def answer_pairs(cases: Sequence[Case], dimension: str, rule: LabelRule) -> list[tuple[Case, int]]:
    """Returns the cases of which something is learned, with the place of their better answer."""
    found = [(case, learned_answer(case, dimension, rule)) for case in cases]
    return [(case, better) for case, better in found if better is not None]


def build_trainer(inputs: TrainingInputs) -> JudgeDPOTrainer:
    """Returns the trainer of `inputs.model`.

    Raises:
        ConfigError: the prompt is none.
        DataError: bad rationales.
    """
    run, model, collator, train, development = (
        inputs.run,
        inputs.model,
        inputs.collator,
        inputs.train,
        inputs.development,
    )
    options: JudgeDPOConfig = run.training
    dimensions, writer = run_dimensions(run, train), Writer.of(collator)
    rationales = rationales_of(run, dimensions, [*train, *development])
    rows = rows_of(run, dimensions, train, development, rationales)
    counts = (len(rows.train), len(rows.development))
    write = partial(write_verdicts, writer, rows, options.flip == "one")
    if options.dpo_pairs == "answers":
        pairs = [
            answer_pairs(cases, dimensions[0], options.label_rule) for cases in (train, development)
        ]
        counts = (len(pairs[0]), len(pairs[1]))
        write = partial(write_answers, writer, [*pairs[0], *pairs[1]])
    return JudgeDPOTrainer(
        model=model,
        args=own_arguments(run),
        data_collator=partial(preferred, writer, write),
        train_dataset=numbered(counts[0]),
        eval_dataset=numbered(counts[1], counts[0]),
        processing_class=collator.processor,
        callbacks=[MetricsFile()],
    )


OBJECTIVE = Objective(
    config=JudgeDPOConfig,
    readout=readout,
    head_spec=None,
    lengths=lengths,
    check=check,
    build_trainer=build_trainer,
)

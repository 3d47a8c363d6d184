"""Preference-trained judges: TRL's `DPOTrainer` on right and wrong verdicts, or on the answers.

The reference is the adapter as it started: a fresh one is the base itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from trl import DPOConfig, DPOTrainer

from medrm.config.option import option
from medrm.config.parse import Run
from medrm.data.images import ImageFacts
from medrm.data.store.indexed_cases import tokens_of
from medrm.errors import applying, refuse
from medrm.objectives.judge import judge_sft
from medrm.objectives.judge.judge_collator import (
    ConversationRenderer,
    RenderedConversation,
    preferred,
)
from medrm.objectives.judge.judge_examples import LabelRule, drawn_dimension, learned_answer
from medrm.objectives.judge.judge_trainer import WithReference, rows_of_sets
from medrm.objectives.objective import Fixed, Objective, TrainingInputs
from medrm.objectives.step_preview import StepPreview, preview_rows
from medrm.objectives.training_faults import numbering
from medrm.objectives.whole_checkpoints import WholeCheckpoints
from medrm.schema import Case
from medrm.scorer.collator import Collator, Row

ConversationPair = tuple[RenderedConversation, RenderedConversation]
"""What is preferred, and to what."""


@dataclass
class JudgeDPOConfig(judge_sft.WrittenVerdictArguments, DPOConfig):  # type: ignore[misc]
    """Arguments of `trl.DPOConfig`. A step is counted in pairs, as with TRL."""

    fixed: ClassVar[Fixed] = {
        **judge_sft.FIXED_ROWS,
        "precompute_ref_log_probs": (False, "TRL cannot do it with images"),
        "sync_ref_model": (False, "the reference is the adapter as it started"),
    }

    dpo_pairs: Literal["verdicts", "answers"] = option(
        "verdicts",
        "What is preferred to what. verdicts: the right verdict to a wrong one; answers: the "
        "better of the case's two answers to the other, on one dimension, scored by the implicit "
        "reward: beta times the log-probability with the adapter less that without.",
    )
    flip: Literal["all", "one"] = option(
        "all", "The letters that are wrong in a wrong verdict: all that are learned, or one."
    )
    learning_rate: float = option(5e-6, "Learning rate of the adapter.")

    def _problems(self) -> list[str]:
        of_answers = self.dpo_pairs == "answers"
        checks = {
            "flip is one; leave it out with dpo_pairs answers, which have no letters": (
                of_answers and self.flip != "all"
            ),
            "rationales with dpo_pairs answers: leave them out; nothing is judged": (
                of_answers and self.rationales is not None
            ),
            f"beta is {self.beta}; give more than 0": self.beta <= 0,
        }
        return [*super()._problems(), *applying(checks)]


class JudgeDPOTrainer(WholeCheckpoints, WithReference, DPOTrainer):  # type: ignore[misc] # TRL has no types
    """TRL's trainer, which sends and writes nothing else."""


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
    of_answers = run.training.dpo_pairs == "answers"
    checks = {
        "use_peft false with judge_dpo would hold a second whole model as the reference; train an "
        "adapter, whose reference is the base": not run.adapter.use_peft,
        f"dpo_pairs answers learns one preference between two answers, the run has "
        f"{len(dimensions)} dimensions ({', '.join(dimensions)}); choose one, such as "
        "`--dimensions overall`": of_answers and len(dimensions) != 1,
        "init_adapter with dpo_pairs answers: the implicit reward compares the adapter with the "
        "base, so it must start there; leave init_adapter out": (
            of_answers and run.judge.init_adapter is not None
        ),
    }
    refuse(applying(checks))
    judge_sft.check_judge(run, dimensions, train, development)


def lengths(
    run: Run,
    collator: Collator,
    dimensions: Sequence[str],
    cases: Sequence[Case],
    facts: Mapping[str, ImageFacts],
) -> list[int]:
    """Returns the tokens of each case's longest row; see `Objective.lengths`."""
    if run.training.dpo_pairs == "verdicts":
        return judge_sft.verdict_lengths(run, collator, dimensions, cases, facts)
    renderer = ConversationRenderer.of(collator)

    def rows(case: Case) -> list[Row]:
        return [renderer.answer(case, index).row for index in range(len(case.answers))]

    return collator.lengths(cases, facts, rows)


def render_verdicts(
    renderer: ConversationRenderer, examples: judge_sft.RunExamples, flips_one: bool, number: int
) -> ConversationPair:
    """Returns the right verdict of an example, and the wrong one.

    Args:
        renderer: of the run.
        examples: of the run.
        flips_one: whether one letter alone is wrong; else all that are learned.
        number: of the example.
    """
    example, prompt = examples[number], examples.prompt
    flipped = (drawn_dimension(example),) if flips_one else example.learned
    return renderer.verdict(example, prompt), renderer.verdict(example, prompt, flipped)


def render_answers(
    renderer: ConversationRenderer, pairs: Sequence[tuple[Case, int]], number: int
) -> ConversationPair:
    """Returns the conversations with the better and with the worse answer of a case.

    Args:
        renderer: of the run.
        pairs: cases and the index of their better answer.
        number: of the pair.
    """
    case, better = pairs[number]
    return renderer.answer(case, better), renderer.answer(case, 1 - better)


def answer_pairs(cases: Sequence[Case], dimension: str, rule: LabelRule) -> list[tuple[Case, int]]:
    """Returns the cases of which something is learned, with the index of their better answer."""
    pairs = [(case, learned_answer(case, dimension, rule)) for case in cases]
    return [(case, better) for case, better in pairs if better is not None]


def epoch_rows(run: Run, dimensions: Sequence[str], train: Sequence[Case]) -> int:
    """Returns how many pairs are learned in an epoch; see `Objective.epoch_rows`."""
    if run.training.dpo_pairs == "verdicts":
        return judge_sft.epoch_rows(run, dimensions, train)
    (dimension,) = dimensions
    return len(answer_pairs(train, dimension, run.training.label_rule))


def build_trainer(inputs: TrainingInputs) -> JudgeDPOTrainer:
    """Returns the trainer of `inputs.model`.

    Raises:
        ConfigError: the prompt is none.
        DataError: bad rationales.
    """
    options: JudgeDPOConfig = inputs.run.training
    examples, renderer = judge_sft.run_examples(inputs), ConversationRenderer.of(inputs.collator)
    splits: list[Sequence[Any]] = [examples.train, examples.development]
    render = partial(render_verdicts, renderer, examples, options.flip == "one")
    if options.dpo_pairs == "answers":
        (dimension,), rule = judge_sft.run_dimensions(inputs.run, inputs.train), options.label_rule
        cases_of_splits = (inputs.train, inputs.development)
        splits = [answer_pairs(cases, dimension, rule) for cases in cases_of_splits]
        render = partial(render_answers, renderer, [*splits[0], *splits[1]])
    trainer = JudgeDPOTrainer(
        **judge_sft.trainer_options(inputs, *splits),
        data_collator=numbering(partial(preferred, renderer, render)),
    )
    pairs = [*splits[0], *splits[1]] if options.dpo_pairs == "answers" else []
    trainer.case_of = (lambda number: pairs[number][0].case_id) if pairs else examples.case_id
    measured = [case for case, _ in splits[1]] if pairs else [e.case for e in examples.development]
    trainer.development_sets = rows_of_sets(measured)
    return trainer


def preview(inputs: TrainingInputs, trainer: JudgeDPOTrainer, processes: int) -> StepPreview:
    """Returns what the steps will be; see `Objective.preview`."""
    if inputs.run.training.dpo_pairs == "answers":
        (dimension,) = judge_sft.run_dimensions(inputs.run, inputs.train)
        rule = inputs.run.training.label_rule
        cases = [case for case, _ in answer_pairs(inputs.train, dimension, rule)]
        tokens = tokens_of(cases, judge_sft.tokens_by_case(inputs))
    else:
        tokens = judge_sft.example_tokens(inputs)
    return preview_rows(trainer, tokens, processes, unit="pairs", rows_of_each=2)


OBJECTIVE = Objective(
    config=JudgeDPOConfig,
    readout=readout,
    lengths=lengths,
    check=check,
    build_trainer=build_trainer,
    epoch_rows=epoch_rows,
    preview=preview,
)

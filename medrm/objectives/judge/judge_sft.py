"""Supervised judges, whose `SFTTrainer` learns to write the experts' verdict and nothing else.

The other objectives of judges share its arguments, checks, examples and lengths.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from trl import SFTConfig, SFTTrainer

from medrm.chat import JudgePrompt, load_prompt
from medrm.config.option import option
from medrm.config.parse import Run
from medrm.data.case_set import dimensions_of
from medrm.data.images import ImageFacts
from medrm.data.store.indexed_cases import tokens_of
from medrm.errors import ConfigError, DataError, applying, refuse
from medrm.models.base_model import load_config
from medrm.models.families import family_of
from medrm.objectives import objective
from medrm.objectives.judge.judge_collator import (
    ConversationRenderer,
    RenderedConversation,
    numbered,
    supervised,
)
from medrm.objectives.judge.judge_examples import (
    JudgeExample,
    LabelRule,
    Rationales,
    judge_examples,
    read_rationales,
)
from medrm.objectives.judge.judge_trainer import JudgeTrainer, rows_of_sets
from medrm.objectives.step_preview import StepPreview, preview_rows
from medrm.objectives.training_faults import numbering
from medrm.objectives.whole_checkpoints import WholeCheckpoints
from medrm.schema import Case
from medrm.scorer.collator import Collator, Row, image_count

ADVICE = "train another family, or by another objective"
"""What to do where TRL cannot train a family by an objective."""

FIXED: objective.Fixed = {
    "remove_unused_columns": (False, "rows are numbers that the collator looks up"),
    "auto_find_batch_size": (False, "set per_device_train_batch_size; a step stays as it is"),
    "train_sampling_strategy": ("random", "every epoch is shuffled by the seed"),
    "label_smoothing_factor": (0.0, "TRL's losses do not take it"),
    "model_init_kwargs": (None, "the base model is loaded by the options of the model"),
    "pad_to_multiple_of": ("auto", "rows are padded to the longest of their batch"),
    "use_liger_kernel": (False, "it replaces the forward pass that TRL reads its losses from"),
}
FIXED_ROWS: objective.Fixed = {
    **FIXED,
    "padding_free": (False, "rows with images are padded"),
    "truncation_mode": ("keep_start", "nothing is truncated; max_length sets cases aside"),
    "dataset_num_proc": (None, "rows are made by the data loader's workers"),
    "pad_token": (None, "the processor's own is used"),
}


@dataclass
class JudgeArguments(objective.CommonArguments):
    """What the arguments of all judges share; precedes a class of TRL's in the list of bases."""

    label_rule: Literal["majority", "plurality", "sampled"] = option(
        "majority",
        "Which labels are learned. majority: those on which more than half of the votes name one "
        "answer; plurality: those on which more votes name one answer than the other, ties aside; "
        "sampled: all, each as one answer drawn with its share of the votes (half of the ties).",
    )

    # Other defaults than TRL's.
    bf16: bool | None = option(False, "Train in bfloat16 mixed precision.")
    gradient_checkpointing: bool | None = option(
        None, "Recompute activations in the backward pass: less memory, more time."
    )
    router_aux_loss_coef: float | None = option(
        0.0, "Weight of the loss that balances the experts of a mixture; LoRA trains no router."
    )


@dataclass
class WrittenVerdictArguments(objective.MeasuredArguments, JudgeArguments):
    """Of judges that learn verdicts written beforehand, not their own."""

    rationales: str | None = option(
        None,
        "JSONL file of reasons to give before the verdict (case_id, and rationale: dimension to a "
        "sentence that speaks of Answer A and Answer B as stored), for a judge_prompt that asks "
        "for them.",
    )


@dataclass
class JudgeSFTConfig(WrittenVerdictArguments, SFTConfig):  # type: ignore[misc] # TRL has no types
    """Arguments of `trl.SFTConfig`. An optimiser step is, as with TRL, per_device_train_batch_size
    x gradient_accumulation_steps x processes rows; a case has a row for each order and call.
    """

    fixed: ClassVar[objective.Fixed] = {
        **FIXED_ROWS,
        "packing": (False, "rows with images cannot be packed"),
        "eval_packing": (None, "rows with images cannot be packed"),
        "assistant_only_loss": (False, "the loss covers the verdict alone"),
        "completion_only_loss": (None, "the loss covers the verdict alone"),
        "chat_template_path": (None, "the base model's own chat template is used"),
        "eos_token": (None, "the base model's own is used"),
        "dataset_kwargs": (None, "rows come from the cases"),
        "dataset_text_field": ("text", "rows come from the cases"),
        "shuffle_dataset": (False, "every epoch is shuffled by the seed"),
    }

    learning_rate: float = option(1e-4, "Learning rate of the adapter (or of the whole model).")


@dataclass(frozen=True)
class RunExamples:
    """The examples of one run; numbers count those of training first, then development."""

    prompt: JudgePrompt
    train: list[JudgeExample]
    development: list[JudgeExample]

    def __getitem__(self, number: int) -> JudgeExample:
        count = len(self.train)
        return self.train[number] if number < count else self.development[number - count]

    def case_id(self, number: int) -> str:
        """Returns the case of an example."""
        return self[number].case.case_id

    def verdict(self, renderer: ConversationRenderer, number: int) -> RenderedConversation:
        """Returns the call of an example with its verdict."""
        return renderer.verdict(self[number], self.prompt)


def judge_prompt(run: Run) -> JudgePrompt:
    """Returns the prompt of the run's judge.

    Raises:
        ConfigError: there is none of that name, or the file is no prompt.
    """
    return load_prompt(run.judge.judge_prompt, run.judge.prompt_file)


def run_dimensions(run: Run, train: Sequence[Case]) -> tuple[str, ...]:
    """Returns what the judge is asked about: what the run names, else what its labels mention."""
    return tuple(dict.fromkeys(run.data.dimensions or dimensions_of(train)))


def trainer_options(
    inputs: objective.TrainingInputs, train: Sequence[Any], development: Sequence[Any]
) -> dict[str, Any]:
    """Returns the keyword arguments that all of TRL's trainers are built with.

    Args:
        inputs: of the training.
        train: examples of training, whose numbers start at 0.
        development: examples of development, whose numbers follow.
    """
    arguments = copy.copy(inputs.run.training)
    # TRL would cut at max_length what the run has set aside already.
    vars(arguments)["max_length"] = None
    objective.autocast_under_deepspeed(arguments)
    return {
        "model": inputs.model,
        "args": arguments,
        "train_dataset": numbered(len(train)),
        "eval_dataset": numbered(len(development), len(train)),
        "processing_class": inputs.collator.processor,
    }


def run_examples(inputs: objective.TrainingInputs) -> RunExamples:
    """Returns the examples of a run's cases; cases that teach nothing are counted in a warning.

    Raises:
        ConfigError: the prompt is none.
        DataError: bad rationales.
    """
    run, dimensions = inputs.run, run_dimensions(inputs.run, inputs.train)
    prompt, rule = judge_prompt(run), run.training.label_rule
    rationales = run_rationales(run, dimensions, [*inputs.train, *inputs.development])
    splits = []
    for cases in (inputs.train, inputs.development):
        splits.append(judge_examples(cases, dimensions, prompt, rule, rationales))
        learned = {example.case.case_id for example in splits[-1]}
        objective.report_unlearned(len(cases), len(learned), f"label_rule {rule}; two answers each")
    return RunExamples(prompt, *splits)


def epoch_rows(run: Run, dimensions: Sequence[str], train: Sequence[Case]) -> int:
    """Returns how many examples are learned in an epoch; see `Objective.epoch_rows`."""
    return len(judge_examples(train, dimensions, judge_prompt(run), run.training.label_rule))


def run_rationales(run: Run, dimensions: Sequence[str], cases: Sequence[Case]) -> Rationales | None:
    """Returns the sentences that the run's file of rationales has for its cases; None without one.

    Raises:
        DataError: the file is not as it should be.
    """
    options = run.training
    if not isinstance(options, WrittenVerdictArguments) or options.rationales is None:
        return None
    return read_rationales(Path(options.rationales), dimensions, {case.case_id for case in cases})


def verdict_lengths(
    run: Run,
    collator: Collator,
    dimensions: Sequence[str],
    cases: Sequence[Case],
    facts: Mapping[str, ImageFacts],
) -> list[int]:
    """Returns the tokens of each case's longest call with its verdict; see `Objective.lengths`."""
    prompt, renderer = judge_prompt(run), ConversationRenderer.of(collator)
    rule: LabelRule = run.training.label_rule
    rationales = run_rationales(run, dimensions, cases)

    def rows(case: Case) -> list[Row]:
        examples = judge_examples([case], dimensions, prompt, rule, rationales)
        return [renderer.verdict(example, prompt).row for example in examples]

    return collator.lengths(cases, facts, rows)


def check_judge(
    run: Run, dimensions: Sequence[str], train: Sequence[Case], development: Sequence[Case]
) -> None:
    """Refuses what can be known to be wrong of a judge without its model; see `Objective.check`.

    Raises:
        ConfigError: options that do not fit each other, the family, the devices or the cases.
        DataError: no case with a label to learn from, or bad rationales.
    """
    prompt, cases, options = judge_prompt(run), [*train, *development], run.training
    takes_rationales = isinstance(options, WrittenVerdictArguments)
    if takes_rationales and options.rationales is not None and not prompt.rationale:
        raise ConfigError(
            f"rationales are given, but judge_prompt {prompt.name} asks for none; set "
            "judge_prompt rationale_json, or leave rationales out"
        )
    mixed = {bool(image_count(case)) for case in cases} == {True, False}
    batch_rows = max(options.per_device_train_batch_size, options.per_device_eval_batch_size)
    checks = {
        f"judge_prompt {prompt.name} asks for reasons first, which judge_readout skeleton cannot "
        "give; read it with generate or votes": (
            prompt.rationale and run.judge.judge_readout == "skeleton"
        ),
        "some cases have images and some have none, which processors refuse in one batch; set "
        "per_device_train_batch_size and per_device_eval_batch_size to 1, or give cases of one "
        "kind": mixed and batch_rows > 1,
    }
    problems = [
        *objective.visible_gpu_problems(options.n_gpu),
        *_family_problems(run, cases),
        *applying(checks),
    ]
    refuse(problems, f"The objective {run.objective} cannot be trained so.")
    for split, split_cases in (("training", train), ("development", development)):
        if not judge_examples(split_cases, dimensions, prompt, options.label_rule):
            raise DataError(
                f"none of {len(split_cases)} {split} cases has two answers and a label for "
                f"{', '.join(dimensions)} under label_rule {options.label_rule}; give labelled "
                "cases"
            )
    run_rationales(run, dimensions, cases)


def _family_problems(run: Run, cases: Sequence[Case]) -> list[str]:
    """Returns why the run's family cannot be trained by its objective."""
    model = run.model
    config = load_config(model.model_name_or_path, model.model_revision, model.trust_remote_code)
    family = family_of(config)
    reason = family.unsupported.get(run.objective)
    if reason is not None:
        return [f"family {family.name}: {reason}; {ADVICE}"]
    several = sum(image_count(case) > 1 for case in cases)
    reason = family.one_image_only.get(run.objective)
    if several and reason is not None:
        return [f"family {family.name}, {several} cases of several images: {reason}; {ADVICE}"]
    return []


class JudgeSFTTrainer(WholeCheckpoints, JudgeTrainer, SFTTrainer):  # type: ignore[misc] # TRL has no types
    """TRL's trainer, which sends and writes nothing else."""


def build_trainer(inputs: objective.TrainingInputs) -> JudgeSFTTrainer:
    """Returns the trainer of `inputs.model`.

    Raises:
        ConfigError: the prompt is none.
        DataError: bad rationales.
    """
    examples, renderer = run_examples(inputs), ConversationRenderer.of(inputs.collator)
    trainer = JudgeSFTTrainer(
        **trainer_options(inputs, examples.train, examples.development),
        data_collator=numbering(partial(supervised, renderer, partial(examples.verdict, renderer))),
    )
    trainer.case_of = examples.case_id
    trainer.development_sets = rows_of_sets(example.case for example in examples.development)
    return trainer


def preview(
    inputs: objective.TrainingInputs, trainer: JudgeSFTTrainer, processes: int
) -> StepPreview:
    """Returns what the steps will be; see `Objective.preview`."""
    return preview_rows(trainer, example_tokens(inputs), processes)


def example_tokens(inputs: objective.TrainingInputs) -> NDArray[np.int64]:
    """Returns the tokens of each example of the training, of its case's longest row."""
    run, dimensions = inputs.run, run_dimensions(inputs.run, inputs.train)
    rule: LabelRule = run.training.label_rule
    examples = judge_examples(inputs.train, dimensions, judge_prompt(run), rule)
    return tokens_of([example.case for example in examples], tokens_by_case(inputs))


def tokens_by_case(inputs: objective.TrainingInputs) -> dict[str, int]:
    """Returns the tokens of the longest row of each training case."""
    counts = tokens_of(inputs.train, inputs.lengths).tolist()
    return {case.case_id: count for case, count in zip(inputs.train, counts, strict=True)}


OBJECTIVE = objective.Objective(
    config=JudgeSFTConfig,
    readout=lambda run: run.judge.judge_readout,
    lengths=verdict_lengths,
    check=check_judge,
    build_trainer=build_trainer,
    epoch_rows=epoch_rows,
    preview=preview,
)

"""What the objectives of judges share: checks, rows, lengths and quiet trainers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

from medrm.chat import JudgePrompt, load_prompt
from medrm.config import Run
from medrm.data.case_set import dimensions_of
from medrm.data.images import ImageFacts
from medrm.errors import ConfigError, DataError, report
from medrm.models.base_model import load_config
from medrm.models.families import family_of
from medrm.objectives.judge.judge_collator import Writer
from medrm.objectives.judge.rationales import read_rationales
from medrm.objectives.judge.verdict_targets import (
    LabelRule,
    Rationales,
    VerdictRow,
    report_unlearned,
    verdict_rows,
)
from medrm.objectives.objective import autocast_under_deepspeed
from medrm.schema import Case
from medrm.scorer.collator import Collator, Row, kind

UNSUPPORTED = {
    ("judge_grpo", "mllama"): "TRL's GRPOTrainer loses the inputs that say where its images are "
    "(aspect_ratio_ids, cross_attention_mask)"
}
"""Objective and family to the reason why TRL cannot train it."""

ONE_IMAGE = {
    ("judge_grpo", "llava_onevision"): "TRL's GRPOTrainer loses the input that says how many "
    "images a prompt has (batch_num_images)"
}
"""The same where it is so for cases of several images alone."""


@dataclass(frozen=True)
class Rows:
    """The rows of one run; numbers count the training rows first, then those of development."""

    prompt: JudgePrompt
    dimensions: tuple[str, ...]
    train: list[VerdictRow]
    development: list[VerdictRow]

    def __getitem__(self, number: int) -> VerdictRow:
        count = len(self.train)
        return self.train[number] if number < count else self.development[number - count]


class Quiet:
    """Leaves out what TRL's trainers do beside training; goes before one of them in the bases."""

    def _send_telemetry(self) -> None:
        """Sends nothing."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes nothing: the adapter folder has a card of its own."""


class Referenced(Quiet):
    """Of an adapter beside which TRL may keep its start as the reference."""

    model: PeftModel

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads the trained adapter, too: older versions load the reference beside it alone."""
        super()._load_from_checkpoint(  # type: ignore[misc] # of the trainer behind it
            resume_from_checkpoint, model
        )
        weights = load_peft_weights(resume_from_checkpoint, device="cpu")
        set_peft_model_state_dict(self.model, weights)


def judge_prompt(run: Run) -> JudgePrompt:
    """Returns the prompt of the run's judge.

    Raises:
        ConfigError: there is none of that name, or the file is no prompt.
    """
    return load_prompt(run.judge.judge_prompt, run.judge.prompt_file)


def run_dimensions(run: Run, train: Sequence[Case]) -> tuple[str, ...]:
    """Returns what the judge is asked about: what the run names, else what its labels mention."""
    return tuple(dict.fromkeys(run.data.dimensions or dimensions_of(train)))


def own_arguments(run: Run) -> Any:
    """Returns the run's training arguments as TRL's trainer takes them.

    TRL would cut at max_length what the run has set aside already.
    """
    arguments = copy.copy(run.training)
    vars(arguments)["max_length"] = None
    autocast_under_deepspeed(arguments)
    return arguments


def rows_of(
    run: Run,
    dimensions: Sequence[str],
    train: Sequence[Case],
    development: Sequence[Case],
    rationales: Rationales | None = None,
) -> Rows:
    """Returns the rows of a run's cases; those that teach nothing are counted in a warning.

    Raises:
        ConfigError: the prompt is none.
    """
    prompt, rule = judge_prompt(run), run.training.label_rule
    parts = []
    for cases in (train, development):
        parts.append(verdict_rows(cases, dimensions, prompt, rule, rationales))
        report_unlearned(cases, parts[-1], rule)
    return Rows(prompt, tuple(dimensions), *parts)


def check_rationales(run: Run) -> None:
    """Refuses reasons for a prompt that does not ask for them.

    Raises:
        ConfigError: it does not.
    """
    prompt = judge_prompt(run)
    if run.training.rationales is not None and not prompt.rationale:
        raise ConfigError(
            f"rationales are given, but judge_prompt {prompt.name} asks for none; set "
            "judge_prompt rationale_json, or leave rationales out"
        )


def rationales_of(run: Run, dimensions: Sequence[str], cases: Sequence[Case]) -> Rationales | None:
    """Returns what the run's file of reasons says of its cases; None where it has none.

    Raises:
        DataError: the file is not as it should be.
    """
    path = run.training.rationales
    if path is None:
        return None
    return read_rationales(Path(path), dimensions, {case.case_id for case in cases})


def verdict_lengths(
    run: Run,
    collator: Collator,
    dimensions: Sequence[str],
    cases: Sequence[Case],
    facts: Mapping[str, ImageFacts],
    rationales: Rationales | None = None,
) -> list[int]:
    """Returns the tokens of each case's longest call with its verdict; see `Objective.lengths`."""
    prompt, writer = judge_prompt(run), Writer.of(collator)
    rule: LabelRule = run.training.label_rule

    def rows(case: Case) -> list[Row]:
        own = verdict_rows([case], dimensions, prompt, rule, rationales)
        return [writer.verdict(row, prompt).row for row in own]

    return collator.lengths(cases, facts, rows)


def check_judge(
    run: Run,
    objective: str,
    dimensions: Sequence[str],
    train: Sequence[Case],
    development: Sequence[Case],
) -> None:
    """Refuses what can be known to be wrong of a judge without its model.

    Raises:
        ConfigError: options that do not fit each other, the family, the devices or the cases.
        DataError: no case with a label to learn from.
    """
    prompt, cases = judge_prompt(run), [*train, *development]
    problems = [*_device_problems(run), *_family_problems(run, objective, cases)]
    if prompt.rationale and run.judge.judge_readout == "skeleton":
        problems.append(
            f"judge_prompt {prompt.name} asks for reasons first, which judge_readout skeleton "
            "cannot give; read it with generate or votes"
        )
    mixed = {bool(kind(case)) for case in cases} == {True, False}
    if mixed and (
        run.training.per_device_train_batch_size > 1 or run.training.per_device_eval_batch_size > 1
    ):
        problems.append(
            "some cases have images and some have none, which processors refuse in one batch; set "
            "per_device_train_batch_size and per_device_eval_batch_size to 1, or give cases of one "
            "kind"
        )
    if problems:
        raise ConfigError(report(f"The objective {objective} cannot be trained so.", problems))
    rule = run.training.label_rule
    for part, own in (("training", train), ("development", development)):
        if not verdict_rows(own, dimensions, prompt, rule):
            raise DataError(
                f"none of {len(own)} {part} cases has two answers and a label for "
                f"{', '.join(dimensions)} under label_rule {rule}; give labelled cases"
            )


def _device_problems(run: Run) -> list[str]:
    gpus = run.training.n_gpu
    if gpus <= 1:
        return []
    return [
        f"one process sees {gpus} GPUs; start `accelerate launch --num_processes {gpus}`, or show "
        "it one GPU with CUDA_VISIBLE_DEVICES=0"
    ]


def _family_problems(run: Run, objective: str, cases: Sequence[Case]) -> list[str]:
    model = run.model
    config = load_config(model.model_name_or_path, model.model_revision, model.trust_remote_code)
    key = (objective, family_of(config).name)
    advice = "train another family, or by another objective"
    if key in UNSUPPORTED:
        return [f"family {key[1]}: {UNSUPPORTED[key]}; {advice}"]
    several = sum(kind(case) > 1 for case in cases)
    if several and key in ONE_IMAGE:
        return [f"family {key[1]}, {several} cases of several images: {ONE_IMAGE[key]}; {advice}"]
    return []

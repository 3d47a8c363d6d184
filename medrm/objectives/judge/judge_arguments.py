"""The training arguments of generative judges: TRL's, with other defaults, and what they learn."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType
from trl import DPOConfig, GRPOConfig, SFTConfig

from medrm.config import option
from medrm.errors import ConfigError
from medrm.objectives.arguments import name_checkpointing

Fixed = dict[str, tuple[object, str]]
"""Name of an argument to the one accepted value, and why."""

_FIXED: Fixed = {
    "remove_unused_columns": (False, "rows are numbers that the collator looks up"),
    "auto_find_batch_size": (False, "set per_device_train_batch_size; a step stays as it is"),
    "train_sampling_strategy": ("random", "every epoch is shuffled by the seed"),
    "label_smoothing_factor": (0.0, "TRL's losses do not take it"),
    "model_init_kwargs": (None, "the base model is loaded by the options of the model"),
    "pad_to_multiple_of": ("auto", "rows are padded to the longest of their batch"),
    "use_liger_kernel": (False, "it replaces the forward pass that TRL reads its losses from"),
}
_FIXED_ROWS: Fixed = {
    "padding_free": (False, "rows with images are padded"),
    "truncation_mode": ("keep_start", "nothing is truncated; max_length sets cases aside"),
    "dataset_num_proc": (None, "rows are made by the data loader's workers"),
    "pad_token": (None, "the processor's own is used"),
}
_COUNTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
)


@dataclass
class JudgeArguments:
    """What the arguments of all judges share; goes before a class of TRL's in the bases."""

    fixed: ClassVar[Fixed] = {}

    label_rule: Literal["majority", "plurality", "sampled"] = option(
        "majority",
        "Which labels are learned. majority: those on which more than half of the votes name one "
        "answer; plurality: those on which more votes name one answer than the other, ties aside; "
        "sampled: all, each as one answer drawn with its share of the votes (half of the ties).",
    )

    # Other defaults than TRL's and transformers'.
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata={"help": "Course of the learning rate."}
    )
    warmup_steps: float = option(0.05, "Steps of linear warm-up; below 1: a share of all steps.")
    save_strategy: SaveStrategy | str = field(
        default="steps", metadata={"help": "When a checkpoint is written."}
    )
    save_steps: float = option(0.2, "Every so many steps; below 1: a share of all steps.")
    save_total_limit: int | None = option(2, "Most checkpoints kept, the best among them.")
    logging_steps: float = option(10, "Every so many steps; below 1: a share of all steps.")
    logging_nan_inf_filter: bool = option(False, "Hide losses that are no numbers from the log.")
    # The argument parser reads the second member of the union.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="tensorboard", metadata={"help": "Where metrics go besides metrics.jsonl."}
    )
    remove_unused_columns: bool | None = option(False, "Always false here.")
    bf16: bool | None = option(False, "Train in bfloat16 mixed precision.")
    gradient_checkpointing: bool | None = option(
        None, "Recompute activations in the backward pass: less memory, more time."
    )

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise ConfigError("; ".join(problems))
        name_checkpointing(vars(self))
        super().__post_init__()  # type: ignore[misc] # of the class of TRL's that comes next

    def _problems(self) -> list[str]:
        given = vars(self)
        problems = [
            f"{name} is {given[name]!r}; leave it out: {why}"
            for name, (accepted, why) in {**_FIXED, **self.fixed}.items()
            if given[name] != accepted
        ]
        problems += [
            f"{name} is {value}; give a finite number"
            for name, value in given.items()
            if isinstance(value, float) and not math.isfinite(value)
        ]
        problems += [
            f"{name} is {given[name]}; give 1 or more" for name in _COUNTS if given[name] < 1
        ]
        if given["num_train_epochs"] <= 0:
            problems.append(f"num_train_epochs is {given['num_train_epochs']}; give more than 0")
        return problems


@dataclass
class MeasuredArguments(JudgeArguments):
    """Arguments of judges whose loss on the development split chooses the checkpoint."""

    eval_strategy: IntervalStrategy | str = field(
        default="steps", metadata={"help": "When the development split is measured."}
    )
    eval_steps: float | None = option(0.2, "Every so many steps; below 1: a share of all steps.")
    load_best_model_at_end: bool = option(
        True, "End with the checkpoint that is best on the development split."
    )
    metric_for_best_model: str | None = option("loss", "What is best: loss.")
    rationales: str | None = option(
        None,
        "JSONL file of reasons to give before the verdict (case_id, and rationale: dimension to a "
        "sentence that speaks of Answer A and Answer B as stored), for a judge_prompt that asks "
        "for them.",
    )


@dataclass
class JudgeSFTConfig(MeasuredArguments, SFTConfig):  # type: ignore[misc] # TRL has no types
    """Arguments of `trl.SFTConfig`. An optimiser step is, as with TRL, per_device_train_batch_size
    x gradient_accumulation_steps x processes rows; a case has a row for each order and call.
    """

    fixed: ClassVar[Fixed] = {
        **_FIXED_ROWS,
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


@dataclass
class JudgeDPOConfig(MeasuredArguments, DPOConfig):  # type: ignore[misc] # TRL has no types
    """Arguments of `trl.DPOConfig`. A step is counted in pairs, as with TRL."""

    fixed: ClassVar[Fixed] = {
        **_FIXED_ROWS,
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
        problems = super()._problems()
        if self.dpo_pairs == "answers" and self.flip != "all":
            problems.append(
                "flip is one; leave it out with dpo_pairs answers, which have no letters"
            )
        if self.dpo_pairs == "answers" and self.rationales is not None:
            problems.append("rationales with dpo_pairs answers: leave them out; nothing is judged")
        if self.beta <= 0:
            problems.append(f"beta is {self.beta}; give more than 0")
        return problems


@dataclass
class JudgeGRPOConfig(JudgeArguments, GRPOConfig):  # type: ignore[misc] # TRL has no types
    """Arguments of `trl.GRPOConfig`. A step is counted in completions, as with TRL.

    The rewards, in the order of `reward_weights`: agreement with the labels, format, and, where the
    prompt asks for reasons, their consistency with the verdict. No checkpoint is chosen by the
    development split: to measure it, every row would have to be generated each time.
    """

    fixed: ClassVar[Fixed] = {
        "sync_ref_model": (False, "TRL cannot do it with an adapter"),
        "log_completions_hub_repo": (None, "nothing but the adapter is pushed"),
        "load_best_model_at_end": (False, "no loss of GRPO says which checkpoint is best"),
        "chat_template_kwargs": (None, "the template is used as in scoring"),
        "shuffle_dataset": (True, "every epoch is shuffled by the seed"),
    }

    learning_rate: float = option(1e-5, "Learning rate of the adapter.")
    max_completion_length: int | None = option(
        None, "Most tokens of a sampled verdict. None: max_new_tokens."
    )

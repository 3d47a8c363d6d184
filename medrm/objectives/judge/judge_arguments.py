"""The training arguments of generative judges: TRL's, with other defaults, and what they learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from trl import DPOConfig, GRPOConfig, SFTConfig

from medrm.config import option
from medrm.objectives.arguments import CommonArguments, Fixed, MeasuredArguments

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
    **_FIXED,
    "padding_free": (False, "rows with images are padded"),
    "truncation_mode": ("keep_start", "nothing is truncated; max_length sets cases aside"),
    "dataset_num_proc": (None, "rows are made by the data loader's workers"),
    "pad_token": (None, "the processor's own is used"),
}


@dataclass
class JudgeArguments(CommonArguments):
    """What the arguments of all judges share; goes before a class of TRL's in the bases."""

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


@dataclass
class WrittenVerdictArguments(MeasuredArguments, JudgeArguments):
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
class JudgeDPOConfig(WrittenVerdictArguments, DPOConfig):  # type: ignore[misc] # TRL has no types
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
        **_FIXED,
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

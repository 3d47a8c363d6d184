"""The training arguments of the Bradley-Terry objective, with TRL's and transformers' names."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from medrm.config import option
from medrm.errors import ConfigError
from medrm.objectives.losses import PAIR_LOSSES

_FIXED: dict[str, tuple[object, str]] = {
    "gradient_accumulation_steps": (
        1,
        "it follows from global_batch_cases, max_tokens_per_batch, per_device_train_batch_size and "
        "the processes",
    ),
    "remove_unused_columns": (False, "cases have no columns"),
    "label_smoothing_factor": (0.0, "use label_smoothing"),
    "auto_find_batch_size": (False, "set per_device_train_batch_size; a step stays as it is"),
    "dataloader_drop_last": (False, "every case is learned from in every epoch"),
}
"""Arguments of transformers that the step planner takes over: the one accepted value, and why."""

_COUNTS = (
    "global_batch_cases",
    "max_tokens_per_batch",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
)


def name_checkpointing(given: dict[str, Any]) -> None:
    """Gives checkpointing the name that the installed transformers reads.

    Versions from 5.22 on call it `activation_checkpointing` and warn of `gradient_checkpointing`,
    the only name before. Recipes keep the name that all versions accept.

    Args:
        given: the values of training arguments by name, changed in place.
    """
    for end in ("", "_kwargs"):
        old, new = f"gradient_checkpointing{end}", f"activation_checkpointing{end}"
        if new in given and given[new] is None:
            given[new] = given[old]


@dataclass
class BradleyTerryConfig(TrainingArguments):
    """Arguments of `transformers.TrainingArguments`, with other defaults, and of the loss."""

    global_batch_cases: int = option(
        32, "Cases of one optimiser step, whatever the devices and micro-batches."
    )
    max_tokens_per_batch: int | None = option(
        None,
        "Most tokens that a device computes at once, in training and in measuring the development "
        "split: of cases with a shared prefix that prefix once and every answer, else all rows at "
        "the length of the longest. Cases of like length go together; the steps, their cases and "
        "their loss stay what they are. A case that alone has more is an error. None: no limit.",
    )
    activation_offloading: bool = option(
        False,
        "Keep activations in the CPU's memory until the backward pass, as TRL does: with "
        "gradient_checkpointing the checkpoints' inputs, else all of them, which takes more "
        "copies. Without effect on a CPU.",
    )
    head_learning_rate: float = option(1e-3, "Learning rate of the reward head.")
    ties: str = option(
        "davidson",
        "How ties enter the likelihood, with one learned parameter for each dimension that has "
        "ties. davidson: given that there is no tie it is Bradley-Terry, so rewards mean the same "
        "with and without ties, and it extends to rankings; rao_kupper: a threshold on the "
        "difference, for experts who see small differences as ties; none: a tie is half a vote "
        "for either answer.",
        choices=PAIR_LOSSES,
    )
    vote_targets: Literal["shares", "majority"] = option(
        "shares",
        "What is learned of a pair's votes: their shares over first, tie and second, or the "
        "choice of more than half of them (a pair without one is not learned).",
    )
    weight_by_votes: bool = option(
        False, "Weigh a label by its number of votes; false: all labels weigh the same."
    )
    dimension_weights: str | None = option(
        None, 'Weights of dimensions, such as {"accuracy": 2}; those not named weigh 1.'
    )
    margin: float = option(
        0.0,
        "By how much the preferred answer's reward is asked to lead (Llama 2) when all votes "
        "agree, less in proportion to their lead. Needs vote_targets majority, ties none and no "
        "smoothing.",
    )
    label_smoothing: float = option(
        0.0, "Share of the votes taken to name the wrong answer, below 0.5."
    )
    center_rewards_coefficient: float = option(
        0.0, "Weight of (r_1 + r_2)^2, which keeps rewards around zero (TRL suggests 0.01)."
    )

    # Other defaults than transformers'.
    per_device_train_batch_size: int | None = option(  # type: ignore[assignment]
        None,
        "Most cases that a device learns from at once. None: 8; with max_tokens_per_batch as many "
        "as fit, a whole step at most.",
    )
    per_device_eval_batch_size: int | None = option(  # type: ignore[assignment]
        None, "Most cases that a device measures at once. None: as in training."
    )
    learning_rate: float = option(1e-4, "Learning rate of the adapter (or of the whole model).")
    lr_scheduler_type: SchedulerType | str = field(
        default="cosine", metadata={"help": "Course of the learning rates."}
    )
    warmup_steps: float = option(0.05, "Steps of linear warm-up; below 1: a share of all steps.")
    eval_strategy: IntervalStrategy | str = field(
        default="steps", metadata={"help": "When the development split is measured."}
    )
    eval_steps: float | None = option(0.2, "Every so many steps; below 1: a share of all steps.")
    save_strategy: SaveStrategy | str = field(
        default="steps", metadata={"help": "When a checkpoint is written."}
    )
    save_steps: float = option(0.2, "Every so many steps; below 1: a share of all steps.")
    save_total_limit: int | None = option(2, "Most checkpoints kept, the best among them.")
    load_best_model_at_end: bool = option(
        True, "End with the checkpoint that is best on the development split."
    )
    metric_for_best_model: str | None = option(
        "loss",
        "What is best: loss, accuracy, margin, or one dimension's, such as accuracy_overall.",
    )
    logging_steps: float = option(10, "Every so many steps; below 1: a share of all steps.")
    logging_nan_inf_filter: bool = option(False, "Hide losses that are no numbers from the log.")
    # The argument parser reads the second member of the union.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="tensorboard", metadata={"help": "Where metrics go besides metrics.jsonl."}
    )
    remove_unused_columns: bool = option(False, "Always false here.")

    def __post_init__(self) -> None:
        if self.per_device_train_batch_size is None:
            bounded = self.max_tokens_per_batch is not None
            self.per_device_train_batch_size = self.global_batch_cases if bounded else 8
        if self.per_device_eval_batch_size is None:
            self.per_device_eval_batch_size = self.per_device_train_batch_size
        problems = self._problems()
        if problems:
            raise ConfigError("; ".join(problems))
        name_checkpointing(vars(self))
        super().__post_init__()  # type: ignore[no-untyped-call]

    def _problems(self) -> list[str]:
        given = vars(self)
        problems = [
            f"{name} is {given[name]!r}; leave it out: {why}"
            for name, (accepted, why) in _FIXED.items()
            if given[name] != accepted
        ]
        problems += [
            f"{name} is {value}; give a finite number"
            for name, value in given.items()
            if isinstance(value, float) and not math.isfinite(value)
        ]
        problems += [
            f"{name} is {given[name]}; give 1 or more"
            for name in _COUNTS
            if given[name] is not None and given[name] < 1
        ]
        if self.ties not in PAIR_LOSSES:
            return [*problems, f"ties is {self.ties!r}; accepted: {', '.join(PAIR_LOSSES)}"]
        if self.num_train_epochs <= 0:
            problems.append(f"num_train_epochs is {self.num_train_epochs}; give more than 0")
        if not 0 <= self.label_smoothing < 0.5:
            problems.append(f"label_smoothing is {self.label_smoothing}; give 0 <= share < 0.5")
        for name in ("margin", "center_rewards_coefficient", "head_learning_rate"):
            if given[name] < 0:
                problems.append(f"{name} is {given[name]}; give 0 or more")
        problems += self._clashes()
        try:
            _ = self.weights_by_dimension
        except ConfigError as error:
            problems.append(str(error))
        return problems

    def _clashes(self) -> list[str]:
        """Returns combinations of loss options that contradict each other."""
        if self.margin <= 0:
            return []
        others = {
            "vote_targets shares (a margin needs one preferred answer)": (
                self.vote_targets == "shares"
            ),
            f"ties {self.ties} (the tie parameter would absorb it)": (
                PAIR_LOSSES[self.ties].initial_tie is not None
            ),
            "label_smoothing (a smoothed label prefers both answers)": self.label_smoothing > 0,
        }
        return [
            f"margin {self.margin} does not go with {name}"
            for name, present in others.items()
            if present
        ]

    @property
    def weights_by_dimension(self) -> dict[str, float]:
        """The weights of the dimensions that are named.

        Raises:
            ConfigError: not a mapping of names to positive numbers.
        """
        try:
            weights = json.loads(self.dimension_weights or "{}")
            weights = {str(name): float(weight) for name, weight in weights.items()}
        except (ValueError, TypeError, AttributeError):
            weights = {"": 0.0}
        if not all(0 < weight < math.inf for weight in weights.values()):
            raise ConfigError(
                f"dimension_weights is {self.dimension_weights!r}; give positive numbers by "
                'dimension, such as {"accuracy": 2, "overall": 0.5}'
            )
        return weights

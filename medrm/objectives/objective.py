"""What an objective is: its training arguments, its readout, and how its trainer is built.

The names of training arguments are TRL's and transformers'.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from medrm.config.option import option, positive_weights
from medrm.config.parse import Run
from medrm.data.images import ImageFacts
from medrm.data.sources import Excluded
from medrm.data.store.indexed_cases import TokenCounts, select, tokens_of
from medrm.errors import ConfigError, applying, refuse
from medrm.models.reward_model import HeadSpec
from medrm.objectives.losses import PAIR_LOSSES
from medrm.objectives.step_preview import StepPreview
from medrm.schema import Case
from medrm.scorer.collator import Collator

logger = logging.getLogger(__name__)


Fixed = dict[str, tuple[object, str]]
"""Name of an argument to its one accepted value, and why."""

_FIXED_FOR_ALL: Fixed = {
    "ignore_data_skip": (False, "a run that goes on meets the cases that it has not met"),
    "save_only_model": (False, "a stopped run needs the optimiser to go on, and would start anew"),
    "enable_jit_checkpoint": (False, "a signal ends a training with a checkpoint as it is"),
    **{
        name: (None, f"how a run is distributed is said by the launch file; {instead}")
        for name, instead in {
            "fsdp": "take accelerate_configs/fsdp2.yaml",
            "fsdp_config": "take accelerate_configs/fsdp2.yaml",
            "deepspeed": "take accelerate_configs/zero2.yaml, zero3.yaml or zero3_offload.yaml",
            "parallelism_config": "every process trains on cases of its own",
        }.items()
    },
}

_COUNTS = (
    "global_batch_cases",
    "max_tokens_per_batch",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
)


@dataclass(frozen=True)
class TrainingInputs:
    """What an objective builds its trainer from.

    Attributes:
        run: the resolved run; `run.training` is the objective's `config`.
        model: with its head and adapter attached; training changes it in place.
        collator: turns cases into the model's inputs.
        train: cases to learn from.
        development: cases that choose the best checkpoint.
        lengths: the tokens of each case of both sets.
    """

    run: Run
    model: PreTrainedModel | PeftModel
    collator: Collator
    train: Sequence[Case]
    development: Sequence[Case]
    lengths: TokenCounts


@dataclass(frozen=True)
class Objective:
    """One way of learning from preferences.

    Attributes:
        config: the class of its training arguments.
        readout: how its adapter is scored: "reward", "implicit_reward", or one of a judge.
        lengths: (run, collator, dimensions, cases, facts of their images) to the tokens of each
            case's longest training row, image tokens included, or to its `TOKEN_COUNT`.
        check: (run, dimensions, training cases, development cases); raises ConfigError or DataError
            for whatever can be known to be wrong before a model is loaded.
        build_trainer: returns the trainer of `TrainingInputs.model`.
        head_spec: (run, dimensions, training cases) to the head that is attached before training;
            None: the language model itself is trained.
        preview: (inputs, their trainer, number of processes) to what the steps will be; the model
            may have shapes alone.
        check_lengths: (run, cases that are not set aside, their tokens); raises ConfigError for a
            case that no batch can hold; None: a case of any length is a batch.
        epoch_rows: (run, dimensions, training cases) to the rows of an epoch, of which a step is
            per_device_train_batch_size x gradient_accumulation_steps x processes; None: a step is
            global_batch_cases cases.
    """

    config: type[TrainingArguments]
    readout: Callable[[Run], str]
    lengths: Callable[
        [Run, Collator, Sequence[str], Sequence[Case], Mapping[str, ImageFacts]],
        Sequence[int] | NDArray[Any],
    ]
    check: Callable[[Run, Sequence[str], Sequence[Case], Sequence[Case]], None]
    build_trainer: Callable[[TrainingInputs], Trainer]
    preview: Callable[[TrainingInputs, Any, int], StepPreview]
    head_spec: Callable[[Run, Sequence[str], Sequence[Case]], HeadSpec] | None = None
    check_lengths: Callable[[Run, Sequence[Case], TokenCounts], None] | None = None
    epoch_rows: Callable[[Run, Sequence[str], Sequence[Case]], int] | None = None


def fit_for_training(
    cases: Sequence[Case], lengths: TokenCounts, max_length: int | None
) -> tuple[Sequence[Case], list[Excluded]]:
    """Returns the cases that are not too long, and the others, set aside; nothing is cut.

    Args:
        cases: any.
        lengths: their tokens, image tokens included.
        max_length: most tokens; None: no limit.
    """
    counts = tokens_of(cases, lengths)
    long = counts > (counts.max(initial=0) if max_length is None else max_length)
    excluded = [
        Excluded(cases[index].case_id, f"too long: {counts[index]} tokens, at most {max_length}")
        for index in np.flatnonzero(long).tolist()
    ]
    return select(cases, np.flatnonzero(~long)), excluded


def report_unlearned(cases: int, learned: int, rule: str) -> None:
    """Warns of cases that teach nothing.

    Args:
        cases: how many there are.
        learned: how many of them are learned from.
        rule: the options that say which labels are learned.
    """
    if learned < cases:
        logger.warning(
            "%d of %d cases carry no label to learn from (%s)", cases - learned, cases, rule
        )


def visible_gpu_problems(gpus: int) -> list[str]:
    """Returns why a process must not see several GPUs: Trainer would deal rows to all of them."""
    if gpus <= 1:
        return []
    return [
        f"one process sees {gpus} GPUs; start `accelerate launch --num_processes "
        f"{gpus}`, or show it one GPU with CUDA_VISIBLE_DEVICES=0"
    ]


def autocast_under_deepspeed(args: TrainingArguments) -> None:
    """Makes bf16 mean autocast under DeepSpeed as well, whose own bf16 casts head and adapter."""
    if args.deepspeed_plugin is None or not args.bf16:
        return
    settings = args.deepspeed_plugin.hf_ds_config.config
    settings["bf16"] = {"enabled": False}
    settings["torch_autocast"] = {
        "enabled": True,
        "dtype": "bfloat16",
        # None: gradients travel in the precision of their parameters.
        "lower_precision_safe_modules": [],
    }
    args.bf16 = False
    args.mixed_precision = "no"


@dataclass
class CommonArguments:
    """What all objectives share; precedes a class of transformers' or TRL's in the list of bases.

    Attributes:
        fixed: values that an objective takes over.
    """

    fixed: ClassVar[Fixed] = {}

    # Other defaults than TRL's and transformers'.
    lr_scheduler_type: SchedulerType | str = option("cosine", "Course of the learning rates.")
    warmup_steps: float = option(0.05, "Steps of linear warm-up; below 1: a share of all steps.")
    save_strategy: SaveStrategy | str = option("steps", "When a checkpoint is written.")
    save_steps: float = option(0.2, "Every so many steps; below 1: a share of all steps.")
    save_total_limit: int | None = option(2, "Most checkpoints kept, the best among them.")
    logging_steps: float = option(10, "Every so many steps; below 1: a share of all steps.")
    logging_nan_inf_filter: bool = option(False, "Hide losses that are no numbers from the log.")
    # The argument parser reads the second member of the union.
    report_to: None | str | list[str] = option(  # noqa: RUF036
        "tensorboard", "Where metrics go besides metrics.jsonl."
    )
    remove_unused_columns: bool | None = option(False, "Always false here.")

    def __post_init__(self) -> None:
        refuse(self._problems())
        values = vars(self)
        # transformers from 5.22 on calls it `activation_checkpointing` and warns of the name that
        # all versions accept, which recipes keep.
        for suffix in ("", "_kwargs"):
            newer = f"activation_checkpointing{suffix}"
            if newer in values and values[newer] is None:
                values[newer] = values[f"gradient_checkpointing{suffix}"]
        super().__post_init__()  # type: ignore[misc] # of the class that comes next in the bases
        if not values["accelerator_config"].use_seedable_sampler:
            raise ConfigError(
                "accelerator_config has use_seedable_sampler false; leave it out: a run that goes "
                "on amid an epoch would meet its cases in another order"
            )

    def _problems(self) -> list[str]:
        """Returns what is wrong with the values, a sentence each."""
        values = vars(self)
        problems = [
            f"{name} is {values[name]!r}; leave it out: {why}"
            for name, (accepted, why) in {**_FIXED_FOR_ALL, **self.fixed}.items()
            if values[name] != accepted
        ]
        problems += [
            f"{name} is {value}; give a finite number"
            for name, value in values.items()
            if isinstance(value, float) and not math.isfinite(value)
        ]
        problems += [
            f"{name} is {values[name]}; give 1 or more"
            for name in _COUNTS
            if values.get(name) is not None and values[name] < 1
        ]
        if values["num_train_epochs"] <= 0:
            problems.append(f"num_train_epochs is {values['num_train_epochs']}; give more than 0")
        return problems


@dataclass
class MeasuredArguments(CommonArguments):
    """Of objectives whose loss on the development split chooses the checkpoint."""

    eval_strategy: IntervalStrategy | str = option(
        "steps", "When the development split is measured."
    )
    eval_steps: float | None = option(0.2, "Every so many steps; below 1: a share of all steps.")
    load_best_model_at_end: bool = option(
        True, "End with the checkpoint that is best on the development split."
    )
    metric_for_best_model: str | None = option("loss", "What is best: loss.")


@dataclass
class BradleyTerryConfig(MeasuredArguments, TrainingArguments):  # type: ignore[misc] # two unions
    """Arguments of `transformers.TrainingArguments`, with other defaults, and of the loss."""

    # The step planner takes these over.
    fixed: ClassVar[Fixed] = {
        "gradient_accumulation_steps": (
            1,
            "it follows from global_batch_cases, max_tokens_per_batch, per_device_train_batch_size "
            "and the processes",
        ),
        "remove_unused_columns": (False, "cases have no columns"),
        "label_smoothing_factor": (0.0, "use label_smoothing"),
        "auto_find_batch_size": (False, "set per_device_train_batch_size; a step stays as it is"),
        "dataloader_drop_last": (False, "every case is learned from in every epoch"),
    }

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
    metric_for_best_model: str | None = option(
        "loss",
        "What is best: loss, accuracy, margin, or one dimension's, such as accuracy_overall.",
    )

    def __post_init__(self) -> None:
        if self.per_device_train_batch_size is None:
            bounded = self.max_tokens_per_batch is not None
            self.per_device_train_batch_size = self.global_batch_cases if bounded else 8
        if self.per_device_eval_batch_size is None:
            self.per_device_eval_batch_size = self.per_device_train_batch_size
        super().__post_init__()

    def _problems(self) -> list[str]:
        problems = super()._problems()
        if not 0 <= self.label_smoothing < 0.5:
            problems.append(f"label_smoothing is {self.label_smoothing}; give 0 <= share < 0.5")
        for name in ("margin", "center_rewards_coefficient", "head_learning_rate"):
            if vars(self)[name] < 0:
                problems.append(f"{name} is {vars(self)[name]}; give 0 or more")
        if self.ties not in PAIR_LOSSES:
            problems.append(f"ties is {self.ties!r}; accepted: {', '.join(PAIR_LOSSES)}")
        elif self.margin > 0:
            problems += self._margin_conflicts()
        try:
            _ = self.weights_by_dimension
        except ConfigError as error:
            problems.append(str(error))
        return problems

    def _margin_conflicts(self) -> list[str]:
        """Returns the options that a margin does not go with."""
        conflicts = {
            "vote_targets shares (a margin needs one preferred answer)": (
                self.vote_targets == "shares"
            ),
            f"ties {self.ties} (the tie parameter would absorb it)": (
                PAIR_LOSSES[self.ties].initial_tie is not None
            ),
            "label_smoothing (a smoothed label prefers both answers)": self.label_smoothing > 0,
        }
        return [
            f"margin {self.margin} does not go with {conflict}" for conflict in applying(conflicts)
        ]

    @property
    def weights_by_dimension(self) -> dict[str, float]:
        """The weights of the dimensions that are named.

        Raises:
            ConfigError: not a mapping of names to positive numbers.
        """
        if self.dimension_weights in (None, "", "{}"):
            return {}
        example = '{"accuracy": 2, "overall": 0.5}'
        return positive_weights("dimension_weights", self.dimension_weights, "dimension", example)

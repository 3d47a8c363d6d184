"""What an objective is: training arguments, a readout, and how its trainer is built."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from transformers import PreTrainedModel, Trainer, TrainingArguments

from medrm.config import Run
from medrm.data.drafts import Excluded
from medrm.data.images import ImageFacts
from medrm.data.store.indexed_cases import TokenCounts, select, tokens_of
from medrm.models.reward_model import HeadSpec
from medrm.schema import Case
from medrm.scorer.collator import Collator

logger = logging.getLogger(__name__)


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
        check_lengths: (run, cases that are not set aside, their tokens); raises ConfigError for a
            case that no batch can hold; None: a case of any length is a batch.
    """

    config: type[TrainingArguments]
    readout: Callable[[Run], str]
    lengths: Callable[
        [Run, Collator, Sequence[str], Sequence[Case], Mapping[str, ImageFacts]],
        Sequence[int] | NDArray[Any],
    ]
    check: Callable[[Run, Sequence[str], Sequence[Case], Sequence[Case]], None]
    build_trainer: Callable[[TrainingInputs], Trainer]
    head_spec: Callable[[Run, Sequence[str], Sequence[Case]], HeadSpec] | None = None
    check_lengths: Callable[[Run, Sequence[Case], TokenCounts], None] | None = None


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
    reasons = (f"too long: {count} tokens, max_length {max_length}" for count in counts[long])
    excluded = [
        Excluded(case.case_id, reason)
        for case, reason in zip(select(cases, np.flatnonzero(long)), reasons, strict=True)
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


def visible_gpu_problems(args: TrainingArguments) -> list[str]:
    """Returns why a process must not see several GPUs: Trainer would deal rows to all of them."""
    if args.n_gpu <= 1:
        return []
    return [
        f"one process sees {args.n_gpu} GPUs; start `accelerate launch --num_processes "
        f"{args.n_gpu}`, or show it one GPU with CUDA_VISIBLE_DEVICES=0"
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

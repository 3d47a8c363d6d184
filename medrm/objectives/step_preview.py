"""What the steps of a training will be, and the largest micro-batch among them.

The trainer is the run's own, in one process; what follows from the number of processes that will
train is counted here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import Trainer

from medrm.data.store.indexed_cases import TokenCounts, tokens_of

_STEPS_LOOKED_AT = 200
"""Steps of the first epoch among which the largest micro-batch is looked for."""


@dataclass(frozen=True)
class StepPreview:
    """The steps of a training.

    Attributes:
        unit: what a step is counted in: "cases", "rows", "pairs" or "completions".
        count: of them in an epoch.
        step_size: of them in a step.
        epoch_steps: optimiser steps of an epoch.
        micro_batches: that each process runs in a step.
        step_tokens: of a step, on average, padding included.
        largest: most tokens that a device computes at once.
        batch: makes that micro-batch, as the trainer's collator does.
        run: forward and backward pass of it.
        sampling: makes the encoded prompts that a device answers at once, and says how many tokens
            an answer has at most; None: nothing is sampled.
    """

    unit: str
    count: int
    step_size: int
    epoch_steps: int
    micro_batches: int
    step_tokens: int
    largest: int
    batch: Callable[[], Any]
    run: Callable[[Any], object]
    sampling: Callable[[], tuple[Any, int]] | None = None


def prepare_step(trainer: Trainer) -> Callable[[Any], object]:
    """Returns the forward and backward pass of a micro-batch, as `Trainer.train` runs it."""
    args: Any = trainer.args
    if args.gradient_checkpointing:
        settings = args.gradient_checkpointing_kwargs
        checkpointed: Any = trainer.model
        checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.accelerator.prepare_model(trainer.model)
    return lambda batch: trainer.training_step(model, batch)


def preview_planned(trainer: Any, lengths: TokenCounts, processes: int) -> StepPreview:
    """Returns the steps of a `PreferenceTrainer`, whose plan says what each process computes.

    Args:
        trainer: of the run.
        lengths: tokens of its cases.
        processes: that will train.
    """
    plan, cases = replace(trainer.plan, processes=processes), trainer.train_dataset.cases
    longest, unique = (tokens_of(cases, lengths, field) for field in ("longest", "unique"))
    tokens, largest, batch = [], 0, list[Any]()
    for dealt in itertools.islice(plan.deals(0), _STEPS_LOOKED_AT):
        tokens.append(0)
        for draws in dealt:
            members = [draw.case for draw in draws]
            if trainer.layout == "packed":
                size = int(unique[members].sum())
            elif trainer.layout == "cases":
                size = int(unique[members].max()) * len(members)
            else:
                rows = sum(len(cases[index].answers) for index in members)
                size = int(longest[members].max()) * rows
            tokens[-1] += size
            if size > largest:
                largest, batch = size, draws
    return StepPreview(
        unit="cases",
        count=len(cases),
        step_size=plan.global_batch_cases,
        epoch_steps=plan.steps,
        micro_batches=plan.rounds,
        step_tokens=int(np.mean(tokens)),
        largest=largest,
        batch=lambda: trainer.data_collator([trainer.train_dataset[draw] for draw in batch]),
        run=prepare_step(trainer),
    )


def preview_rows(
    trainer: Any,
    tokens: NDArray[np.int64],
    processes: int,
    unit: str = "rows",
    rows_of_each: int = 1,
    repeats: int = 1,
) -> StepPreview:
    """Returns the steps of one of TRL's trainers, which deals rows and knows no plan.

    The largest micro-batch is that of the longest rows, should they fall together.

    Args:
        trainer: of the run.
        tokens: of each example of the training, of its case's longest row.
        processes: that will train.
        unit: what a step is counted in.
        rows_of_each: that are computed for one of the unit.
        repeats: of the unit for each example in an epoch.
    """
    args, count = trainer.args, len(tokens) * repeats
    size = args.per_device_train_batch_size
    order = np.argsort(-tokens, kind="stable")[:size].tolist()
    batches = math.ceil(count / (size * processes))
    step_size = size * args.gradient_accumulation_steps * processes
    return StepPreview(
        unit=unit,
        count=count,
        step_size=step_size,
        epoch_steps=max(1, math.ceil(batches / args.gradient_accumulation_steps)),
        micro_batches=args.gradient_accumulation_steps,
        step_tokens=int(tokens.mean() * rows_of_each * step_size),
        largest=int(tokens[order].max()) * len(order) * rows_of_each,
        batch=lambda: trainer.data_collator([trainer.train_dataset[index] for index in order]),
        run=prepare_step(trainer),
    )

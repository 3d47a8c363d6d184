"""How many tokens a batch of cases is, and plans that keep to a budget of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from medrm.data.store.indexed_cases import TokenCounts, column, tokens_of
from medrm.errors import ConfigError
from medrm.models.families import family_of
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.objectives.arguments import BradleyTerryConfig
from medrm.objectives.step_plan import Budget, Plan
from medrm.schema import Case

Layout = Literal["answers", "cases", "packed"]
"""What a row of a batch is: an answer, a case with its shared prefix, or the whole batch. Only the
last needs no padding."""


def layout_of(model: PreTrainedModel) -> Layout:
    """Returns how a stock model's batches lie."""
    if not shares_prefix(model):
        return "answers"
    return "cases" if family_of(model.config).rows_apart else "packed"


def check_budget(
    most: int | None, cases: Sequence[Case], lengths: TokenCounts, layout: Layout
) -> None:
    """Refuses a case that no batch can hold.

    Args:
        most: tokens of a batch; None: no limit.
        cases: any.
        lengths: their tokens.
        layout: of the batches.

    Raises:
        ConfigError: such a case.
    """
    if most is None:
        return
    tokens, rows = _tokens(cases, lengths, layout)
    alone = tokens if rows is None else tokens * rows
    over = int((alone > most).sum())
    if over:
        longest = int(alone.argmax())
        raise ConfigError(
            f"max_tokens_per_batch is {most}, but {over} cases alone have more; the longest, "
            f"{cases[longest].case_id!r}, has {alone[longest]} tokens. Give at least "
            f"{alone[longest]}, or set long cases aside with max_length."
        )


def plan_of(
    args: BradleyTerryConfig,
    cases: Sequence[Case],
    lengths: TokenCounts,
    layout: Layout,
    weights: NDArray[Any],
    training: bool,
) -> Plan:
    """Returns the plan of a training, or of one pass over cases.

    Args:
        args: of the training.
        cases: any.
        lengths: their tokens.
        layout: of the batches.
        weights: summed label weight of each case.
        training: whether steps are taken; else all cases are one.
    """
    tokens, rows = tokens_of(cases, lengths), None
    global_batch_cases = args.global_batch_cases if training else len(cases)
    epochs = _epochs(args, math.ceil(len(cases) / global_batch_cases)) if training else 1
    budget = None
    if args.max_tokens_per_batch is not None:
        tokens, rows = _tokens(cases, lengths, layout)
        budget = Budget(args.max_tokens_per_batch, rows, epochs)
    at_once = args.per_device_train_batch_size if training else args.per_device_eval_batch_size
    assert at_once is not None
    return Plan(
        lengths=tokens,
        weights=weights,
        kinds=column(cases, "image_count"),
        global_batch_cases=global_batch_cases,
        micro_batch_cases=at_once,
        processes=args.world_size,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        budget=budget,
    )


def _epochs(args: BradleyTerryConfig, steps: int) -> int:
    """Returns how many epochs of so many steps the training begins."""
    return math.ceil(args.max_steps / steps if args.max_steps > 0 else args.num_train_epochs)


def _tokens(
    cases: Sequence[Case], lengths: TokenCounts, layout: Layout
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Returns the tokens of a row of each case, and its rows; None where nothing is padded."""
    if layout == "answers":
        return tokens_of(cases, lengths), column(cases, "answer_count").astype(np.int64)
    unique = tokens_of(cases, lengths, "unique")
    return unique, np.ones_like(unique) if layout == "cases" else None

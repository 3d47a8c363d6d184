"""How many tokens a batch of cases is, and step plans that keep to a budget of them.

A case is a prefix of Lp tokens (question and images) and K answers of L1 ... LK. The layout of a
batch says what its cases compute:

    "answers"   K rows per case, all padded to the longest row of the batch: K x max(Lp + Lk)
    "cases"     one row per case, padded to the longest of the batch:        max(Lp + L1 + ... + LK)
    "packed"    one row for the whole batch, not padded:                     Lp + L1 + ... + LK
"""

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
from medrm.objectives.step_plan import StepPlan, TokenBudget
from medrm.schema import Case

Layout = Literal["answers", "cases", "packed"]
"""What a row of a batch is: an answer, a case with its shared prefix, or the whole batch."""


def layout_of(model: PreTrainedModel) -> Layout:
    """Returns how a stock model's batches lie."""
    if not shares_prefix(model):
        return "answers"
    return "cases" if family_of(model.config).rows_apart else "packed"


def check_budget(
    max_tokens: int | None, cases: Sequence[Case], lengths: TokenCounts, layout: Layout
) -> None:
    """Refuses a case that no batch can hold.

    Args:
        max_tokens: of a batch; None: no limit.
        cases: any.
        lengths: their tokens.
        layout: of the batches.

    Raises:
        ConfigError: such a case.
    """
    if max_tokens is None:
        return
    tokens, rows = _row_tokens(cases, lengths, layout)
    case_tokens = tokens if rows is None else tokens * rows
    over = int((case_tokens > max_tokens).sum())
    if over:
        longest = int(case_tokens.argmax())
        raise ConfigError(
            f"max_tokens_per_batch is {max_tokens}, but {over} cases alone have more; the longest, "
            f"{cases[longest].case_id!r}, has {case_tokens[longest]} tokens. Give at least "
            f"{case_tokens[longest]}, or set long cases aside with max_length."
        )


def make_plan(
    args: BradleyTerryConfig,
    cases: Sequence[Case],
    lengths: TokenCounts,
    layout: Layout,
    weights: NDArray[Any],
    training: bool,
) -> StepPlan:
    """Returns the plan of a training, or of one pass over cases.

    Args:
        args: of the training.
        cases: any.
        lengths: their tokens.
        layout: of the batches.
        weights: summed label weight of each case.
        training: whether steps are taken; else all cases are one step of one epoch.
    """
    tokens, budget = tokens_of(cases, lengths), None
    global_batch_cases = args.global_batch_cases if training else len(cases)
    if args.max_tokens_per_batch is not None:
        tokens, rows = _row_tokens(cases, lengths, layout)
        steps = math.ceil(len(cases) / global_batch_cases)
        epochs = args.max_steps / steps if args.max_steps > 0 else args.num_train_epochs
        budget = TokenBudget(args.max_tokens_per_batch, rows, math.ceil(epochs) if training else 1)
    micro_batch_cases = (
        args.per_device_train_batch_size if training else args.per_device_eval_batch_size
    )
    assert micro_batch_cases is not None  # the arguments fill it in
    return StepPlan(
        lengths=tokens,
        weights=weights,
        image_counts=column(cases, "image_count"),
        global_batch_cases=global_batch_cases,
        micro_batch_cases=micro_batch_cases,
        processes=args.world_size,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        budget=budget,
    )


def _row_tokens(
    cases: Sequence[Case], lengths: TokenCounts, layout: Layout
) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Returns the tokens of a row of each case, and its rows; None where nothing is padded."""
    if layout == "answers":
        return tokens_of(cases, lengths), column(cases, "answer_count").astype(np.int64)
    unique = tokens_of(cases, lengths, "unique")
    return unique, np.ones_like(unique) if layout == "cases" else None

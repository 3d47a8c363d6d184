"""Answers that see earlier answers: a case as a few rows, each with all answers in another order.

Listwise scoring in one pass, as in MR2-RM (https://arxiv.org/abs/2604.10966). There a reward hangs
on the order of the answers; here it is the mean over orders in which every two answers stand both
ways.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from medrm.errors import ConfigError


def check_contextual(orders: int, shares: bool) -> None:
    """Refuses to read answers that see each other as separate rows, where none would.

    Raises:
        ConfigError: there are orders, and the model does not share prefixes.
    """
    if orders and not shares:
        raise ConfigError(
            f"contextual_orders is {orders}, and the rows of this model run separately. Leave "
            "shared_prefix on, with attn_implementation sdpa and a model that can share its "
            "prefix (the log says why one cannot), or give contextual_orders 0 when training."
        )


Read = tuple[int, int]
"""An order's number, and the tokens of its row behind the prefix up to where an answer is read."""


def answer_orders(answers: int, limit: int) -> list[tuple[int, ...]]:
    """Returns different orders of K answers: the stored one, its reverse, and so on by rotation.

    Args:
        answers: K.
        limit: 1, or an even number, so that every two answers stand both ways equally often.
    """
    permutations: list[tuple[int, ...]] = []
    for first in range(answers):
        rotated = (*range(first, answers), *range(first))
        permutations += [rotated, rotated[::-1]]
    return list(dict.fromkeys(permutations))[:limit]


def join_answers(
    tails: Sequence[Sequence[int]], count: int
) -> tuple[list[list[int]], list[tuple[Read, ...]]]:
    """Returns the rows of a case behind its prefix, and where in them each answer is read.

    Args:
        tails: [K] token ids of each answer, with what the template writes behind it.
        count: in how many orders each answer is read; where there are fewer, they are read again.

    Returns:
        token ids of each different order, and [K][count] reads.
    """
    permutations = answer_orders(len(tails), count)
    rows = [list(itertools.chain.from_iterable(tails[k] for k in order)) for order in permutations]
    ends = [
        dict(zip(order, itertools.accumulate(len(tails[k]) for k in order), strict=True))
        for order in permutations
    ]
    again = [number % len(permutations) for number in range(count)]
    return rows, [tuple((number, ends[number][k]) for number in again) for k in range(len(tails))]

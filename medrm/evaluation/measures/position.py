"""What the presented order does to verdicts; imports no torch.

Everything here needs both orders and is None for scalar models. `A` is the first answer as stored,
which is shown first in the forward order and second in the reversed one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medrm.evaluation.measures.contributions import Contributions, contributions
from medrm.schema import LETTERS, TIE, UNREAD, Verdict
from medrm.statistics.intervals import mean
from medrm.statistics.significance import binomial_midp

Presented = Sequence[Verdict]
"""The rows of one case on one dimension, one for each presented order."""

SHOWN_FIRST: dict[str, str] = {"forward": LETTERS[0], "reversed": LETTERS[1]}

MEASURES = (
    *("consistency", "first_rate", "both_correct", "net_correct"),
    *("position_gap", "flips"),
)


def position_measures(cases: Sequence[Presented]) -> dict[str, Any]:
    """Returns the measures named in `MEASURES`, all None where only one order was presented.

    `both_correct`: the share of labelled cases right in both orders; `net_correct`: right more
    often than wrong, where a tie and what is unread are neither (the rule of JudgeBench, arXiv
    2410.12784). Among pairs labelled A or B, `position_gap`: accuracy where the preferred answer
    is shown first minus accuracy where it is shown second.
    """
    if not in_both_orders(cases):
        return dict.fromkeys(MEASURES)
    labelled = [case for case in cases if case[0].correct is not None]
    scored = [
        (row.order, row.label, row.correct or 0.0)
        for case in labelled
        for row in case
        if row.label in LETTERS
    ]
    first = mean([correct for order, label, correct in scored if label == SHOWN_FIRST[order]])
    second = mean([correct for order, label, correct in scored if label != SHOWN_FIRST[order]])
    return {
        "consistency": consistent(cases).rate,
        "first_rate": named_first(cases).rate,
        "both_correct": mean([float(all(row.correct for row in case)) for case in labelled]),
        "net_correct": mean([float(sum(map(_game, case)) > 0) for case in labelled]),
        "position_gap": None if first is None or second is None else first - second,
        "flips": flips(cases),
    }


def in_both_orders(cases: Sequence[Presented]) -> bool:
    """Returns whether any case was shown in both orders."""
    return any(row.order != "forward" for case in cases for row in case)


def consistent(cases: Sequence[Presented]) -> Contributions:
    """Returns the share of all cases with the same verdict in both orders; unread is not."""
    return contributions(
        (float(_read_twice(case) and case[0].outcome == case[1].outcome), 1.0) for case in cases
    )


def named_first(cases: Sequence[Presented]) -> Contributions:
    """Returns, of the A/B verdicts on pairs read in both orders, the share for the one shown first.

    Content cancels there, so a departure from 1/2 is a position effect.
    """
    pairs = []
    for case in cases:
        named = [row for row in case if row.outcome in LETTERS] if _read_twice(case) else []
        first = sum(row.outcome == SHOWN_FIRST[row.order] for row in named)
        pairs.append((float(first), float(len(named))))
    return contributions(pairs)


def flips(cases: Sequence[Presented]) -> dict[str, Any] | None:
    """Returns how often one slot won in both orders, over pairs with a verdict in both.

    `skew` = (second - first) / (second + first), from -1 (primacy) to 1 (recency), None without a
    flip; `p`: two-sided mid-p binomial test of both counts, which assumes independent cases. This
    is the direction of what Shi et al. (arXiv 2406.07791) call preference fairness, without their
    normalisation. None where no verdict names an answer of a pair.
    """
    named = [
        case for case in cases if _read_twice(case) and all(r.outcome in LETTERS for r in case)
    ]
    if not named:
        return None
    won = [[row.outcome == SHOWN_FIRST[row.order] for row in case] for case in named]
    first, second = sum(map(all, won)), sum(not any(case) for case in won)
    return {
        "first_twice": first,
        "second_twice": second,
        "skew": (second - first) / (second + first) if first + second else None,
        "p": binomial_midp(first, first + second),
    }


def _read_twice(case: Presented) -> bool:
    return len(case) == 2 and all(row.outcome != UNREAD for row in case)


def _game(row: Verdict) -> int:
    """1 right, -1 wrong, 0 neither."""
    if row.correct:
        return 1
    return 0 if row.outcome in (TIE, UNREAD) else -1

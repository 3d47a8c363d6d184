"""In which order a reader is shown a case's answers, and what a vote on what was shown means."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from medrm.errors import shortened
from medrm.schema import LETTERS

VOTES = ("A", "tie", "B", "neither")
"""What a reader can say of two answers; `A` is the one shown first."""

STRENGTHS = ("slightly", "strongly")
CONFIDENCES = ("low", "medium", "high")

_TURNED = {"A": "B", "B": "A"}
_TURNED |= {f"{strength}_a": f"{strength}_b" for strength in STRENGTHS}
_TURNED |= {f"{strength}_b": f"{strength}_a" for strength in STRENGTHS}


def shown_order(case_id: str, answers: int, seed: int) -> tuple[int, ...]:
    """Returns the indices of the stored answers in the order in which they are shown.

    It follows from the seed and the id alone.

    >>> shown_order("17", 2, seed=0), shown_order("17", 2, seed=3)
    ((0, 1), (1, 0))
    """
    order = list(range(answers))
    random.Random(f"{seed} {case_id}").shuffle(order)
    return tuple(order)


def is_order(stated: object, answers: int) -> bool:
    """Returns whether a list or tuple names each of so many stored answers once, from 0.

    >>> is_order([1, 0], 2), is_order([1, 1], 2), is_order([True, 0], 2), is_order("10", 2)
    (True, False, False, False)
    """
    return (
        isinstance(stated, list | tuple)
        and all(type(index) is int for index in stated)
        and sorted(stated) == [*range(answers)]
    )


def order_problem(stated: object, answers: int) -> str | None:
    """Returns why a task's `order` is none of its answers; None: it is one."""
    if is_order(stated, answers):
        return None
    said = shortened(repr(stated))
    return f"'order' is {said}, which does not name its {answers} answers from 0"


def letter_of(number: int) -> str:
    """Returns how a shown answer is called: A, B, ..., from the 27th on its number.

    >>> letter_of(0), letter_of(25), letter_of(26)
    ('A', 'Z', '27')
    """
    return chr(ord(LETTERS[0]) + number) if number < 26 else str(number + 1)


def turned(value: str, order: Sequence[int]) -> str:
    """Returns a vote on the shown pair as one on the stored pair, and the other way round.

    >>> turned("strongly_a", (1, 0)), turned("A", (0, 1)), turned("tie", (1, 0))
    ('strongly_b', 'A', 'tie')
    """
    return _TURNED.get(value, value) if tuple(order) == (1, 0) else value


def with_strength(value: str, strength: str | None) -> str:
    """Returns a vote that says how far an answer is better.

    >>> with_strength("B", "slightly"), with_strength("tie", "slightly"), with_strength("B", None)
    ('slightly_b', 'tie', 'B')
    """
    return f"{strength}_{value.lower()}" if strength and value in ("A", "B") else value


def stored_ranking(ranks: Mapping[int, float], order: Sequence[int]) -> list[list[int]]:
    """Returns a ranking of stored answers, best first, as `votes.jsonl` has it.

    Args:
        ranks: number of a shown answer, from 0, to its rank; the least is the best, equal ones tie.
        order: that was shown.

    >>> stored_ranking({0: 1, 1: 1, 2: 3}, (2, 0, 1))
    [[0, 2], [1]]
    """
    tied: defaultdict[float, list[int]] = defaultdict(list)
    for position, rank in ranks.items():
        tied[rank].append(order[position])
    return [sorted(tied[rank]) for rank in sorted(tied)]

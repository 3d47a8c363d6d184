"""Judges of pairs on cases of more than two answers: every two answers are compared."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import combinations, islice

from medrm.schema import ORDERS, Case, Label, PairLabel, RankingLabel
from medrm.scorer.runner import Scored

Pair = tuple[int, int]


def in_pairs(
    judge: Callable[[Iterable[Case]], Iterator[Scored]], cases: Iterable[Case]
) -> Iterator[Scored]:
    """Yields what a judge of pairs says of cases of any number of answers.

    A case of K answers is judged as K (K - 1) / 2 pairs; its responses name theirs.

    Args:
        judge: yields the forward and the reversed order of each pair, one after the other.
        cases: are read as far as the judge reads.
    """
    waiting: deque[tuple[Case, list[Pair]]] = deque()

    def pairs() -> Iterator[Case]:
        for case in cases:
            matches = list(combinations(range(len(case.answers)), 2))
            waiting.append((case, matches))
            yield from (case,) if len(matches) == 1 else (pair_of(case, one) for one in matches)

    judged = judge(pairs())
    for scored in judged:
        case, matches = waiting.popleft()
        if len(matches) == 1:
            yield scored
            yield next(judged)
            continue
        rounds = [scored, *islice(judged, len(ORDERS) * len(matches) - 1)]
        for place, order in enumerate(ORDERS):
            responses = (
                replace(response, case_id=case.case_id, pair=match)
                for match, one in zip(matches, rounds[place :: len(ORDERS)], strict=True)
                for response in one.responses
            )
            yield Scored(case, order, responses=tuple(responses))


def pair_of(case: Case, pair: Pair) -> Case:
    """Returns two answers of a case as a case of its own, labelled by who ranked which higher."""
    first, second = pair
    return replace(
        case,
        case_id=f"{case.case_id}#{first}-{second}",
        answers=(case.answers[first], case.answers[second]),
        labels={name: _pair_label(label, pair) for name, label in case.labels.items()},
    )


def _pair_label(label: Label, pair: Pair) -> Label:
    if not isinstance(label, RankingLabel):
        return label
    wins = [0, 0, 0]  # of the first, of neither, of the second
    for ranking in label.rankings:
        first, second = (
            next(place for place, level in enumerate(ranking) if index in level) for index in pair
        )
        wins[1 + (first > second) - (first < second)] += 1
    total = len(label.rankings)
    return PairLabel((wins[0] / total, wins[1] / total, wins[2] / total), total)

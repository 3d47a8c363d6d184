"""What all judges share: they are shown two answers at a time, in both orders.

A case of two answers is one pair. A case of K > 2 answers is asked about as K (K - 1) / 2 pairs,
and its responses name theirs:

    case of 3 answers -> pairs (0, 1), (0, 2), (1, 2) -> responses of all pairs, forward order first
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, islice

from medrm.schema import Case, Label, PairLabel, RankingLabel, Response, Verdict
from medrm.scorer.caller_case import ImageInput, caller_pair
from medrm.scorer.verdict_rules import agreed_verdicts

Pair = tuple[int, int]
"""Two of a case's answers, by their indices."""


class PairJudge(ABC):
    """A judge of two answers.

    Attributes:
        dimensions: what is asked about.
    """

    dimensions: tuple[str, ...]

    @abstractmethod
    def _ask(self, pairs: Iterable[Case]) -> Iterator[list[Response]]:
        """Yields all responses to each case of two answers, the forward order first."""

    def respond(self, cases: Iterable[Case]) -> Iterator[Response]:
        """Yields the responses to every case, first in the forward order, then in the reversed one.

        Of more than two answers every two are compared. Cases are read only as far as they are
        computed together.
        """
        waiting: deque[tuple[Case, list[Pair]]] = deque()

        def pairs() -> Iterator[Case]:
            for case in cases:
                matches = list(combinations(range(len(case.answers)), 2))
                waiting.append((case, matches))
                yield from (
                    (case,) if len(matches) == 1 else (pair_of(case, match) for match in matches)
                )

        by_pair = self._ask(pairs())
        for responses in by_pair:
            case, matches = waiting.popleft()
            if len(matches) == 1:
                yield from responses
                continue
            rounds = [responses, *islice(by_pair, len(matches) - 1)]
            named = (
                replace(response, case_id=case.case_id, pair=match)
                for match, of_pair in zip(matches, rounds, strict=True)
                for response in of_pair
            )
            yield from sorted(named, key=lambda response: response.order)

    def compare(
        self, images: Sequence[ImageInput], question: str, answers: Sequence[str]
    ) -> dict[str, Verdict]:
        """Returns the answer that both orders prefer, on each dimension.

        Where the orders differ there is no choice, and the reason is "orders_disagree". Replies are
        read by the strict parser, each order by the majority of its votes. Where the judge is read
        by probabilities, `probability_a` is the mean of the orders, given that one of the answers
        is named; where an order has no probability on either answer, the reason is "no_mass".

        Args:
            images: any number, none included.
            question: about the images.
            answers: two.

        Raises:
            DataError: other than two answers, or an image that cannot be read.
        """
        case = caller_pair(images, question, answers)
        return agreed_verdicts(case, list(self.respond([case])), self.dimensions)


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
            next(rank for rank, level in enumerate(ranking) if index in level) for index in pair
        )
        wins[1 + (first > second) - (first < second)] += 1
    total = len(label.rankings)
    return PairLabel((wins[0] / total, wins[1] / total, wins[2] / total), total)

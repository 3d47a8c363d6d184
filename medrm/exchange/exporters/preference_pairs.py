"""What the votes on cases say as pairs of a better and a worse answer, and what they do not say."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from medrm.data.labels import LabelRules, labels_of
from medrm.data.sources import CaseDraft
from medrm.exchange.exported import Export
from medrm.schema import TIE, PairLabel, RankingLabel

LOST = (
    "A row says which of two answers a majority prefers on one dimension, not who voted how, how "
    "far an answer is better, how sure readers were, or why."
)
"""What no row of a preference carries."""


class Pair(NamedTuple):
    """Two answers of a case, of which a majority prefers one.

    Attributes:
        case_id: of the case; of more than two answers with the numbers of the two behind it.
        draft: the case.
        chosen: index of the better answer.
        rejected: index of the worse answer.
        label: of the pair; its first answer is the one with the lower index.
    """

    case_id: str
    draft: CaseDraft
    chosen: int
    rejected: int
    label: PairLabel


def preference_pairs(export: Export, dimension: str) -> Iterator[Pair]:
    """Yields the pairs of all cases on a dimension, and counts what gives none."""
    for draft in export.with_images():
        votes = draft.votes.get(dimension)
        named = f"{draft.case_id} ({dimension})"
        if not votes:
            export.leave_out("nobody votes on the dimension", named)
            continue
        draft_on_one = CaseDraft(draft.case_id, (), "", draft.answers, {dimension: votes})
        (labels,) = labels_of([draft_on_one], LabelRules())
        for indices, label in _pair_labels(labels[dimension], len(draft.answers)):
            ending = "" if len(draft.answers) == 2 else "#{}-{}".format(*indices)
            if label.choice in (0, 1):
                chosen = indices[int(label.choice)]
                rejected = indices[1 - int(label.choice)]
                yield Pair(draft.case_id + ending, draft, chosen, rejected, label)
            else:
                export.leave_out(_reason(label), named + ending)


def _pair_labels(
    label: PairLabel | RankingLabel, answers: int
) -> Iterator[tuple[tuple[int, int], PairLabel]]:
    if isinstance(label, PairLabel):
        yield (0, 1), label
        return
    for pair in combinations(range(answers), 2):
        yield pair, label.of_pair(pair)


def _reason(label: PairLabel) -> str:
    """Returns why a label prefers no answer."""
    if label.unacceptable:
        return "a majority accepts neither answer"
    return "a majority sees a tie" if label.choice == TIE else "no majority for an answer"

"""What a parser read in a reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from medrm.schema import Order

Outcome = Literal["A", "B", "tie"]
"""In a reply `A` is the answer that the judge was shown first."""

Vote = TypeVar("Vote")


@dataclass(frozen=True, slots=True)
class Parsed:
    """The verdict of one reply.

    Attributes:
        outcomes: every asked dimension to what the reply says; None: nothing was read.
        stage: the rule that read it; official: "json", "regex", "bracket" or "single"; strict:
            "json" or "letter"; None: no rule did.
        reason: why nothing, or not everything, was read.
        suspect: read by a rule of the released scorer that is known to misread.
    """

    outcomes: Mapping[str, Outcome | None]
    stage: str | None = None
    reason: str | None = None
    suspect: bool = False


def stored_outcome(outcome: Outcome, order: Order) -> Outcome:
    """Returns what a reply says of the answers as stored, where `A` is the first of these."""
    if outcome == "tie" or order == "forward":
        return outcome
    return "B" if outcome == "A" else "A"


def majority(votes: Iterable[Vote]) -> Vote | None:
    """Returns what most votes say; None where there are none, or where several have the most."""
    most_common = Counter(votes).most_common(2)
    if not most_common or (len(most_common) == 2 and most_common[0][1] == most_common[1][1]):
        return None
    return most_common[0][0]

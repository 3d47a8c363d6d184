"""Graded preferences of several annotators between two responses, as HelpSteer3 has them."""

from __future__ import annotations

from typing import Any

from medrm.data.readers.rated_answers import objects_of
from medrm.data.row_tables import Row
from medrm.data.sources import Strength, Vote
from medrm.errors import DataError, shortened

GRADED_COLUMNS = {"response1", "response2", "overall_preference"}

_STRENGTHS: dict[int, Strength | None] = {1: "slightly", 2: None, 3: "strongly"}


def graded_votes(row: Row, dimension: str) -> dict[str, list[Vote]]:
    """Returns the vote of each annotator, where they are stated, else the one that stands for all.

    A score below zero is a vote for the first response, above for the second; 1 is slightly, 3
    strongly better.

    Args:
        row: with `individual_preference` or `overall_preference`.
        dimension: of the votes.

    Raises:
        DataError: a score is none.
    """
    opinions = objects_of(row.get("individual_preference"))
    if not isinstance(opinions, list) or not opinions:
        opinions = [{"score": row.get("overall_preference")}]
    return {dimension: [_vote(f"annotator-{n}", said) for n, said in enumerate(opinions, start=1)]}


def _vote(annotator: str, opinion: Any) -> Vote:
    opinion = opinion if isinstance(opinion, dict) else {"score": opinion}
    score = opinion.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or score not in range(-3, 4):
        raise DataError(f"a preference is {shortened(repr(score))}; accepted are -3 to 3")
    reason = opinion.get("reasoning")
    reason = reason if isinstance(reason, str) and reason else None
    if score == 0:
        return Vote(annotator, "tie", reason=reason)
    return Vote(annotator, int(score > 0), _STRENGTHS[abs(int(score))], reason=reason)

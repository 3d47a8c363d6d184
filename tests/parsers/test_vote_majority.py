"""What several replies say together, and what one says of the answers as stored."""

from __future__ import annotations

import pytest

from medrm.parsers.parsed import majority, stored_outcome


@pytest.mark.parametrize(
    ("votes", "expected"),
    [("", None), ("A", "A"), ("ABA", "A"), ("AB", None), ("ABAB", None), ("ABCC", "C")],
)
def test_majority_is_what_most_say_and_nothing_where_several_do(
    votes: str, expected: str | None
) -> None:
    assert majority(votes) == majority(votes[::-1]) == expected


def test_the_first_answer_shown_is_the_second_stored_one_in_reverse() -> None:
    assert [stored_outcome(said, "forward") for said in ("A", "B", "tie")] == ["A", "B", "tie"]
    assert [stored_outcome(said, "reversed") for said in ("A", "B", "tie")] == ["B", "A", "tie"]

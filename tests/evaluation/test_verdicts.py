"""Labels of more than two answers as they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from medrm.evaluation.records.jsonl import read_verdicts, write_rows
from medrm.schema import Case, PairLabel, RankingLabel, Verdict
from medrm.scorer.verdict_rules import label_of, labelled


def ranked(*rankings: tuple[tuple[int, ...], ...]) -> RankingLabel:
    return RankingLabel(rankings)


@pytest.mark.parametrize(
    ("label", "written", "shares"),
    [
        (ranked(((2,), (0, 1))), 2, (0, 0, 1)),
        (ranked(((0, 2), (1,))), (0, 2), (0.5, 0, 0.5)),
        (ranked(((0, 1, 2),)), "tie", (1 / 3, 1 / 3, 1 / 3)),
        (ranked(((0, 2), (1,)), ((0,), (1, 2))), None, (0.75, 0, 0.25)),
        (ranked(((1,), (0, 2)), ((1,), (0,), (2,)), ((0,), (1, 2))), 1, (1 / 3, 2 / 3, 0)),
    ],
)
def test_what_most_votes_put_on_top_is_the_label(
    label: RankingLabel, written: object, shares: tuple[float, ...]
) -> None:
    assert label_of(label, 3) == (written, pytest.approx(shares))


def test_each_of_the_best_answers_is_right(tmp_path: Path) -> None:
    case = Case("c", (), "q", ("a", "b", "c"), {"overall": ranked(((0, 2), (1,)))})
    rows = [
        labelled(case, Verdict("c", "overall", "robust", "forward", outcome))
        for outcome in (0, 1, 2, "tie", "unread")
    ]
    assert [row.correct for row in rows] == [1, 0, 1, 0, 0]
    write_rows(tmp_path / "verdicts.jsonl", rows)
    assert read_verdicts(tmp_path / "verdicts.jsonl") == rows


def test_a_pair_keeps_its_letters() -> None:
    assert label_of(PairLabel((0.25, 0.0, 0.75), 4), 2) == ("B", (0.25, 0.0, 0.75))
    assert label_of(None, 2) == (None, None)

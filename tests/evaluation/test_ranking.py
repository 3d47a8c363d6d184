"""Which models of a leaderboard can be told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from medrm.errors import DataError
from medrm.evaluation.leaderboard.standings import Judged, rankings, read_judged
from medrm.evaluation.records.jsonl import write_rows
from medrm.schema import Verdict
from medrm.statistics.intervals import mean_interval

CASES = [f"c{i:02d}" for i in range(60)]


def judged(right: int, cases: list[str] = CASES, size: int = 1) -> Judged:
    """Right on the first cases, in clusters of that size."""
    scores = {name: float(i < right) for i, name in enumerate(cases)}
    return Judged({"overall": scores}, {name: str(i // size) for i, name in enumerate(cases)})


def test_a_model_that_missed_cases_has_no_place() -> None:
    models = {
        "whole": judged(40),
        "part": judged(58, CASES[:-1]),
        "other": Judged({"accuracy": {}}, {}),
    }
    assert set(rankings(models, "overall")) == {"whole"}
    assert rankings(models, "overall")["whole"] == {"rank_range": [1, 1], "to_best": None}
    assert rankings(models, "accuracy") == {}
    assert rankings({}, "overall") == {}


def test_the_difference_to_the_best_is_that_of_a_comparison() -> None:
    found = rankings({"best": judged(50), "middle": judged(46), "last": judged(20)}, "overall")
    assert found["best"]["to_best"] is None
    changed = [0.0] * 46 + [-1.0] * 4 + [0.0] * 10
    distance = found["middle"]["to_best"]
    assert distance["delta"] == pytest.approx(-4 / 60)
    assert distance["ci95"] == mean_interval(changed, CASES).bounds
    assert found["last"]["to_best"]["p"] < 0.001
    # 4 cases in one direction: exact p 1/8; the sure difference to the last adds nothing to it.
    assert distance["p"] == pytest.approx(2 / 2**4, abs=0.02)
    assert [one["rank_range"] for one in found.values()] == [[1, 2], [3, 3], [1, 2]]


def test_few_clusters_tell_less() -> None:
    apart = rankings({"one": judged(60), "two": judged(45)}, "overall")
    together = rankings({"one": judged(60, size=15), "two": judged(45, size=15)}, "overall")
    assert apart["two"]["rank_range"] == [2, 2]
    assert together["two"]["rank_range"] == [1, 2]
    # All of the difference lies in one cluster: whichever sign it has, T is the same.
    assert apart["two"]["to_best"]["p"] < 0.001
    assert together["two"]["to_best"]["p"] == 1.0


def test_scores_come_from_the_robust_verdicts(tmp_path: Path) -> None:
    """A judge that keeps its letter when the answers are swapped is right once of two."""
    row = Verdict(
        case_id="c0",
        dimension="overall",
        protocol="robust",
        order="forward",
        outcome="A",
        reason=None,
        label="A",
        label_shares=(1.0, 0.0, 0.0),
        probability_a=None,
        score_a=None,
        score_b=None,
        cluster="k0",
        groups={},
    )
    rows = [
        row,
        replace(row, order="reversed", outcome="B"),
        replace(row, protocol="official"),
        replace(row, case_id="c1", label="tie"),
    ]
    write_rows(tmp_path / "verdicts.jsonl", rows)
    found = read_judged(tmp_path)
    assert found.scores == {"overall": {"c0": 0.5}}
    assert found.clusters == {"c0": "k0", "c1": "k0"}
    with pytest.raises(DataError, match="no verdicts"):
        read_judged(tmp_path / "nowhere")

"""Pooling folds: one model in k folds is that model on all cases; what does not fit is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation.mock_scorers import Judge, Rewards, Writer, make_benchmark, make_cases, oracle

from medrm.data.case_set import digest_of
from medrm.errors import DataError
from medrm.evaluation.benchmark import Benchmark, benchmark_from_cases
from medrm.evaluation.evaluator import Scorer, evaluate, rescore
from medrm.evaluation.folds import Fold, pool
from medrm.schema import Case

CASES = make_cases("AABBABABBAtA", overall="ABABABABABAB")


def benchmark() -> Benchmark:
    whole = make_benchmark(CASES, ("accuracy", "overall"))
    return replace(whole, source=replace(whole.source, digest=digest_of(CASES)))


def judged(scorer: Scorer, cases: Sequence[Case], folder: Path, **options: object) -> Fold:
    whole = benchmark()
    part = benchmark_from_cases(whole.name, whole.source, cases)
    evaluate(scorer, part, folder, "mock", settings={"dtype": "float32"} | options)
    return Fold(folder)


def a_writer() -> Writer:
    text = '{"accuracy": "A", "overall": "B"}'
    return Writer(lambda case, order, *_: None if case.case_id == "case-003" else text)


@pytest.mark.parametrize(
    "scorer",
    [
        lambda: Rewards(oracle, ("accuracy", "overall")),
        lambda: Judge(lambda case, order: 0.7 if order == "forward" else None),
        a_writer,
    ],
)
def test_folds_of_one_model_are_the_model_on_all_cases(
    scorer: Callable[[], Scorer], tmp_path: Path
) -> None:
    straight = evaluate(
        scorer(), benchmark(), tmp_path / "all", "mock", settings={"dtype": "float32"}
    )
    parts = [CASES[4:8], CASES[8:], CASES[:4]]  # in another order than the cases
    folds = [judged(scorer(), part, tmp_path / f"{i}") for i, part in enumerate(parts)]
    pooled = pool(folds, benchmark(), "accuracy", tmp_path / "pooled")
    told = pooled.pop("crossfit")
    assert straight.pop("crossfit") is None
    assert pooled == straight
    assert [fold["cases"] for fold in told["per_fold"]] == [4, 4, 4]
    assert [fold["clusters"] for fold in told["per_fold"]] == [2, 2, 2]
    written = {path.name for path in (tmp_path / "all").iterdir()}
    assert {path.name for path in (tmp_path / "pooled").iterdir()} == written
    for name in written - {"report.json", "evaluation.json"}:
        assert (tmp_path / "pooled" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()


def test_a_temperature_is_that_of_the_folds_own_development_cases(tmp_path: Path) -> None:
    """A model that is right in 3 of 4 and says 98 % is to say 75 %."""

    def sure(case: Case) -> tuple[float, float]:
        first = oracle(case)[0] == 1
        wrong = case.case_id in ("case-003", "case-007")
        return (4.0, 0.0) if first != wrong else (0.0, 4.0)

    scorer = Rewards(sure, ("accuracy", "overall"))
    first = judged(scorer, CASES[:4], tmp_path / "1")
    second = judged(scorer, CASES[4:8], tmp_path / "2")
    folds = [replace(first, development=second.folder), second]
    whole = benchmark_from_cases("hand-made", benchmark().source, CASES[:8])
    told = pool(folds, whole, "accuracy", tmp_path / "pooled")["crossfit"]["per_fold"]
    assert told[0]["accuracy"] == told[1]["accuracy"] == 0.75
    assert told[0]["temperature"] == pytest.approx(4 / math.log(3), rel=1e-4)
    raw, scaled = (told[0]["calibration"][name] for name in ("raw", "scaled"))
    assert raw["ece"] == pytest.approx(1 / (1 + math.exp(-4)) - 0.75)
    assert scaled["ece"] == pytest.approx(0, abs=1e-4)
    assert scaled["nll"] < raw["nll"]
    assert told[1]["temperature"] is None
    report = (tmp_path / "pooled" / "report.json").read_text()
    assert json.loads(report)["crossfit"]["per_fold"] == told
    rescore(tmp_path / "pooled")
    assert (tmp_path / "pooled" / "report.json").read_text() == report


def test_a_judges_probability_is_the_mean_of_both_orders(tmp_path: Path) -> None:
    judge = Judge(lambda case, order: 0.9 if order == "forward" else 0.7)
    folds = [judged(judge, CASES[:4], tmp_path / "1"), judged(judge, CASES[4:8], tmp_path / "2")]
    folds = [replace(fold, development=fold.folder) for fold in folds]
    whole = benchmark_from_cases("hand-made", benchmark().source, CASES[:8])
    told = pool(folds, whole, "accuracy", tmp_path / "pooled")["crossfit"]["per_fold"]
    for fold in told:
        raw = fold["calibration"]["raw"]
        assert raw["n"] == 4
        assert raw["ece"] == pytest.approx(0.8 - fold["accuracy"])


def test_a_case_judged_twice_or_never_is_refused(tmp_path: Path) -> None:
    scorer = Rewards(oracle, ("accuracy", "overall"))
    folds = [judged(scorer, CASES[:6], tmp_path / "1"), judged(scorer, CASES[5:11], tmp_path / "2")]
    with pytest.raises(DataError) as caught:
        pool(folds, benchmark(), "accuracy", tmp_path / "pooled")
    assert "case-005: judged in 2 folds" in str(caught.value)
    assert "case-011: judged in no fold" in str(caught.value)


def test_folds_that_were_read_otherwise_are_refused(tmp_path: Path) -> None:
    scorer = Rewards(oracle, ("accuracy", "overall"))
    folds = [
        judged(scorer, CASES[:6], tmp_path / "1"),
        judged(scorer, CASES[6:], tmp_path / "2", dtype="bfloat16"),
    ]
    with pytest.raises(DataError, match=r"settings: .*float32.* in fold 1, .*bfloat16.* in fold 2"):
        pool(folds, benchmark(), "accuracy", tmp_path / "pooled")

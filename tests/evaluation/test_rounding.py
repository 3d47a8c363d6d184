"""Margins within rounding: measured on the first cases, counted for all, shown."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mock_scorers import Judge, Rewards, Writer, make_benchmark, make_cases, ranked_case
from rich.console import Console

from medrm.data.case_set import digest_of
from medrm.evaluation.benchmark import benchmark_from_cases
from medrm.evaluation.evaluator import NamedModel, evaluate, rescore
from medrm.evaluation.folder import read_setup
from medrm.evaluation.folds import Fold, pool
from medrm.evaluation.pages.report_page import write_page
from medrm.evaluation.report import Report, read_report
from medrm.evaluation.tables.terminal import print_report
from medrm.schema import Case, Response

BATCH_NOISE = 0.01
MARGINS = (0.5, -0.004, 0.0, 0.011, -0.5, 0.009)


class Batched(Rewards):
    """Adds `BATCH_NOISE` to the first reward of the second case where others are scored with it."""

    lookahead = 4
    measures_noise = True

    def respond(self, cases: Sequence[Case]) -> Iterator[Response]:
        scored = list(cases)
        for case in scored:
            first, *others = self.rule(case) or ()
            if len(scored) > 1 and case.case_id.endswith("1"):
                first += BATCH_NOISE
            yield from Rewards(lambda _, scores=(first, *others): scores).respond([case])


def margin_of(case: Case) -> tuple[float, float]:
    return 1 + MARGINS[int(case.case_id[-3:])], 1.0


def shown(report: Report, folder: Path) -> tuple[str, str]:
    """The report in the terminal, and its page, on one line each."""
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(report, console)
    page = write_page(folder).read_text(encoding="utf-8")
    return " ".join(console.export_text().split()), " ".join(page.split())


def test_margins_below_the_measured_noise_are_counted(tmp_path: Path) -> None:
    benchmark = make_benchmark(make_cases("ABABAB"))
    settings = {"dtype": "bfloat16", "deterministic": False}
    report = evaluate(Batched(margin_of), benchmark, tmp_path, "mock", settings=settings)
    measured = report["within_noise"]["accuracy"]
    assert measured["noise"] == pytest.approx(BATCH_NOISE, abs=1e-6)
    # -0.004 + 0.01, 0 and 0.009; neither 0.011 nor the wide ones
    assert (measured["margins"], measured["within"]) == (6, 3)
    for form in shown(report, tmp_path):
        assert "within the rounding of bfloat16" in form
        assert "accuracy 3 of 6 (below 0.01)" in form
    assert rescore(tmp_path)["within_noise"] == report["within_noise"]
    assert read_setup(tmp_path)[0].noise == {"accuracy": measured["noise"]}


def test_noise_is_no_part_of_what_is_asked(tmp_path: Path) -> None:
    benchmark, settings = make_benchmark(make_cases("ABABAB")), {"dtype": "bfloat16"}
    model = NamedModel("mock", "weights")
    evaluate(Batched(margin_of), benchmark, tmp_path, model, settings=settings)
    first = read_report(tmp_path)
    # The same evaluation, which goes on with what is there: nothing is replaced or refused.
    again = Batched(lambda case: pytest.fail("it is finished, and asks nothing again"))
    assert evaluate(again, benchmark, tmp_path, model, settings=settings) == first


def test_deterministic_scores_have_none(tmp_path: Path) -> None:
    settings = {"dtype": "bfloat16", "deterministic": True}
    cases = make_benchmark(make_cases("ABABAB"))
    report = evaluate(Rewards(margin_of), cases, tmp_path, "mock", settings=settings)
    assert report["within_noise"] == {"accuracy": {"noise": 0.0, "margins": 6, "within": 0}}
    assert report["rounding"] == {"deterministic": True}
    for form in shown(report, tmp_path):
        assert "Scored deterministically: no verdict depends on what else was scored" in form


def test_all_two_answers_of_a_case_count(tmp_path: Path) -> None:
    def rule(case: Case) -> tuple[float, ...]:
        return (0.0, 0.002, 0.5, 0.505)

    benchmark = make_benchmark([ranked_case(number, best=2) for number in range(2)])
    report = evaluate(Batched(rule), benchmark, tmp_path, "mock")
    # Of both cases two pairs; in the second the first answer's reward is larger by the noise.
    assert report["within_noise"]["accuracy"]["margins"] == 12
    assert report["within_noise"]["accuracy"]["within"] == 4


def test_probabilities_are_compared_with_one_half(tmp_path: Path) -> None:
    class BatchedJudge(Judge):
        lookahead = 4
        measures_noise = True

        def respond(self, cases: Sequence[Case]) -> Iterator[Response]:
            scored = list(cases)
            moved = 0.02 if len(scored) > 1 else 0.0
            yield from Judge(lambda case, order: self.rule(case, order) + moved).respond(scored)

    def rule(case: Case, order: str) -> float:
        return 0.49 if order == "forward" else 0.6

    benchmark = make_benchmark(make_cases("AB"))
    measured = evaluate(BatchedJudge(rule), benchmark, tmp_path, "mock")["within_noise"]["accuracy"]
    assert measured["noise"] == pytest.approx(0.02)
    assert (measured["margins"], measured["within"]) == (4, 2)


@pytest.mark.parametrize("scorer", [Rewards(margin_of), Writer(lambda *_: "A", ("accuracy",))])
def test_what_has_no_margin_or_no_batch_is_not_measured(scorer: Any, tmp_path: Path) -> None:
    report = evaluate(scorer, make_benchmark(make_cases("AB")), tmp_path, "mock")
    assert report["within_noise"] is None
    assert read_report(tmp_path)["within_noise"] is None


def test_the_noise_of_folds_is_that_of_the_noisiest(tmp_path: Path) -> None:
    cases = make_cases("ABABAB")
    whole = make_benchmark(cases)
    whole = replace(whole, source=replace(whole.source, digest=digest_of(cases)))
    folds = []
    for number, chosen in enumerate((cases[2:], cases[:2])):  # the second case is in the last fold
        part = benchmark_from_cases(whole.name, whole.source, chosen)
        evaluate(Batched(margin_of), part, tmp_path / str(number), "mock")
        folds.append(Fold(tmp_path / str(number)))
    assert folds[0].setup.noise == {"accuracy": 0.0}
    pooled = pool(folds, whole, "accuracy", tmp_path / "pooled")["within_noise"]["accuracy"]
    assert pooled["noise"] == pytest.approx(BATCH_NOISE, abs=1e-6)
    assert (pooled["margins"], pooled["within"]) == (6, 3)

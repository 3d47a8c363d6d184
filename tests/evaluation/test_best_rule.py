"""A gain that length alone explains is not shown as one of the model's own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from mock_scorers import Rewards, make_benchmark, make_cases, oracle

from medrm.evaluation.benchmark import baselines, rule_scores
from medrm.evaluation.compare import Comparison, compare
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.pages.report_page import write_page
from medrm.evaluation.tables.terminal import print_comparison
from medrm.schema import Case, PairLabel

LONGER_IS_RIGHT = 0.75


def voted(count: int = 200) -> list[Case]:
    """Cases of which three in four are labelled for the longer answer, clusters of two."""
    cases = []
    for number, case in enumerate(make_cases("A" * count)):
        longer_first = len(case.answers[0]) > len(case.answers[1])
        first = longer_first == (number // 2 % 4 < 4 * LONGER_IS_RIGHT)
        shares = (1.0, 0.0, 0.0) if first else (0.0, 0.0, 1.0)
        cases.append(replace(case, labels={"accuracy": PairLabel(shares, 3)}))
    return cases


def by_length(case: Case) -> tuple[float, float]:
    first, second = map(len, case.answers)
    return float(first), float(second)


def by_first(case: Case) -> tuple[float, float]:
    return 1.0, 0.0


def compared(folder: Path, after: Rewards) -> Comparison:
    benchmark = make_benchmark(voted())
    before_dir, after_dir = (folder / "evaluation" / name for name in ("before", "after"))
    evaluate(Rewards(by_first), benchmark, before_dir, "before")
    evaluate(after, benchmark, after_dir, "after")
    return compare(before_dir, after_dir, output_dir=folder)


def test_length_explains_the_gain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = compared(tmp_path, Rewards(by_length))
    assert result["verdict"] == "Improved"
    clause = "It is not shown that the model is better than the best rule without a model "
    assert clause + "(the longer answer: 75.0 %)." in result["headline"]
    rule = result["best_rule"]
    assert (rule["rule"], rule["before"], rule["after"], rule["delta"]) == ("longer", 0.75, 0.75, 0)
    assert (rule["n"], rule["clusters"]) == (200, 100)
    assert result["primary"].keys() <= rule.keys()
    assert "favours the rule" in rule["chosen"]
    print_comparison(result)
    said = " ".join(capsys.readouterr().out.split())
    assert rule["sentence"] in said
    assert rule["sentence"].endswith("It is not shown that the model is better than that rule.")
    page = write_page(tmp_path, images=False).read_text(encoding="utf-8")
    assert f"<p>{rule['sentence']}</p>" in page
    assert clause in page
    assert json.loads((tmp_path / "comparison.json").read_text())["best_rule"] == rule


def test_a_model_above_the_rule_is_said_to_be(tmp_path: Path) -> None:
    result = compared(tmp_path, Rewards(oracle))
    assert result["verdict"] == "Improved"
    assert "not shown" not in result["headline"]
    rule = result["best_rule"]
    assert rule["delta"] == 0.25
    assert 0 < rule["ci95"][0] < 0.25 < rule["ci95"][1]
    assert rule["p"] < 0.001
    assert "not shown" not in rule["sentence"]


def test_without_its_cases_a_folder_has_no_rule(tmp_path: Path) -> None:
    compared(tmp_path, Rewards(oracle))
    folders = [tmp_path / "evaluation" / name for name in ("before", "after")]
    (folders[1] / "cases.jsonl").unlink()
    result = compare(*folders, output_dir=tmp_path)
    assert result["best_rule"] is None


def test_scores_of_rules_are_those_of_the_baselines() -> None:
    cases = make_cases("AABBB-tA")
    scores, table = rule_scores(cases, "accuracy"), baselines(cases, ["accuracy"])
    for rule, by_case in scores.items():
        assert table[rule]["accuracy"] == pytest.approx(sum(by_case.values()) / 6)
        assert len(by_case) == 6

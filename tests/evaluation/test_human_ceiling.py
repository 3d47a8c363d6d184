"""Readers against each other and models beside them, and cases of which no answer is acceptable."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from mock_scorers import Judge, Rewards, make_benchmark, make_cases, ranked_case
from rich.console import Console

from medrm.cli import main
from medrm.evaluation.evaluator import evaluate, rescore
from medrm.evaluation.pages.report_page import write_page
from medrm.evaluation.report import read_report
from medrm.evaluation.tables.terminal import print_report
from medrm.schema import Case, PairLabel
from medrm.statistics.intervals import mean_interval


def read_by(case: Case, readers: tuple[int, int, int, int], **changes: object) -> Case:
    (label,) = case.labels.values()
    assert isinstance(label, PairLabel)
    return replace(case, labels={"accuracy": replace(label, readers=readers, **changes)})


def test_readers_and_a_model_are_judged_by_the_same_labels(tmp_path: Path) -> None:
    """Two cases of one cluster and one of another; the model says A, A, B.

    Case 0: three readers held against A, two agree; the model is right beside each. Case 1: one
    held against A who agrees, two against B of whom none does; the model is right once of three.
    Case 2: two held against A, both agree; the model is wrong twice.
    """
    cases = make_cases("AAAAA")
    cases = [
        read_by(cases[4], (2, 0, 0, 0), neither=0.6),  # counts for nobody
        read_by(cases[0], (3, 2, 0, 0)),
        read_by(cases[1], (1, 1, 2, 0)),
        read_by(cases[2], (2, 2, 0, 0)),
        cases[3],
    ]
    model = Rewards(lambda case: [0.0, 1.0] if case.case_id == "case-002" else [1.0, 0.0])
    report = evaluate(model, make_benchmark(cases), tmp_path, "m")
    human = report["human_ceiling"]["accuracy"]
    readers, judged = [1, 1, 0, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0]
    clusters = ["c"] * 6 + ["d"] * 2
    assert human["accuracy"] == pytest.approx(5 / 8)
    assert human["ci95"] == pytest.approx(mean_interval(readers, clusters).bounds)
    assert (human["n"], human["clusters"]) == (8, 2)
    assert human["model"]["accuracy"] == pytest.approx(4 / 8)
    assert human["model"]["ci95"] == pytest.approx(mean_interval(judged, clusters).bounds)
    assert human["difference"]["delta"] == pytest.approx(-1 / 8)
    assert rescore(tmp_path)["human_ceiling"] == report["human_ceiling"]
    printed = io.StringIO()
    print_report(report, Console(file=printed, width=120))
    assert "Human ceiling" in printed.getvalue()
    assert "62.5 (" in printed.getvalue()
    assert "62.5 (" in write_page(tmp_path).read_text()


def test_readers_who_rank_are_held_against_the_others_best(tmp_path: Path) -> None:
    """Best answers 0, 0, 1: the first two have 0 and 1 without majority, the third misses 0."""
    case = ranked_case(0, 0)
    (label,) = case.labels.values()
    assert [ranking[0] for ranking in label.rankings].count((0,)) == 2
    report = evaluate(
        Rewards(lambda case: [2.0, 1.0, 0.0, 0.0]), make_benchmark([case]), tmp_path, "m"
    )
    human = report["human_ceiling"]["accuracy"]
    assert (human["accuracy"], human["n"]) == (0.0, 1)
    assert human["model"] == {"accuracy": 1.0, "ci95": None}


def test_cases_of_which_no_answer_is_acceptable_are_outside_n(tmp_path: Path) -> None:
    cases = make_cases("ABAt")
    cases[0] = read_by(cases[0], (0, 0, 0, 0), neither=0.6)
    report = evaluate(Judge(lambda *_: 0.9), make_benchmark(cases), tmp_path, "m")
    measures = report["protocols"]["robust"]["dimensions"]["accuracy"]
    assert (measures["n"], measures["n_tie"], measures["n_neither"]) == (2, 1, 1)
    assert measures["accuracy"] == 0.5
    assert report["baselines"]["always_a"]["accuracy"] == 0.5
    rows = (tmp_path / "verdicts.jsonl").read_text().splitlines()
    assert sum('"label":"neither"' in row.replace(" ", "") for row in rows) >= 2
    printed = io.StringIO()
    print_report(report, Console(file=printed, width=120))
    assert "Neither answer acceptable, outside n: accuracy 1 (cases)." in printed.getvalue()
    assert rescore(tmp_path) == report


def test_votes_are_read_by_their_rules_from_the_file_to_the_report(tmp_path: Path) -> None:
    """Three readers, of whom the third is fast. Of c2 most accept neither answer."""
    said = {
        "c0": "slightly_a slightly_a B",
        "c1": "A B B",
        "c2": "neither neither A",
        "c3": "strongly_b B tie",
    }
    rows = [
        {
            "case_id": case_id,
            "images": [],
            "question": f"Which of {case_id}?",
            "answers": ["long answer", "short"],
            "annotator": f"r{number}",
            "votes": {"overall": value},
            "seconds": 2 if number == 2 else 30,
        }
        for case_id, values in said.items()
        for number, value in enumerate(values.split())
    ]
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def evaluated(*options: str) -> tuple[dict, dict]:
        output = tmp_path / "-".join(["out", *options])
        words = ["evaluate", "--model", "mock:oracle", "--benchmark", str(path), *options]
        assert main([*words, "--output_dir", str(output)]) == 0
        report = read_report(output)
        return (
            report["protocols"]["robust"]["dimensions"]["overall"],
            report["human_ceiling"]["overall"],
        )

    # c0: 3/4 + 3/4 of three votes are for A, which is half: no majority. c1 and c3: B.
    measures, human = evaluated()
    assert (measures["n"], measures["n_neither"], measures["accuracy"]) == (2, 1, 1.0)
    # c0: each of the slight votes against B (5/8), B against A. c1: A against B. c2 counts
    # for nobody. c3: the tie against B.
    assert (human["n"], human["accuracy"]) == (5, 0.0)
    measures, human = evaluated("--vote_strength", "ignore")
    assert (measures["n"], measures["accuracy"]) == (3, 1.0)
    # Right are both of c0 and of c3, wrong both of c1.
    measures, human = evaluated("--min_vote_seconds", "10")
    assert (measures["n"], measures["n_neither"]) == (2, 1)
    assert (human["n"], human["accuracy"]) == (6, pytest.approx(4 / 6))

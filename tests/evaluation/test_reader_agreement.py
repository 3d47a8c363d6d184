"""`medrm data agreement` against coefficients that were computed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medrm.cli import main
from medrm.data.case_set import read_set
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.measures.human_ceiling import human_ceiling

Write = Callable[..., Path]


@pytest.fixture
def votes(tmp_path: Path) -> Write:
    """Writes the votes of readers r1, r2, ... on texts, one word for each case."""

    def write(*cases: str, answers: int = 2, **columns: Any) -> Path:
        rows = [
            {
                "case_id": f"c{number}",
                "images": [],
                "question": f"Which of {number}?",
                "answers": list("xyz"[:answers]),
                "annotator": f"r{reader}",
                "votes": {"overall": json.loads(said) if answers > 2 else said},
            }
            for number, case in enumerate(cases)
            for reader, said in enumerate(case.split(), start=1)
            if said != "-"
        ]
        path = tmp_path / "votes.jsonl"
        path.write_text("".join(json.dumps(row | columns) + "\n" for row in rows))
        return path

    return write


def measured(path: Path, *options: str) -> dict[str, Any]:
    output = path.parent / "agreement.json"
    assert main(["data", "agreement", str(path), "--output", str(output), *options]) == 0
    found: dict[str, Any] = json.loads(output.read_text())["dimensions"]["overall"]
    return found


def test_three_annotators_as_pandalm_has_them_by_hand(votes: Write) -> None:
    """Agreeing pairs of votes by case: 1, 1/3, 1, 0, 1/3, 1/3; p_o = 3/6.

    Votes: A 7, tie 4, B 7 of 18. Fleiss: p_e = (49 + 16 + 49) / 324 = 19/54, (27 - 19) / (54 - 19).
    AC1: p_e = (1 - 19/54) / 2 = 35/108, (54 - 35) / (108 - 35). Alpha: of 18 votes 9 coincide,
    1 - 17 * (18 - 9) / (324 - 114) = 19/70. AC2, A - tie - B with weights 1, 1/2, 0: by case 1,
    1/3, 1, 1/3, 2/3, 2/3, p_o = 2/3; p_e = 5 / (3 * 2) * 35/54 = 175/324, (216 - 175) / (324 -
    175).
    Cohen, r1 and r2: p_o = 5/6, p_e = (3 * 2 + 1 * 2 + 2 * 2) / 36 = 1/3, 3/4. r1 and r3: p_o =
    2/6, p_e = (3 * 2 + 1 * 1 + 2 * 3) / 36 = 13/36, -1/23.
    Against the others: three of three in c0 and in c2, and r3 misses A in c1 and B in c5: 6 of 8.
    """
    path = votes("A A A", "A A B", "B B B", "A tie B", "tie tie A", "B B tie")
    found = measured(path)
    expected = {"raw": 1 / 2, "fleiss": 8 / 35, "ac1": 19 / 73, "alpha": 19 / 70, "ac2": 41 / 149}
    assert {name: found[name]["value"] for name in expected} == pytest.approx(expected)
    kappas = {tuple(pair["readers"]): pair["kappa"]["value"] for pair in found["pairs"]}
    assert kappas["r1", "r2"] == pytest.approx(3 / 4)
    assert kappas["r1", "r3"] == pytest.approx(-1 / 23)
    assert (found["units"], found["clusters"], found["readers"], found["votes"]) == (6, 6, 3, 18)
    assert (found["human_ceiling"]["value"], found["human_ceiling"]["n"]) == (6 / 8, 8)
    by_reader = {of["reader"]: of for of in found["by_reader"]}
    assert by_reader["r3"]["accuracy"]["value"] == 2 / 4
    # r1 agrees with both others in c0 and c2, with one of two in c1, c4 and c5, with none in c3.
    assert by_reader["r1"]["raw"]["value"] == pytest.approx(3.5 / 6)
    read = read_set(str(path))
    ceiling = human_ceiling(Benchmark("b", read).cases, {}, ["overall"])["overall"]
    assert ceiling is not None
    assert (ceiling["accuracy"], ceiling["n"]) == (6 / 8, 8)
    assert ceiling["ci95"] == pytest.approx(found["human_ceiling"]["ci95"])
    assert found["alpha"]["value"] == pytest.approx(read.agreement["overall"].alpha)


def test_grades_stand_on_one_scale_and_neither_on_none(votes: Write) -> None:
    """Five equal steps with weights 1, 3/4, 1/2, 1/4, 0; c2 has one vote on the scale.

    p_o = (3/4 + 0 + 1 + 1) / 4 = 11/16. Shares 1/4, 1/8, 1/4, 0, 3/8: 1 - sum of squares 23/32.
    Weights in all 5 + 2 (4 * 3/4 + 3 * 1/2 + 2 * 1/4) = 15; p_e = 15 / 20 * 23/32 = 69/128;
    AC2 = (88 - 69) / (128 - 69). Which answer is better: the readers agree in three of five.
    """
    path = votes(
        "strongly_a slightly_a",
        "strongly_a strongly_b",
        "strongly_b neither",
        "strongly_b strongly_b",
        "tie tie",
    )
    found = measured(path)
    assert found["ac2"]["value"] == pytest.approx(19 / 59)
    assert found["raw"]["value"] == pytest.approx(3 / 5)
    # Against the other in c0, c1 and c3; neither against B is wrong, and B against neither is out.
    assert (found["human_ceiling"]["n"], found["human_ceiling"]["value"]) == (
        7,
        pytest.approx(4 / 7),
    )


def test_nobody_is_held_against_others_where_most_accept_neither_answer(votes: Write) -> None:
    """Of c0 the other two readers say A and `neither`, but the case counts for no model either."""
    path = votes("neither neither A", "A A B", "B B B")
    found = measured(path)
    assert (found["human_ceiling"]["n"], found["human_ceiling"]["value"]) == (4, 3 / 4)
    ceiling = human_ceiling(Benchmark("b", read_set(str(path))).cases, {}, ["overall"])["overall"]
    assert ceiling is not None
    assert (ceiling["n"], ceiling["accuracy"]) == (4, 3 / 4)


def test_each_two_of_ranked_answers_are_a_unit(votes: Write) -> None:
    found = measured(votes("[0,1,2] [0,2,1]", answers=3))
    assert (found["units"], found["clusters"]) == (3, 1)
    assert found["raw"] == {"value": pytest.approx(2 / 3), "ci95": None}
    assert found["human_ceiling"] == {"value": 1.0, "ci95": None, "n": 2}


def test_readers_who_always_agree_are_not_surely_right(votes: Write) -> None:
    """Up to z^2 / (4 + z^2) of the clusters may be unlike the four; a coefficient has no spread."""
    found = measured(votes("A A", "B B", "A A", "B B"))
    lowest = 1 - 1.959964**2 / (4 + 1.959964**2)
    means = [found["human_ceiling"], *(of["raw"] for of in found["by_reader"])]
    assert [mean["ci95"] for mean in means] == [pytest.approx([lowest, 1.0])] * 3
    assert found["alpha"] == found["pairs"][0]["kappa"] == {"value": 1.0, "ci95": None}


def test_the_command_says_what_it_cannot_do(votes: Write, capsys: Any) -> None:
    path = votes("A B", "tie A", "B B", seconds=4)
    alone = json.loads(path.read_text().splitlines()[0]) | {"case_id": "c9", "votes": {"mine": "A"}}
    named = path.read_text().replace('"r2"', f'"Dr. {"long" * 30}"')
    path.write_text(named + json.dumps(alone) + "\n")
    assert main(["data", "agreement", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "No case was judged by two readers on mine." in printed
    assert "agreement of 2 readers" in printed
    assert "r1 / Dr. longlonglonglongl… " in printed  # and the numbers beside it
    assert "Cohen" in printed
    assert main(["data", "agreement", str(path), "--min_vote_seconds", "5"]) == 2
    assert main(["data", "agreement", str(votes("A -", "- B"))]) == 2
    assert "no agreement to measure" in capsys.readouterr().err


def test_the_audit_shows_time_confidence_and_neither(votes: Write, capsys: Any) -> None:
    path = votes(*["A B"] * 36, *["neither neither"] * 14, confidence="high", seconds=20)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:14:2]:
        row |= {"seconds": 2.5, "confidence": 3, "reason": "Clear."}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = path.parent / "audit.json"
    assert main(["data", "audit", str(path), "--output", str(output)]) == 0
    audit = json.loads(output.read_text())
    assert audit["findings"]["fast_votes"] == ["'r1': 14% of 50 votes took less than 10 s"]
    (neither,) = audit["findings"]["neither"]
    assert neither == "overall: 14 of 50 labels that no answer is acceptable"
    assert (audit["labels"]["overall"]["neither"], audit["labels"]["overall"]["n"]) == (14, 50)
    overall = audit["votes"]["dimensions"]["overall"]
    assert overall["values"] == {"A": 36, "B": 36, "neither": 28}
    assert (overall["neither"], overall["fast"], overall["timed"]) == (0.28, 0.07, 100)
    assert overall["confidence"] == {"high": 93, "3": 7}
    assert overall["reasons"] == 7
    assert overall["seconds"] == [20, 20, 20]
    assert audit["votes"]["readers"]["r2"]["fast"] == 0
    printed = capsys.readouterr().out
    assert "20 (20, 20)" in printed
    assert "high: 43" in printed
    assert main(["data", "audit", str(path), "--fail_on", "fast_votes"]) == 1

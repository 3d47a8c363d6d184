"""The traps of the released scorer: each is reproduced in `official`, and flagged.

Those of its data (T7 to T11, T20) are met where data are read and audited; T16, T18 and T21 are of
its own program and have nothing to be reproduced.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from mock_scorers import Judge, Rewards, Writer, make_benchmark, make_cases, oracle

from medrm.evaluation.benchmark import best_rule
from medrm.evaluation.compare import compare
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.report import Report
from medrm.schema import DIMENSIONS


class Trap(NamedTuple):
    """A reply that every case gets, in both orders, and what becomes of it.

    `official` and `strict` are the letters read for the six dimensions, - for none.
    """

    reply: str
    official: str
    strict: str
    suspect: bool = False
    voided: bool = False


def six(value: str, **other: str) -> str:
    return json.dumps({**dict.fromkeys(DIMENSIONS, value), **other})


DRAFT = "First I thought {accuracy: A, relevance: A, comprehensiveness: A, creativity: A, "
DRAFT += "responsiveness: A, overall: A}, but no: "

REPLIES = {
    "T1 Assistant B is A": Trap(six("Assistant B"), "AAAAAA", "------", suspect=True),
    "T1 Answer B is A": Trap(six("Answer B"), "AAAAAA", "------", suspect=True),
    "T2 an article is A": Trap("I cannot give a verdict.", "AAAAAA", "------", suspect=True),
    "T2 a type is A": Trap("This is Type A dissection.", "AAAAAA", "------", suspect=True),
    "T3 one letter is six": Trap('{"overall": "B"}', "BBBBBB", "-----B", suspect=True),
    "T4 the draft wins": Trap(DRAFT + six("B"), "AAAAAA", "BBBBBB", suspect=True),
    "T5 one tie voids six": Trap(six("B", creativity="tie"), "------", "BBBtBB", voided=True),
    "T6 unread is wrong": Trap("I'm sorry, I can't help with that.", "------", "------"),
}


def judged(folder: Path, scorer: object, letters: str = "AAAB") -> Report:
    cases = [
        replace(case, labels=dict.fromkeys(DIMENSIONS, case.labels["accuracy"]))
        for case in make_cases(letters)
    ]
    benchmark = make_benchmark(cases, DIMENSIONS)
    return evaluate(scorer, benchmark, folder, "org/model", settings={"prompt": "json 1"})


@pytest.mark.parametrize("name", REPLIES)
def test_a_reply_is_misread_as_released_and_flagged(tmp_path: Path, name: str) -> None:
    """Labels A A A B: the letter A is right in 3 of 4 cases, B in 1, nothing in 0 of 4."""
    trap = REPLIES[name]
    report = judged(tmp_path, Writer(lambda *_: trap.reply, DIMENSIONS))
    shares = {"A": 0.75, "B": 0.25, "-": 0.0, "t": 0.0}
    official = report["protocols"]["official"]["micro"]
    assert list(official.values()) == [shares[letter] for letter in trap.official]
    # In both orders one slot is named, so that a letter that is read is right in one of them.
    robust = report["protocols"]["robust"]["dimensions"]
    for dimension, letter in zip(DIMENSIONS, trap.strict, strict=True):
        assert robust[dimension]["accuracy"] == (0.5 if letter in "AB" else 0.0)
        assert robust[dimension]["coverage"] == float(letter != "-")
        assert robust[dimension]["n"] == 4
    parsing = report["parsing"]["official"]
    assert parsing["suspect"] == (4 if trap.suspect else 0)
    assert parsing["voided_but_readable"] == (4 if trap.voided else 0)


def test_t13_an_over_long_prompt_is_counted_and_wrong(tmp_path: Path) -> None:
    judge = Judge(lambda case, order: None)
    report = evaluate(judge, make_benchmark(make_cases("AB")), tmp_path, "m")
    assert report["parsing"]["states"] == {"too_long": 4}
    assert report["unread"] == {"too_long": 2}
    assert report["protocols"]["robust"]["dimensions"]["accuracy"]["accuracy"] == 0.0


@pytest.mark.parametrize(
    "setting",
    [
        *("temperature", "seed"),  # T12: reruns differ
        *("max_length", "max_new_tokens", "min_pixels", "max_pixels"),  # T13, T14, T15
        *("prompt_digest", "chat_template_digest"),  # T19: the system prompt of one family
    ],
)
def test_t12_to_t19_what_differs_between_entries_blocks_the_headline(
    tmp_path: Path, setting: str
) -> None:
    benchmark = make_benchmark(make_cases("AB" * 10))
    for name, value in (("before", 1), ("after", 2)):
        evaluate(Rewards(oracle), benchmark, tmp_path / name, "m", settings={setting: value})
    result = compare(tmp_path / "before", tmp_path / "after")
    assert list(result["differences"]) == [setting]
    assert not result["comparable"]


def test_t17_a_name_with_a_slash_is_written(tmp_path: Path) -> None:
    judged(tmp_path, Writer(lambda *_: six("B"), DIMENSIONS))
    assert "lung,org/model," in (tmp_path / "official.csv").read_text("utf-8")


def test_t22_labels_that_favour_a_slot_are_shown(tmp_path: Path) -> None:
    """The first slot scores as many official points as there are labels A, and half robust ones."""
    report = judged(tmp_path, Writer(lambda *_: six("A"), DIMENSIONS))
    assert report["protocols"]["official"]["micro"]["overall"] == 0.75
    assert report["protocols"]["robust"]["dimensions"]["overall"]["accuracy"] == 0.5
    assert report["baselines"]["always_a"]["overall"] == 0.75
    assert report["baselines"]["always_b"]["overall"] == 0.25
    assert best_rule(report["baselines"], "overall") == ("always_a", 0.75)

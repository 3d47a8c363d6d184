"""A difference split into judgement and format, and what must be declared between two judges."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mock_scorers import Judge, Rewards, Writer, make_benchmark, make_cases, oracle

from medrm.evaluation.compare import compare
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.tables.comparison_tables import gain_sentence
from medrm.schema import Case

SETTINGS = {
    "engine": "transformers",
    "prompt": "json 1",
    "prompt_digest": "a" * 64,
    "votes": 1,
    "temperature": 0.0,
    "max_new_tokens": 512,
    "max_pixels": None,
}


def writes(right: range, unread: range = range(0)) -> Writer:
    """A judge of accuracy that is right in these cases, unread in those, wrong elsewhere."""

    def rule(case: Case, order: str, *_: object) -> str:
        number = int(case.case_id[-3:])
        first = (oracle(case)[0] == 1.0) == (number in right)
        shown = "A" if first == (order == "forward") else "B"
        return "?" if number in unread else json.dumps({"accuracy": shown})

    return Writer(rule, ("accuracy",))


def run(folder: Path, scorer: object, settings: Mapping[str, Any] = SETTINGS) -> Path:
    evaluate(scorer, make_benchmark(make_cases("AB" * 20)), folder, "m", settings=settings)
    return folder


def test_more_that_can_be_read_is_format(tmp_path: Path) -> None:
    """Before 20 of 40 read, 10 right; after all read, 30 right: a 0.5 -> 0.75, c 0.5 -> 1."""
    before = run(tmp_path / "before", writes(range(10), unread=range(20, 40)))
    after = run(tmp_path / "after", writes(range(30)))
    result = compare(before, after)
    assert result["primary"]["delta"] == pytest.approx(0.5)
    assert result["gain"]["accuracy"]["judgement"] == pytest.approx(0.75 * 0.25)
    assert result["gain"]["accuracy"]["format"] == pytest.approx(0.625 * 0.5)
    assert sum(result["gain"]["accuracy"].values()) == pytest.approx(0.5)
    assert result["guardrails"]["coverage"]["state"] == "held"


@pytest.mark.parametrize("turn", [1, -1])
def test_where_one_side_reads_nothing_all_is_format(tmp_path: Path, turn: int) -> None:
    mute = run(tmp_path / "mute", writes(range(0), unread=range(40)))
    good = run(tmp_path / "good", writes(range(30)))
    result = compare(*(mute, good)[::turn])
    assert result["gain"] == {"accuracy": {"judgement": 0.0, "format": pytest.approx(turn * 0.75)}}
    side = "before" if turn == 1 else "after"
    assert gain_sentence(result) == (
        f"Nothing could be read {side} on accuracy, so the difference says nothing about judging "
        "better."
    )
    silent = compare(mute, mute)
    assert str(gain_sentence(silent)).startswith("Nothing could be read before and after on")
    assert silent["gain"] == {"accuracy": {"judgement": 0.0, "format": 0.0}}


def test_what_a_mute_base_could_judge_is_pointed_to(tmp_path: Path) -> None:
    mute = run(tmp_path / "mute", writes(range(0), unread=range(40)))
    good = run(tmp_path / "good", writes(range(30)))
    given = run(tmp_path / "given", writes(range(22)))
    sentence = gain_sentence(compare(mute, good, controls={"base_skeleton": given}))
    assert sentence is not None
    assert sentence.endswith("the base is right in 55.0 % (base, forced skeleton).")
    read = gain_sentence(compare(given, good, controls={"base_skeleton": given}))
    assert read is not None
    assert "+20.0 points come from judging better" in read


def test_only_judges_have_a_split(tmp_path: Path) -> None:
    judge = run(tmp_path / "before", Judge(lambda case, order: 0.7), {})
    reward = run(tmp_path / "after", Rewards(oracle), {})
    assert compare(judge, reward)["gain"] is None
    assert gain_sentence(compare(judge, reward)) is None
    assert compare(judge, judge)["gain"] == {"accuracy": {"judgement": 0.0, "format": 0.0}}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("engine", "vllm"),
        ("prompt_digest", "b" * 64),
        ("votes", 3),
        ("temperature", 0.7),
        ("max_new_tokens", 64),
    ],
)
def test_how_a_judge_is_asked_must_not_differ(tmp_path: Path, name: str, value: object) -> None:
    before = run(tmp_path / "before", writes(range(10)))
    after = run(tmp_path / "after", writes(range(40)), SETTINGS | {name: value})
    result = compare(before, after)
    assert list(result["differences"]) == [name]
    assert (result["comparable"], result["verdict"]) == (False, "Not shown")
    assert compare(before, after, allowed_differences=[name])["verdict"] == "Improved"


def test_a_readout_brings_settings_of_its_own(tmp_path: Path) -> None:
    """Skeleton against generate: the readout differs, but a prompt that both name must not."""
    given = Judge(lambda case, order: 0.7)
    given.readout = "skeleton"
    shared = {name: SETTINGS[name] for name in ("prompt", "prompt_digest", "max_pixels")}
    before = run(tmp_path / "before", given, shared)
    after = run(tmp_path / "after", writes(range(40)))
    assert list(compare(before, after)["differences"]) == ["readout"]
    other = run(tmp_path / "other", given, shared | {"prompt_digest": "b" * 64})
    assert list(compare(other, after)["differences"]) == ["readout", "prompt_digest"]

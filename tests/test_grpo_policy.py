"""The recipe `grpo_policy`: a policy learns from a reward model, the truth is told beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medrm.data.phantom import phantom_set

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "grpo_policy"
GOLDEN = ROOT / "tests" / "golden" / "reward_adapter"


@pytest.fixture(scope="module")
def recipe() -> Iterator[SimpleNamespace]:
    """The recipe's modules, imported as they run: from their own folder."""
    sys.path.insert(0, str(RECIPE))
    try:
        import phantom_questions
        import train_policy

        yield SimpleNamespace(main=train_policy.main, questions=phantom_questions)
    finally:
        sys.path.remove(str(RECIPE))


def test_the_truth_is_that_of_the_phantom_set(recipe: SimpleNamespace) -> None:
    seen = set()
    for index, question in enumerate(recipe.questions.draw_questions(3, 400)):
        readings, _ = phantom_set.draw_picture(3, phantom_set.owner(index))
        case = phantom_set.draw_case(3, index, readings)
        first, second = (
            recipe.questions.said(answer, question.facts) for answer in question.answers
        )
        preferred = "A" if first.is_true else "B"
        preferred = "tie" if first.is_true == second.is_true else preferred
        assert preferred == case.truth["accuracy"]
        seen.add(preferred)
        true = phantom_set.modality_sentence(question.facts)
        for garbled in ("", "Yes", true[:-1], f"{true} lesion.", "The scanner was new."):
            assert not recipe.questions.said(garbled, question.facts).is_true
        assert recipe.questions.said(f"- {true}\n- The scanner was new.", question.facts) == (
            True,
            2,
        )
    assert seen == {"A", "B", "tie"}


def run(recipe: SimpleNamespace, output: Path, *options: str) -> int:
    words = ["--reward_model", str(GOLDEN), "--output_dir", str(output), "--start_steps", "1"]
    status: int = recipe.main([*words, "--steps", "1", "--held_out", "6", *options])
    return status


def read(folder: Path) -> Any:
    return json.loads((folder / "policy.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_short_run_is_complete(
    recipe: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One step, with two dimensions as two functions that are normalised apart."""
    output = tmp_path / "run"
    assert run(recipe, output, "--dimensions", "accuracy,overall") == 0
    result = read(output)
    assert result["dimensions"] == ["accuracy", "overall"]
    assert [point["step"] for point in result["curve"]] == [0, 1]
    assert result["reward"]["before"] == result["curve"][0]["reward"]
    lines = (output / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "figure-curves" in page
    for text in (page, json.dumps(result)):
        assert str(tmp_path) not in text
        assert str(GOLDEN) not in text
    again = tmp_path / "again"
    assert run(recipe, again, "--start", str(output / "start_policy")) == 0
    assert read(again)["curve"][0]["accuracy"] == result["curve"][0]["accuracy"]
    capsys.readouterr()
    for options, message in (
        ((), "is not empty"),
        (("--output_dir", str(tmp_path / "new"), "--dimensions", "acuracy"), "'accuracy'"),
        (("--output_dir", str(tmp_path / "new"), "--start", str(tmp_path)), "holds no model"),
        (("--output_dir", str(tmp_path / "new"), "--held_out", "1"), "about one image"),
    ):
        assert run(recipe, output, *options) == 2
        assert message in capsys.readouterr().err


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_the_reward_rises(tmp_path: Path) -> None:
    """The quickstart's reward model teaches a weakened policy; the truth is told in any case."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    def launched(*words: str) -> None:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]

    controls = ("--controls", "none", "--output_dir", str(tmp_path / "quickstart"))
    launched("recipes/train_rm.py", *controls)
    model = ("--reward_model", str(tmp_path / "quickstart" / "adapter"))
    launched("recipes/grpo_policy/train_policy.py", *model, "--output_dir", str(tmp_path / "run"))
    result = read(tmp_path / "run")
    assert result["accuracy"]["before"] <= 0.7
    assert result["reward"]["ci95"][0] > 0  # by image, on questions nobody has learned from
    accuracy = result["accuracy"]
    assert accuracy["delta"] == pytest.approx(accuracy["after"] - accuracy["before"])
    end = result["curve"][-1]
    assert end["gap"] == pytest.approx(end["promised"] - end["accuracy"])

"""In whatever company a case is computed, its numbers stay: batches and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from company import SEVERAL_BATCHES, evaluate_all, scorers

READOUTS = ("likelihood", "verdict", "skeleton", "generate", "reward")
ROUNDING = 1e-5
NUMBERS = ("probability_a", "score_a", "score_b")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, 8 rows at once."""
    folder = tmp_path_factory.mktemp("reference")
    evaluate_all(folder, 8)
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def margin(row: dict[str, Any]) -> float:
    """How far a letter is from the other one."""
    if row["score_a"] is not None:
        return abs(row["score_a"] - row["score_b"])
    return 1.0 if row["probability_a"] is None else abs(2 * row["probability_a"] - 1)


def assert_alike(folder: Path, reference: Path) -> None:
    for name in READOUTS:
        found, wanted = (lines(path / name / "verdicts.jsonl") for path in (folder, reference))
        assert len(found) == len(wanted)
        for own, row in zip(found, wanted, strict=True):
            for key in NUMBERS:
                assert own.pop(key) == pytest.approx(row[key], abs=ROUNDING), (name, key)
            if margin(row) > 2 * ROUNDING:
                assert own == {key: row[key] for key in own}
    texts = [
        [line["text"] for line in lines(path / "generate" / "responses.jsonl")]
        for path in (folder, reference)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("rows", [1, 3])
def test_batches_change_nothing(rows: int, reference: Path, tmp_path: Path) -> None:
    evaluate_all(tmp_path, rows)
    assert_alike(tmp_path, reference)


def test_the_cases_are_told_apart(reference: Path) -> None:
    """What is compared above are numbers of a model, and all kinds of readings."""
    rows = lines(reference / "reward" / "verdicts.jsonl")
    assert {row["reason"] for row in rows} == {None, "bad_image"}
    scores = {round(row["score_a"], 4) for row in rows if row["score_a"] is not None}
    assert len(scores) > 10
    assert {row["outcome"] for row in rows} >= {"A", "B", "unread"}


def test_settings_say_what_could_change_a_number() -> None:
    """What all readouts have is the same in all; what is one readout's own is absent elsewhere."""
    found = {name: dict(scorer.settings) for name, scorer in scorers(1).items()}
    shared = set.intersection(*(set(settings) for settings in found.values()))
    assert shared == {
        *("dtype", "quantisation", "attn_implementation", "chat_template_digest"),
        *("min_pixels", "max_pixels", "image_processing", "rendered_prompt_digest"),
        *("shared_prefix", "deterministic"),
        *("torch", "transformers"),
    }
    for name in shared:
        assert len({json.dumps(settings[name]) for settings in found.values()}) == 1, name
    assert found["likelihood"]["dtype"] == "float32"
    assert found["likelihood"].keys() == {*shared, "max_length"}
    assert {name: settings.keys() - shared for name, settings in found.items()} == {
        "likelihood": {"max_length"},
        "verdict": {"verdict_prompt_digest"},
        "skeleton": {"prompt", "prompt_digest"},
        "reward": {"max_length", "reward_template"},
        "generate": {
            *("engine", "max_length", "prompt", "prompt_digest", "votes", "temperature"),
            *("max_new_tokens", "seed", "parser"),
        },
    }


@pytest.mark.distributed
def test_processes_change_no_byte(tmp_path: Path) -> None:
    """Of three batches, which 1, 2 and 4 processes share."""
    evaluate_all(tmp_path / "1", **SEVERAL_BATCHES)
    here = Path(__file__).parent
    for processes in ("2", "4"):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc_per_node", processes),
                *(str(here / "company.py"), str(tmp_path / processes)),
            ],
            env={
                **os.environ,
                "ACCELERATE_USE_CPU": "true",
                "PYTHONPATH": os.pathsep.join(map(str, (here, *here.parents[:2]))),
            },
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        for name in READOUTS:
            alone, shared = tmp_path / "1" / name, tmp_path / processes / name
            files = {path.name for path in alone.iterdir()}
            assert files == {path.name for path in shared.iterdir()}
            for file in sorted(files):
                wanted, written = (path.read_bytes() for path in (alone / file, shared / file))
                if file == "evaluation.json":
                    recorded = f'"processes": {processes}'.encode()
                    assert recorded in written
                    written = written.replace(recorded, b'"processes": 1')
                assert written == wanted, (name, file)

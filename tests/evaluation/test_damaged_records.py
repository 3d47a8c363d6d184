"""Lines that no scorer writes are damage: asked again by an evaluation, refused by `rescore`."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mock_scorers import DIMENSIONS, Judge, Rewards, Writer, make_benchmark, make_cases, oracle

import medrm
from medrm.cli import main
from medrm.errors import ConfigError, DataError
from medrm.evaluation.evaluator import NamedModel, evaluate, rescore

MODEL = NamedModel("a model", "weights")
SCORERS: dict[str, Any] = {
    "rewards": Rewards(oracle, DIMENSIONS),
    "text": Writer(lambda *_: '{"accuracy": "A", "overall": "B"}', DIMENSIONS),
    "probabilities": Judge(lambda case, order: 0.8),
}

DAMAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "no rewards": ("rewards", {"rewards": None}),
    "no text": ("text", {"text": None}),
    "no probabilities": ("probabilities", {"probabilities": None}),
    "a probability too few": ("probabilities", {"probabilities": {"overall": [0.5, 0.5, 1.0]}}),
    "rewards of one dimension": ("rewards", {"dimension": "accuracy"}),
    "rewards of a second vote": ("rewards", {"vote": 9}),
    "rewards of a pair": ("rewards", {"pair": [0, 1]}),
    "rewards beside a text": ("text", {"rewards": {"accuracy": [0.1, 0.2]}}),
    "another readout": ("rewards", {"readout": "verdict_averaged"}),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_damage_is_asked_again_and_never_scored(tmp_path: Path, name: str) -> None:
    kind, changes = DAMAGE[name]
    scorer, benchmark = SCORERS[kind], make_benchmark(make_cases("ABAB", "ABBA"), DIMENSIONS)
    evaluate(scorer, benchmark, tmp_path, MODEL)
    files = ("responses.jsonl", "verdicts.jsonl", "report.json")
    before = {file: (tmp_path / file).read_bytes() for file in files}
    records = [json.loads(line) for line in before["responses.jsonl"].splitlines()]
    records[1] |= changes
    damaged = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "responses.jsonl").write_text(damaged, encoding="utf-8")
    with pytest.raises(DataError, match="Start the same"):
        rescore(tmp_path)
    evaluate(scorer, benchmark, tmp_path, MODEL)
    assert {file: (tmp_path / file).read_bytes() for file in files} == before


def test_a_refusal_removes_nothing(tmp_path: Path) -> None:
    benchmark = make_benchmark(make_cases("AB"))
    evaluate(SCORERS["rewards"], benchmark, tmp_path, MODEL)
    theirs = ("scores.0123456789abcdef.0.jsonl", "mine.partial", "report.json.1-2.partial")
    for name in theirs:
        (tmp_path / name).write_text("theirs", encoding="utf-8")
    with pytest.raises(ConfigError, match="another evaluation"):
        evaluate(SCORERS["rewards"], benchmark, tmp_path, NamedModel("a model", "other weights"))
    assert all((tmp_path / name).is_file() for name in theirs)
    address = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))["address"]
    old = tmp_path / f"scores.{address[:16]}.0.jsonl"
    old.write_text("of version 0.1", encoding="utf-8")
    evaluate(SCORERS["rewards"], benchmark, tmp_path, MODEL)
    assert [name for name in theirs if (tmp_path / name).is_file()] == list(theirs[:2])
    assert not old.exists()  # the same evaluation's own


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_verdicts_that_were_cut_within_a_case_cannot_be_compared(
    tmp_path: Path, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark = make_benchmark(make_cases("ABAB", "ABBA"), DIMENSIONS)
    for name in ("before", "after"):
        evaluate(SCORERS["text"], benchmark, tmp_path / name, MODEL)
    path = tmp_path / "after" / "verdicts.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-lines]))
    assert main(["compare", str(tmp_path / "before"), str(tmp_path / "after")]) == 2
    message = capsys.readouterr().err
    assert "lacks verdicts on case 'case-003'" in message
    assert "Start the same `medrm evaluate` again" in message


def test_half_written_copies_of_images_do_not_stay(tmp_path: Path) -> None:
    partial = tmp_path / "images" / f"{'0' * 64}.webp.1-2.partial"
    partial.parent.mkdir()
    partial.write_bytes(b"half")
    evaluate(SCORERS["rewards"], make_benchmark(make_cases("AB")), tmp_path, MODEL)
    assert not partial.exists()


def test_models_are_loaded_from_threads(root: Path) -> None:
    folder = root / "tests" / "golden" / "reward_adapter"
    load: Callable[[Path], Any] = medrm.load
    with ThreadPoolExecutor(3) as pool:
        models = list(pool.map(load, [folder] * 3))
    rewards = [model.score([], "Is it?", ["Yes.", "No."]).tolist() for model in models]
    assert rewards[0] == rewards[1] == rewards[2]

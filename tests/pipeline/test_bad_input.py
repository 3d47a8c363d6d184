"""Wrong input: a clear message, exit status 2, no traceback, and no model is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline.entry import Recipe


def line(**changes: Any) -> dict[str, Any]:
    return {
        "case_id": "1", "images": [], "question": "q", "answer_a": "a", "answer_b": "b",
        "annotator": "x", "votes": {"overall": "A"}, **changes,
    }  # fmt: skip


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def missing_column(folder: Path) -> dict[str, object]:
    row = line()
    del row["question"]
    return {"train_data": write(folder / "votes.jsonl", row)}


def outside(folder: Path) -> dict[str, object]:
    (folder / "data").mkdir()
    return {"train_data": write(folder / "data" / "votes.jsonl", line(images=["../../secret.png"]))}


def empty(folder: Path) -> dict[str, object]:
    return {"train_data": write(folder / "votes.jsonl")}


def unlabelled_dimension(folder: Path) -> dict[str, object]:
    rows = [line(case_id=str(number), question=f"q{number}") for number in range(30)]
    return {"train_data": write(folder / "votes.jsonl", *rows), "dimensions": "creativity"}


def strange_label(folder: Path) -> dict[str, object]:
    return {"train_data": write(folder / "votes.jsonl", line(votes={"overall": "C"}))}


def hub_offline(folder: Path) -> dict[str, object]:
    return {"train_data": "nobody/nothing"}


def hub_model_offline(folder: Path) -> dict[str, object]:
    rows = [line(case_id=str(number), question=f"q{number}") for number in range(30)]
    return {
        "train_data": write(folder / "votes.jsonl", *rows),
        "model_name_or_path": "nobody/nothing",
    }


def all_corrupt(folder: Path) -> dict[str, object]:
    (folder / "bad.png").write_bytes(b"\x89PNG no image")
    (folder / "worse.png").write_bytes(b"nothing")
    rows = [
        line(case_id=str(n), images=["bad.png" if n % 2 else "worse.png"], patient=str(n))
        for n in range(30)
    ]
    for number, row in enumerate(rows):
        name = f"{number}.png"
        (folder / name).write_bytes(b"\x89PNG broken" + bytes([number]))
        row["images"] = [name]
    return {"train_data": write(folder / "votes.jsonl", *rows)}


def unknown_key(folder: Path) -> dict[str, object]:
    path = folder / "recipe.yaml"
    path.write_text("train_data: phantom\nlearning_rte: 1.0\n", encoding="utf-8")
    return {"config": path}


def no_prompt_file(folder: Path) -> dict[str, object]:
    rows = [line(case_id=str(number), question=f"q{number}") for number in range(30)]
    train = write(folder / "votes.jsonl", *rows)
    return {"objective": "judge_sft", "train_data": train, "prompt_file": folder / "none.txt"}


def no_judge_to_go_on_from(folder: Path) -> dict[str, object]:
    rows = [line(case_id=str(number), question=f"q{number}") for number in range(30)]
    train = write(folder / "votes.jsonl", *rows)
    return {"objective": "judge_dpo", "train_data": train, "init_adapter": folder / "none"}


def options_of_judges(folder: Path) -> dict[str, object]:
    return {"train_data": "phantom", "judge_prompt": "json_short", "init_adapter": folder}


CASES: list[tuple[Callable[[Path], dict[str, object]], list[str]]] = [
    (missing_column, ["question", "votes.jsonl"]),
    (outside, ["secret.png", "outside"]),
    (empty, ["votes.jsonl"]),
    (unlabelled_dimension, ["creativity", "overall"]),
    (strange_label, ["'C'", "overall", "tie"]),
    (hub_offline, ["nobody/nothing"]),
    (hub_model_offline, ["nobody/nothing", "phantom-base"]),
    (all_corrupt, ["max_excluded_share", "of"]),
    (unknown_key, ["learning_rte", "learning_rate"]),
    (no_prompt_file, ["none.txt"]),
    (no_judge_to_go_on_from, ["none", "There is no folder"]),
    (options_of_judges, ["judge_prompt is 'json_short'", "init_adapter is"]),
]


@pytest.mark.parametrize(
    ("make", "arguments"), CASES, ids=lambda value: getattr(value, "__name__", "")
)
def test_bad_input_ends_with_status_2(
    make: Callable[[Path], dict[str, object]],
    arguments: list[str],
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    if make is not hub_model_offline:
        monkeypatch.setattr("medrm.pipeline.context.load_base", never)
    assert recipe(**make(tmp_path)) == 2
    message = capsys.readouterr().err
    assert "Error:" in message
    for word in arguments:
        assert word in message
    assert not (tmp_path / "run" / "adapter").exists()

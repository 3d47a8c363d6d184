"""What callers give: images of any kind, rows of any shape, threads of any number."""

from __future__ import annotations

import base64
import io
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scorer.cases import make_case, stored_image
from scorer.reward_models import make_scorer
from tiny import save_tiny

from medrm.data.case_set import read_set
from medrm.errors import DataError
from medrm.scorer.caller_cases import ANY_IMAGES, CallerImages, row_case
from medrm.scorer.completion_cases import without_end
from medrm.scorer.readouts.answer_rewards import RewardModel


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> RewardModel:
    return make_scorer("qwen2_5_vl", save_tiny("qwen2_5_vl", tmp_path_factory.mktemp("base")))


def kinds_of(stored: bytes, folder: Path) -> list[Any]:
    path = folder / "scan.png"
    path.write_bytes(stored)
    pixels = np.asarray(Image.open(path).convert("RGB"))
    text = base64.b64encode(stored).decode()
    files = [path, str(path), {"bytes": None, "path": str(path)}]
    contents = [stored, bytearray(stored), memoryview(stored), {"bytes": stored, "path": None}]
    texts = [f"data:image/png;base64,{text}", text, {"bytes": text}]
    return [*files, *contents, *texts, Image.open(path), pixels]


def test_every_kind_of_image_is_the_same_image(scorer: RewardModel, tmp_path: Path) -> None:
    kinds = kinds_of(stored_image(3).read(), tmp_path)
    rows = [{"images": [kind], "question": "What?", "answers": ["one", "two"]} for kind in kinds]
    scores = [rewards for _, rewards in scorer.score_cases(rows)]
    first = scorer.score([kinds[0]], "What?", ["one", "two"])
    assert len(scores) == len(kinds)
    assert all(np.abs(first - rewards).max() < 1e-6 for rewards in scores)
    buffer = io.BytesIO()
    Image.new("L", (2, 2), 200).save(buffer, "PNG")
    small = base64.b64encode(buffer.getvalue()).decode()
    assert len(small) < 255  # as short as a file's name can be
    (first,), (second,) = map(ANY_IMAGES.images, (small, buffer.getvalue()))
    assert first.digest == second.digest
    grey = np.full((40, 60), 200, np.uint8)
    assert np.array_equal(
        scorer.score([grey], "?", ["one"]), scorer.score([grey[:, :, None]], "?", ["one"])
    )
    nothing = scorer.score([], "What?", ["one"])
    assert np.array_equal(nothing, scorer.score(None, "What?", ["one"]))


def test_rows_come_back_as_they_were_given(scorer: RewardModel) -> None:
    case = make_case(0)
    rows: list[Any] = [
        {"question": "What?", "answer_a": "one", "answer_b": "two"},
        {"prompt": "What?", "chosen": "one", "rejected": "two", "images": None},
        {"question": "What?", "completion": "one", "image": stored_image(1).read()},
        case,
    ]
    scored = list(scorer.score_cases(rows))
    assert all(given is row for (given, _), row in zip(scored, rows, strict=True))
    assert [len(rewards) for _, rewards in scored] == [2, 2, 1, len(case.answers)]
    assert np.abs(scored[0][1] - scored[1][1]).max() < 1e-6
    assert row_case({"id": 7, "question": "?", "answers": ["a"]}, 3).case_id == "7"
    assert row_case({"question": "?", "answers": ["a"]}, 3).case_id == "row 3"


def turn(role: str, *parts: Any) -> dict[str, Any]:
    return {"role": role, "content": parts[0] if len(parts) == 1 else list(parts)}


def test_rows_of_preferences_are_read_as_in_training(tmp_path: Path) -> None:
    stored = stored_image(1).read()
    (tmp_path / "scan.png").write_bytes(stored)
    asked = [turn("system", "Be brief."), turn("user", {"type": "image"}, "Is it clear?")]
    asked += [turn("assistant", "No."), turn("user", "Why?")]
    pair = {"chosen": [turn("assistant", "A mass.")], "rejected": [turn("assistant", "Well.")]}
    image = {"images": ["scan.png"]}
    held = {"type": "image", "image": {"bytes": stored, "path": "elsewhere.png"}}
    rows: list[dict[str, Any]] = [
        {"prompt": asked, **pair, **image},
        {**{name: asked + answer for name, answer in pair.items()}, **image},
        {"prompt": asked, "answers": ["A mass.", "Well."], **image},
        {"prompt": asked, "completions": list(pair.values()), **image},
        {"prompt": [asked[0], turn("user", held, "Is it clear?"), *asked[2:]], **pair},
    ]
    for row in rows:
        case = row_case(row, 1, CallerImages(tmp_path))
        turns = (("system", "Be brief.", 0), ("user", "Is it clear?", 1), ("assistant", "No.", 0))
        assert (case.context, case.question) == (turns, "Why?")
        assert case.answers == ("A mass.", "Well.")
        assert [one.read() for one in case.images] == [stored]
    path = tmp_path / "rows.jsonl"
    plain = {"prompt": "<image>\nIs it clear?", "chosen": "No.", "rejected": "Yes.", **image}
    path.write_text("\n".join(map(json.dumps, (rows[0], plain))), encoding="utf-8")
    for trained, row in zip(read_set(str(path)).cases, (rows[0], plain), strict=True):
        scored = row_case(row, 1, CallerImages(tmp_path))
        assert (scored.context, scored.question) == (trained.context, trained.question)
        assert sorted(scored.answers) == sorted(trained.answers)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("https://example.org/scan.png", "nothing is fetched from the network"),
        ("S3://bucket/scan.png", "nothing is fetched from the network"),
        ("data:image/png,plain", "give data:image/...;base64"),
        ("data:image/png;base64,!!!!", "no base64"),
        ({"bytes": "!!"}, "no base64"),
        ({"url": "scan.png"}, "neither bytes nor path"),
        (3.5, "float as an image; accepted are a path"),
        (None, "NoneType as an image"),
        (np.zeros((4, 4), np.float32), r"array of float32 \[4, 4\]"),
        (np.zeros((4, 4, 2), np.uint8), r"array of uint8 \[4, 4, 2\]"),
        (np.zeros((0, 4), np.uint8), "array of uint8"),
        ("a\0b", "no image file"),
    ],
)
def test_what_is_no_image_is_named(image: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ANY_IMAGES.images(image)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?"}, "no column 'answers'"),
        ({"Question": "?", "answers": ["a"]}, "no column 'question'.*Did you mean 'Question'"),
        ({"question": "\ud800", "answers": ["a"]}, "half a character"),
        ({"question": "?", "answers": ["a", 3]}, "int as its answer 1"),
        ({"question": "?", "answers": "text"}, "give a list of texts"),
        ({"question": "?", "answers": 3}, "int as its answers; give a list"),
        ({"question": ["?"], "answers": ["a"]}, "list as its question"),
        ({"question": "?", "answers": ["a"], "images": 5}, "int as its images"),
        ({"question": "?", "answers": ["a"], "images": ["x"]}, "no image file 'x'"),
        ({}, "Given: none"),
        ({"prompt": [], "answers": ["a", "b", "c"]}, "do not alternate"),
        ({"prompt": "?", "answers": ["a", 3]}, "'answer 1' is int"),
        ({"prompt": "?", "answers": ["a", [turn("user", "b")]]}, "answer 1 is not one turn"),
        ({"prompt": "<image>?", "answers": ["a"]}, "refers to 1 images"),
        ({"prompt": [turn("tool", "x"), turn("user", "?")], "answers": ["a"]}, "role 'tool'"),
        ({"question": [turn("user", "\ud800")], "answers": ["a"]}, "half a character"),
        ({"chosen": None, "rejected": "b"}, "answer 0 is not one turn"),
    ],
)
def test_what_is_no_row_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        row_case(row, 1)


def test_paths_of_rows_stay_in_their_folder(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    for folder in (tmp_path, inside):
        (folder / "scan.png").write_bytes(stored_image(2).read())
    row = {"question": "?", "answers": ["a"]}
    for path in ("scan.png", str(inside / "scan.png")):
        assert row_case({**row, "images": [path]}, 1, CallerImages(inside)).images[0].digest
    for path in ("../scan.png", str(tmp_path / "scan.png")):
        with pytest.raises(DataError, match="outside the data folder"):
            row_case({**row, "images": [path]}, 1, CallerImages(inside))


@pytest.mark.parametrize("calls", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_threads_get_the_scores_of_their_own_cases(scorer: RewardModel, calls: int) -> None:
    """8 threads of single calls beside two that stream batches, none of which may mix up."""
    cases = [make_case(number) for number in range(24)]
    alone = {case.case_id: scorer.score(case.images, case.question, case.answers) for case in cases}
    stop = threading.Event()

    def stream() -> int:
        batches = 0
        while not stop.is_set():
            for case, rewards in scorer.score_cases(cases):
                assert np.abs(rewards - alone[case.case_id]).max() < 1e-5
            batches += 1
        return batches

    def call(number: int) -> None:
        case = cases[number % len(cases)]
        rewards = scorer.score(case.images, case.question, case.answers)
        assert np.array_equal(rewards, alone[case.case_id])

    with ThreadPoolExecutor(10) as pool:
        streams = [pool.submit(stream) for _ in range(2)]
        try:
            list(pool.map(call, range(8 * calls)))
        finally:
            stop.set()
        assert all(stream.result() >= 1 for stream in streams)


def test_special_tokens_that_end_an_answer_are_taken_off() -> None:
    """Those of the reward model, and of a policy with another tokenizer."""
    tokens = ["[END]", "<|im_end|>"]
    ends = ("[END]", "<|im_end|>", " <|endoftext|> \n</s>", "<end_of_turn>\n", "<|eot|>" * 3000, "")
    for end in ends:
        assert without_end(f"a < b and <b> |> c{end}", tokens) == "a < b and <b> |> c"
    assert without_end("<|im_end|>", []) == without_end("", tokens) == ""
    assert without_end("yes \n", tokens) == "yes \n"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (image,) = ANY_IMAGES.images(tmp_path / "pipe.png")
    assert image.problem == "no file but a pipe or a device"

"""Messages whose parts are texts, images, or neither, from the rows to what models read."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files import picture, png, write_lines

from medrm.chat import answer_messages
from medrm.cli import main
from medrm.data.case_set import read_set
from medrm.data.images import examine
from medrm.errors import DataError
from medrm.evaluation.records.stored_cases import read_stored_cases as read_stored
from medrm.pipeline.prepare_data import set_aside_unusable
from medrm.schema import Case, Turn

URL = "data:image/png;base64," + base64.b64encode(png(picture(1))).decode()
IMAGES = {
    "a URL in an object": {"type": "image_url", "image_url": {"url": "1.png"}},
    "a data URL": {"type": "image_url", "image_url": {"url": URL}},
    "a text": {"type": "input_image", "image_url": "1.png"},
    "a path": {"type": "image", "image": "1.png"},
    "a file's address": {"type": "image", "image": "file://FOLDER/1.png"},
    "an absolute path": {"type": "image", "path": "FOLDER/1.png"},
    "base64": {"type": "image", "base64": URL.partition(",")[2]},
    "a source": {"type": "image", "source": {"type": "base64", "data": URL.partition(",")[2]}},
    "no type": {"image": "1.png"},
}
UNREAD = {
    "a video": ({"type": "video", "video": "v.mp4"}, "of type 'video'"),
    "a sound": ({"type": "input_audio", "input_audio": {"data": "UklGRg"}}, "'input_audio'"),
    "null": (None, "is null"),
    "a number": (3, "is int"),
    "a list": ([["text"]], "is list"),
    "a text that is null": ({"type": "text", "text": None}, "of type 'text', but holds no text"),
    "a text and an image": ({"text": "Where?", "image": "1.png"}, "has the keys text, image"),
    "no known key": ({"words": "why"}, "has the keys words"),
    "an address": ({"type": "image_url", "image_url": "https://example.org/1.png"}, "address"),
}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def pair(*prompt: dict[str, Any], **columns: Any) -> dict[str, Any]:
    answers = {"chosen": "good", "rejected": "bad"}
    return {
        "prompt": list(prompt),
        **{name: [{"role": "assistant", "content": text}] for name, text in answers.items()},
        **columns,
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(png(picture(number)))
    return tmp_path


def cases_of(folder: Path, *rows: dict[str, Any]) -> Sequence[Case]:
    path = write_lines(folder / "rows.jsonl", list(rows))
    text = path.read_text(encoding="utf-8").replace("FOLDER", str(folder))
    path.write_text(text, encoding="utf-8")
    return read_set(str(path)).cases


@pytest.mark.parametrize("form", IMAGES)
@pytest.mark.parametrize("images", [True, False])
def test_images_in_parts(folder: Path, form: str, images: bool) -> None:
    columns = {"images": ["1.png"]} if images else {}
    (case,) = cases_of(folder, pair(user(IMAGES[form], "Why", {"text": "?"}), **columns))
    assert (case.question, case.context, len(case.images)) == ("Why?", (), 1)
    assert case.images[0].read() == png(picture(1))
    assert str(folder) not in case.images[0].name


@pytest.mark.parametrize("form", UNREAD)
def test_a_part_that_is_not_understood_sets_its_row_aside(folder: Path, form: str) -> None:
    part, reason = UNREAD[form]
    cases = cases_of(folder, pair(user(part, "Why?")), pair(user("Which?")))
    facts = examine(cases)
    usable, excluded = set_aside_unusable(cases, ("overall",), facts)
    assert [case.question for case in usable] == ["Which?"]
    assert reason in excluded[0].reason


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ([user("Why?"), {"role": "tool", "content": "x"}], "role 'tool'"),
        ([user("Why?"), user("Why?")], "alternate"),
        ([user("Why?"), {"role": "system", "content": "Be brief."}], "alternate"),
        ([{"role": "system", "content": "Be brief."}], "alternate"),
        ([{"role": "user", "content": None}], "is null"),
    ],
)
def test_turns_that_are_no_conversation(
    folder: Path, prompt: list[dict[str, Any]], reason: str
) -> None:
    (case,) = cases_of(folder, pair(*prompt))
    assert reason in str(case.images[0].problem)


def test_an_answer_that_holds_an_image(folder: Path) -> None:
    row = pair(user("Draw it."))
    row["chosen"][0]["content"] = [{"type": "image", "image": "1.png"}, "Here."]
    (case,) = cases_of(folder, row)
    assert "an answer holds an image" in str(case.images[0].problem)


def test_images_stay_in_their_turns(folder: Path) -> None:
    said = {"role": "assistant", "content": "A mass."}
    system = {"role": "system", "content": "Be brief."}
    mark = {"type": "image"}
    (case,) = cases_of(
        folder,
        pair(system, user(mark, "One?"), said, user(mark, "Two?"), images=["1.png", "2.png"]),
    )
    assert case.context == (
        Turn("system", "Be brief."), Turn("user", "One?", 1), Turn("assistant", "A mass.")
    )  # fmt: skip
    messages = answer_messages(case.question, 2, "good", case.context)
    shown = [[block["type"] for block in message["content"]] for message in messages]
    assert [message["role"] for message in messages] == [
        *("system", "user", "assistant", "user", "assistant")
    ]
    assert shown == [["text"], ["image", "text"], ["text"], ["image", "text"], ["text"]]
    bare = answer_messages(case.question, 0, "good", case.context)
    assert all(block["type"] == "text" for message in bare for block in message["content"])
    (unmarked,) = cases_of(folder, pair(system, user("One?"), said, user("Two?"), images=["1.png"]))
    assert [turn.images for turn in unmarked.context] == [0, 1, 0]
    # What no text marks stands before the first question, as ms-swift and TRL have it.
    marked = pair(system, user("One?"), said, user(mark, "Two?"), images=["1.png", "2.png"])
    (half_marked,) = cases_of(folder, marked)
    assert [turn.images for turn in half_marked.context] == [0, 1, 0]
    (one_part,) = cases_of(folder, pair({"role": "user", "content": user("Why?")["content"][0]}))
    assert one_part.question == "Why?"


def test_a_conversation_is_part_of_what_a_case_is(folder: Path) -> None:
    plain = read_set(str(write_lines(folder / "a.jsonl", [pair(user("Why?"))])))
    system = {"role": "system", "content": "Be brief."}
    instructed = read_set(str(write_lines(folder / "b.jsonl", [pair(system, user("Why?"))])))
    assert plain.digest != instructed.digest
    assert instructed.cases[0].asked == "system: Be brief.\n\nuser: Why?"


def test_messages_in_a_table_have_all_keys(folder: Path) -> None:
    """Arrow fills the keys that a part lacks with nulls; bytes stand in the messages."""
    part = {"type": None, "text": None, "image": None}
    shown = [part | {"type": "image", "image": png(picture(2))}, part | {"text": "Why?"}]
    pq.write_table(pa.Table.from_pylist([pair(user(*shown))]), folder / "t.parquet")
    (case,) = read_set(str(folder / "t.parquet")).cases
    assert (case.question, case.images[0].read()) == ("Why?", png(picture(2)))


def test_more_images_than_parts(folder: Path) -> None:
    two = user({"type": "image", "image": "1.png"}, {"type": "image", "image": "2.png"}, "Which?")
    with pytest.raises(DataError, match="the prompt refers to 2 images, 'images' holds 1"):
        cases_of(folder, pair(two, images=["1.png"]))
    one = user({"type": "image", "image": "1.png"}, "Which?")
    (case,) = cases_of(folder, pair(one, images=["1.png", "2.png"]))
    assert "its prompt has 1 images, 'images' has 2" in str(case.images[2].problem)


def test_a_benchmark_keeps_the_case_unread_with_its_reason(folder: Path) -> None:
    system = {"role": "system", "content": "Be brief."}
    rows = [pair(system, user("Why?")), pair(user({"type": "video", "video": "v"}, "Which?"))]
    path = write_lines(folder / "rows.jsonl", rows)
    arguments = ["evaluate", "--model", "phantom-base", "--benchmark", str(path)]
    arguments += ["--readout", "verdict_probability"]
    assert main([*arguments, "--output_dir", str(folder / "out")]) == 0
    report = json.loads((folder / "out" / "report.json").read_text())
    robust = report["protocols"]["robust"]["dimensions"]["overall"]
    assert (robust["n"], robust["coverage"]) == (2, 0.5)
    written = (folder / "out" / "responses.jsonl").read_text().splitlines()
    refused = [row for row in map(json.loads, written) if row["state"] == "bad_image"]
    assert refused
    stored = {case.case_id: case for case in read_stored(folder / "out")}
    assert stored["row-000001"].context == (Turn("system", "Be brief."),)
    assert "of type 'video'" in str(stored["row-000002"].images[0].problem)

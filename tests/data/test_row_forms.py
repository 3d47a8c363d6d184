"""Rows of other tools, from their files to cases, and to what `medrm score` asks."""

from __future__ import annotations

import base64
import json
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from files import picture, png, vote, write_lines
from row_samples import PUBLIC_ROWS, ROW_SAMPLES, SHAREGPT, said, write_rows

from medrm.data.case_set import FORMATS, CaseSet, descriptions, read_set
from medrm.data.row_tables import open_table
from medrm.errors import DataError
from medrm.schema import Case, RankingLabel, Turn
from medrm.scorer.caller_cases import CallerImages, row_case

PAIRS = [name for name in ROW_SAMPLES if name != "rated_answers"]
BEFORE = (Turn("user", "Who?", 1), Turn("assistant", "me"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))


def read(folder: Path, *rows: dict[str, Any]) -> CaseSet:
    return read_set(str(write_rows(folder, list(rows))))


def ordered(case: Case, dimension: str) -> list[set[str]]:
    """The answers from the best on, equal ones together."""
    label = case.labels[dimension]
    if not isinstance(label, RankingLabel):
        assert isinstance(label.choice, int)
        return [{case.answers[label.choice]}, {case.answers[1 - label.choice]}]
    (ranking,) = label.rankings
    return [{case.answers[index] for index in level} for level in ranking]


@pytest.mark.parametrize("form", PAIRS)
def test_pairs_of_every_tool(tmp_path: Path, form: str) -> None:
    found = read(tmp_path, *ROW_SAMPLES[form])
    assert not found.excluded
    first, second = found.cases
    for case in (first, second):
        assert (case.question, case.images[0].read()) == ("Why?", png(picture(1)))
        assert ordered(case, "overall") == [{"good"}, {"bad"}]
    assert [turn.role for turn in second.context] == ["user", "assistant"]
    assert [turn.text for turn in second.context] == ["Who?", "me"]
    assert first.context == (Turn("system", "Be brief."),)


@pytest.mark.parametrize("form", ROW_SAMPLES)
def test_score_asks_what_training_asks(tmp_path: Path, form: str) -> None:
    cases = read(tmp_path, *ROW_SAMPLES[form]).cases
    for case, row in zip(cases, ROW_SAMPLES[form], strict=True):
        scored = row_case(row, 1, CallerImages(tmp_path))
        assert (scored.question, scored.context) == (case.question, case.context)
        assert sorted(scored.answers) == sorted(case.answers)
        assert [image.digest for image in scored.images] == [i.digest for i in case.images]


def test_rated_answers_become_rankings_with_ties(tmp_path: Path) -> None:
    found = read(tmp_path, *ROW_SAMPLES["rated_answers"])
    assert found.dimensions == ("overall", "helpfulness")  # not each answer is rated on honesty
    whole = [{"good"}, {"fair", "also fair"}, {"bad"}]
    for case in found.cases:
        assert ordered(case, "overall") == whole
        assert ordered(case, "helpfulness") == whole
    assert found.cases[0].groups == {"source": "made up"}
    assert found.cases[1].context == (Turn("user", "Who?"), Turn("assistant", "me"))


RATINGS = {
    "scores": {"scores": [1, 3, 2]},
    "ratings": {"ratings": [1.5, 3.5, 2]},
    "ranks": {"ranks": [3, 1, 2]},
    "ranks from zero": {"ranks": [2, 0, 1]},
    "a ranking": {"ranking": [[1], [2], [0]]},
}


@pytest.mark.parametrize("form", RATINGS)
@pytest.mark.parametrize("column", ["responses", "generations", "answers", "completions"])
def test_lists_of_answers_and_their_ratings(tmp_path: Path, form: str, column: str) -> None:
    row = {"prompt": "Why?", column: ["bad", "good", "fair"]} | RATINGS[form]
    (case,) = read(tmp_path, row).cases
    assert ordered(case, "overall") == [{"good"}, {"fair"}, {"bad"}]


def test_two_answers_with_ratings_are_a_pair(tmp_path: Path) -> None:
    rows = [
        {"question": "Why?", "responses": ["bad", "good"], "scores": [1, 2]},
        {"question": "Why?", "responses": ["bad", "good"], "ranking": [1, 0]},
        {"question": "Why?", "responses": ["bad", "good"], "scores": [2, 2]},
    ]
    better, ranked, tied = read(tmp_path, *rows).cases
    assert ordered(better, "overall") == ordered(ranked, "overall") == [{"good"}, {"bad"}]
    assert tied.labels["overall"].choice == "tie"


def test_order_of_rated_answers_tells_nothing(tmp_path: Path) -> None:
    row = {"prompt": "Why?", "responses": ["good", "fair", "bad"], "scores": [3, 2, 1]}
    orders = {case.answers for case in read(tmp_path, *[row] * 60).cases}
    assert orders == set(permutations(row["responses"]))


def test_completions_as_tables_keep_them(tmp_path: Path) -> None:
    """`datasets` keeps a list of objects as an object of lists."""
    write_rows(tmp_path, [])
    completions = {
        "annotations": [
            {"Helpfulness": {"Rating": rating}, "Visual Faithfulness": {"Rating": "5"}}
            for rating in ("2", "4", "3")
        ],
        "model": ["a", "b", "c"],
        "response": ["bad", "good", "fair"],
    }
    stored = {"bytes": png(picture(2)), "path": "x.png"}
    rows = [{"prompt": "Why?", "image": stored, "completions": completions}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = read_set(str(tmp_path / "rows.parquet"))
    (case,) = found.cases
    assert ordered(case, "helpfulness") == [{"good"}, {"fair"}, {"bad"}]
    assert ordered(case, "visual_faithfulness") == [{"good", "fair", "bad"}]
    assert case.images[0].read() == png(picture(2))


SWIFT, SHARE, ALPACA = (
    ROW_SAMPLES[name][0] for name in ("ms_swift", "llamafactory_sharegpt", "llamafactory_alpaca")
)
RATED = {"prompt": "Why?", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}
CALL = {"from": "function_call", "value": "{}"}
OTHER = {"rejected_response": None, "rejected_messages": said("p", "b")}
SET_ASIDE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "rejected images": (SWIFT, {"rejected_images": ["2.png"]}, "is about other images"),
    "a video": (SWIFT, {"videos": ["v.mp4"]}, "column 'videos' is not read"),
    "objects": (SWIFT, {"objects": {"ref": ["a"], "bbox": [[1, 2]]}}, "column 'objects'"),
    "two rejected": (SWIFT, {"rejected_messages": said("q", "b")}, "exclude each other"),
    "one message": (SWIFT, {"messages": said("q")}, "no question and an answer"),
    "no messages": (SWIFT, {"messages": "q"}, "must be a list of messages"),
    "no rejected": (SWIFT, {"rejected_response": None}, "are not one answer each"),
    "the same": (SWIFT, {"rejected_response": "good"}, "are the same"),
    "more marks": (SWIFT, {"images": []}, "the prompt refers to 1 images"),
    "other questions": (SWIFT, OTHER, "are not one answer each"),
    "a result": (
        SHARE,
        {"conversations": [{"from": "observation", "value": "?"}]},
        "'observation'",
    ),
    "tools": (SHARE, {"tools": "[{}]"}, "column 'tools'"),
    "a call": (SHARE, {"chosen": CALL}, "are not one answer each"),
    "history": (ALPACA, {"history": [["q"]]}, "pairs of texts"),
    "nothing asked": (ALPACA, {"instruction": ""}, "'instruction'"),
    "a flat ranking": (RATED, {"scores": None, "ranking": [2, 0, 1]}, "may be the answers from"),
    "a wrong ranking": (RATED, {"scores": None, "ranking": [[0], [0]]}, "names each of 0 to 2"),
    "too few scores": (RATED, {"scores": [1, 2]}, "must hold 3 ratings"),
    "no scores": (RATED, {"scores": [1, None, 3]}, "no dimension is rated for each"),
    "one answer": (RATED, {"responses": ["a"], "scores": [1]}, "fewer than two answers"),
    "no answers": (RATED, {"responses": "a"}, "must be a list of answers"),
}


@pytest.mark.parametrize("form", SET_ASIDE)
def test_what_is_not_understood_is_set_aside_with_its_reason(tmp_path: Path, form: str) -> None:
    row, changes, reason = SET_ASIDE[form]
    found = read(tmp_path, row, row | changes)
    told = [excluded.reason for excluded in found.excluded]
    told += [ref.problem for case in found.cases for ref in case.images if ref.problem]
    assert len(told) == 1
    assert reason in told[0]


def test_a_path_out_of_the_folder_is_an_error_in_every_form(tmp_path: Path) -> None:
    for rows in ROW_SAMPLES.values():
        with pytest.raises(DataError, match="leads outside the data folder"):
            read(tmp_path, rows[0] | {"images": ["../../secret.png"]})


def test_images_as_ms_swift_writes_them(tmp_path: Path) -> None:
    text = base64.b64encode(png(picture(2))).decode()
    forms: list[Any] = [["1.png"], "1.png", [{"path": "1.png", "bytes": None}]]
    forms += [[{"bytes": text, "path": None}], [text]]
    cases = read(tmp_path, *[SWIFT | {"images": images} for images in forms]).cases
    shown = [case.images[0].read() for case in cases]
    assert shown == [png(picture(1))] * 3 + [png(picture(2))] * 2
    with pytest.raises(DataError, match="images holds a path that is int; give text"):
        read(tmp_path, SWIFT | {"images": [{"path": 7}]})


INFO: dict[str, Any] = {
    "other": {"file_name": "other.json", "ranking": True},
    "mine": {
        "file_name": "rows.jsonl",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "chosen": "win", "rejected": "lose", "images": "pictures"},
        "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "q", "assistant_tag": "a"},
    },
}


def test_columns_that_dataset_info_names(tmp_path: Path) -> None:
    tags = {"role": "who", "content": "what", "user": "q", "assistant": "a"}
    row = {
        "talk": said("<image>Why?", **tags),
        "win": {"who": "a", "what": "good"},
        "lose": {"who": "a", "what": "bad"},
        "pictures": ["1.png"],
    }
    with pytest.raises(DataError, match="'case_id' is missing"):
        read(tmp_path, row)
    (tmp_path / "dataset_info.json").write_text(json.dumps(INFO))
    (case,) = read(tmp_path, row).cases
    assert (case.question, case.images[0].name) == ("Why?", "1.png")
    assert ordered(case, "overall") == [{"good"}, {"bad"}]
    columns = INFO["mine"]["columns"] | {"tools": "calls", "videos": "films"}
    elsewhere = {"mine": INFO["mine"] | {"file_name": "./rows.jsonl", "columns": columns}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(elsewhere))
    cases = read(tmp_path, row | {"calls": "[{}]"}, row | {"films": ["v.mp4"]}).cases
    for case, column in zip(cases, ("tools", "videos"), strict=True):
        assert f"its column {column!r} is not read" in str(case.images[-1].problem)
    entry = {"columns": {"prompt": "q", "query": "more", "chosen": "win", "rejected": "lose"}}
    alpaca = {"mine": {"file_name": "rows.jsonl", "ranking": True} | entry}
    (tmp_path / "dataset_info.json").write_text(json.dumps(alpaca))
    (case,) = read(tmp_path, {"q": "Why", "more": "so?", "win": "good", "lose": "bad"}).cases
    assert (case.question, ordered(case, "overall")) == ("Why\nso?", [{"good"}, {"bad"}])
    # Of ms-swift, and of rows that are no rankings: nothing to go by.
    for info in ([{"dataset_path": "rows.jsonl"}], {"mine": {"file_name": "rows.jsonl"}}):
        (tmp_path / "dataset_info.json").write_text(json.dumps(info))
        assert read(tmp_path, ROW_SAMPLES["ms_swift"][0]).cases
    wrong = {"mine": {"file_name": "rows.jsonl", "ranking": 1, "columns": [1]}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(wrong))
    with pytest.raises(DataError, match=r"columns and tags of 'rows\.jsonl' must be names"):
        read(tmp_path, row)


NAMED = {
    "votes": vote(image=..., images=[]),
    "rlaif_v": {"image": "1.png", "question": "q", "chosen": "a", "rejected": "b"}
    | {"origin_dataset": "d"},
    "mmedpo": {
        "image": "1.png",
        "conversations": said("q", "a", **SHAREGPT),
        "rejected_conversations": said("q", "b", **SHAREGPT),
    },
}


def recognising(folder: Path, row: dict[str, Any]) -> list[str]:
    path = write_lines(folder / "rows.jsonl", [row])
    table, described = open_table(path), descriptions()
    return [
        name
        for name, form in FORMATS.items()
        if form.read_table is not None and form.read_table(table, path, described) is not None
    ]


@pytest.mark.slow
def test_a_row_is_recognised_by_exactly_one_format(tmp_path: Path) -> None:
    """Also where a row has the columns of two formats."""
    of_format = ROW_SAMPLES | {"votes": [NAMED["votes"]], "graded_pairs": PUBLIC_ROWS["helpsteer3"]}
    readers = {name for name, form in FORMATS.items() if form.read_table is not None}
    assert readers - {"critic_pairs"} == set(of_format)
    # A conversation with a critic is no comparison by its columns.
    assert recognising(tmp_path, PUBLIC_ROWS["llava_critic"][0]) == []
    for name, rows in of_format.items():
        for row in rows:
            assert recognising(tmp_path, row) == [name]
    for name in ("rlaif_v", "mmedpo"):
        assert recognising(tmp_path, NAMED[name]) == ["preferences"]
    both = {"chosen": "a", "rejected": "b"}
    assert recognising(tmp_path, ALPACA | {"prompt": "q"}) == ["preferences"]
    assert recognising(tmp_path, SHARE | {"prompt": "q"}) == ["preferences"]
    assert recognising(tmp_path, RATED | both) == ["preferences"]
    assert recognising(tmp_path, SWIFT | both) == ["ms_swift"]
    every = [row for rows in of_format.values() for row in rows] + list(NAMED.values())
    for first, second in product(every, every):
        assert len(recognising(tmp_path, first | second)) == 1

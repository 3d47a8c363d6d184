"""A `dataset.yaml` that names files beside it, and what each form makes of its keys."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from files import picture, png, vote, write_lines, write_parquet

from medrm.data.case_set import CaseSet, read_set
from medrm.errors import ConfigError, MedrmError
from medrm.evaluation.benchmark_loading import load_benchmark
from medrm.exchange.mapping import sheet_mapping
from medrm.exchange.mapping_file import load_mapping

Write = Callable[..., CaseSet]


@pytest.fixture
def described(tmp_path: Path) -> Write:
    """Writes the description into a folder with pictures in `scans/` and reads the set."""
    (tmp_path / "set" / "scans").mkdir(parents=True)
    for number in (1, 2, 3):
        (tmp_path / "set" / "scans" / f"{number}.png").write_bytes(png(picture(number)))

    def write(**keys: Any) -> CaseSet:
        text = yaml.safe_dump({"name": "mine", **keys})
        (tmp_path / "set" / "dataset.yaml").write_text(text, encoding="utf-8")
        return read_set(str(tmp_path / "set"))

    return write


def pairs(*numbers: int, **columns: str) -> list[dict[str, Any]]:
    names = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected", "image": "image"}
    names |= columns
    return [
        {
            names["prompt"]: f"Question {number}?",
            names["chosen"]: "A mass.",
            names["rejected"]: "Nothing.",
            names["image"]: f"{number}.png",
            "case_id": f"c{number}",
            "site": "north",
        }
        for number in numbers
    ]


def test_preference_rows_of_several_files_by_their_columns(
    described: Write, tmp_path: Path
) -> None:
    """Columns, dimension, groups and the folder of images are the description's, in TRL's too."""
    german = {"prompt": "Frage", "chosen": "besser", "rejected": "schlechter"}
    write_lines(tmp_path / "set" / "train[1].jsonl", pairs(1, **german))
    write_lines(tmp_path / "set" / "train1.jsonl", pairs(3, **german))
    (tmp_path / "set" / "train2.json").write_text(json.dumps(pairs(2, **german)))
    columns = german | {"ort": "site"}
    files = ["train[1].jsonl", "*2.json"]
    found = described(files=files, columns=columns, dimension="accuracy", images="scans")
    assert (found.name, found.revision, found.dimensions) == ("mine", "local", ("accuracy",))
    assert [case.case_id for case in found.cases] == ["c1", "c2"]
    for case in found.cases:
        assert case.answers[case.labels["accuracy"].choice] == "A mass."  # type: ignore[index]
        assert (case.groups["ort"], case.images[0].problem) == ("north", None)
    assert load_benchmark(str(tmp_path / "set")).name == "mine"
    described(files=files, columns=columns, dimension="relevance", images="scans")
    assert read_set(str(tmp_path / "set")).dimensions == ("relevance",)
    write_lines(tmp_path / "set" / "trl.jsonl", pairs(1))
    trl = described(files=["trl.jsonl"], form="preferences", dimension="accuracy", images="scans")
    assert trl.dimensions == ("accuracy",)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.png").write_bytes(png(picture(9)))
    other = read_set(str(tmp_path / "set"), image_root=tmp_path / "elsewhere").cases[0].images[0]
    assert other.problem is None
    assert other.digest != trl.cases[0].images[0].digest


def test_votes_and_stored_images_of_several_files(described: Write, tmp_path: Path) -> None:
    """A case's votes may lie in two files; images in the rows of two parquet files stay apart."""
    folder = tmp_path / "set"
    write_lines(folder / "a.jsonl", [vote("c1", "ann", image="1.png"), vote("c2", image="2.png")])
    write_lines(folder / "b.jsonl", [vote("c1", "bob", image="1.png", votes={"accuracy": "B"})])
    votes = described(files=["a.jsonl", "b.jsonl"], images="scans")
    assert [case.labels["accuracy"].votes for case in votes.cases] == [2, 1]
    for name, number in (("a", 1), ("b", 2)):
        stored = {"bytes": png(picture(number)), "path": None}
        row = {"prompt": "What?", "chosen": "x", "rejected": "y", "images": stored}
        write_parquet(folder / f"{name}.parquet", [row | {"case_id": name}])
    first, second = described(files=["a.parquet", "b.parquet"]).cases
    assert (first.images[0].read(), second.images[0].read()) == (png(picture(1)), png(picture(2)))


def test_released_rows_beside_a_description(described: Write, tmp_path: Path) -> None:
    row = {"id": "q1", "asked": "What?", "one": "A mass.", "two": "Nothing.", "best": "two"}
    (tmp_path / "set" / "rows.json").write_text(json.dumps([row | {"scan": "3.png"}]))
    columns = {"id": "id", "question": "asked", "first": "one", "second": "two", "better": "best"}
    (case,) = described(
        files=["rows.json"], form="pairs", columns=columns | {"image": "scan"}, images="scans"
    ).cases
    assert case.labels["overall"].choice == 1  # type: ignore[union-attr]
    assert case.images[0].problem is None


REFUSED: dict[str, dict[str, Any]] = {
    "is not accepted; name what lies in": {"files": ["../other.jsonl"]},
    "files '/etc/passwd' is not accepted": {"files": ["/etc/passwd"]},
    "files 'link.jsonl' is not accepted": {"files": ["link.jsonl"]},
    "images '../set' is not accepted": {"files": ["votes.jsonl"], "images": "../set"},
    "files 'nnnn": {"files": ["n" * 300]},
    "there is no file 'n/nnnn": {"files": ["n/" + "n" * 300 + "*"]},
    "files '**n' is not accepted": {"files": ["**n"]},
    "images 'nnnn": {"files": ["votes.jsonl"], "images": "n" * 300},
    "images 'skans' is no folder": {"files": ["votes.jsonl"], "images": "skans"},
    "Did you mean 'votes.jsonl'": {"files": ["vote.jsonl"]},
    "rows of form 'votes' name their own dimensions": {
        "files": ["votes.jsonl"], "form": "votes", "dimension": "accuracy",
    },
    "column 'nr' is missing": {
        "files": ["votes.jsonl"], "form": "pairs", "columns": {"id": "nr"},
    },
    "accepted: layout, votes, preferences": {"files": ["votes.jsonl"], "form": "vote"},
    "key 'form' is missing": {"source": "organisation/name"},
    "lie in several folders": {"files": ["votes.jsonl", "deeper/votes.jsonl"]},
    "not of the same names and types": {"files": ["votes.jsonl", "stored.parquet"]},
    "b.jsonl line 2 (case 'c3')": {"files": ["votes.jsonl", "b.jsonl"]},
}  # fmt: skip


@pytest.mark.parametrize("problem", REFUSED)
def test_what_a_description_may_not_name(problem: str, described: Write, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write_lines(tmp_path / "other.jsonl", [vote()])
    write_lines(folder / "votes.jsonl", [vote("c1", image="scans/1.png")])
    (folder / "deeper").mkdir()
    shutil.copy(folder / "votes.jsonl", folder / "deeper")
    (folder / "link.jsonl").symlink_to(tmp_path / "other.jsonl")
    rows = [vote("c2", image="scans/1.png"), vote("c3", image="scans/1.png", votes={"a": "C"})]
    write_lines(folder / "b.jsonl", rows)
    write_parquet(folder / "stored.parquet", [{"images": {"bytes": b"x", "path": None}}])
    with pytest.raises(MedrmError, match=re.escape(problem)):
        described(**REFUSED[problem])


def test_image_root_of_the_released_layout(layout: Callable[..., Path], tmp_path: Path) -> None:
    """Images whose rows hold paths alone."""
    from files import row

    path = tmp_path / "archive"
    path.mkdir()
    (path / "7.png").write_bytes(png(picture(7)))
    rows = [row("q3", 3, image={"bytes": None, "path": "7.png"})]
    folder = str(layout(inputs={"GI_tract": rows}))
    (missing,) = (case for case in read_set(folder).cases if case.case_id == "q3")
    assert missing.images[0].problem is not None
    (case,) = (c for c in read_set(folder, image_root=path).cases if c.case_id == "q3")
    assert case.images[0].problem is None


def test_a_short_description_that_repeats_itself_without_end(tmp_path: Path) -> None:
    """By its aliases it holds 10 ** 12 letters."""
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 12)]
    text = "\n".join([*lines, "name: *l11", "columns: *l11", "votes: *l11"])
    path = tmp_path / "dataset.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"name is \[\[\["):
        read_set(str(tmp_path))
    with pytest.raises(ConfigError, match=r"columns is \[\[\["):
        sheet_mapping(load_mapping(text), ["a"])

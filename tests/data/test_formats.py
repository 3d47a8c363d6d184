"""A data format from outside the package: one entry in the registry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from files import write_lines

from medrm.cli import main
from medrm.data.case_set import FORMATS, read_cases, read_set
from medrm.data.image_references import ImageOptions
from medrm.data.phantom.phantom_set import write_phantom
from medrm.data.row_tables import RowTable, open_table
from medrm.data.sources import CaseDraft, DataFormat, Description, ReadResult, Source, Vote
from medrm.errors import ConfigError, DataError

ROWS = [{"item": "a", "good": "Yes.", "bad": "No."}, {"item": "b", "good": "Two.", "bad": "One."}]


def read_rows(table: RowTable) -> ReadResult:
    return ReadResult(
        CaseDraft(row["item"], (), "?", (row["good"], row["bad"]), {"overall": [Vote("author", 0)]})
        for _, row in table.rows
    )


def read_by_columns(table: RowTable, _: Path, __: Sequence[Description]) -> ReadResult | None:
    return read_rows(table) if {"item", "good", "bad"} <= set(table.columns) else None


def open_folder(folder: Path, image_options: ImageOptions) -> Source:
    path = folder / "toy" / "rows.jsonl"
    return Source([path], lambda: read_rows(open_table(path)))


def open_described(path: Path, description: Description) -> Source:
    return Source([path], lambda: read_rows(open_table(path)), description.revision)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a set of a format `toy`, which the registry knows."""
    (tmp_path / "set" / "toy").mkdir(parents=True)
    path = write_lines(tmp_path / "set" / "toy" / "rows.jsonl", ROWS)
    toy = DataFormat("toy/", open_folder, read_by_columns, partial(open_described, path))
    monkeypatch.setitem(FORMATS, "toy", toy)
    return tmp_path / "set"


def test_a_format_is_recognised_by_columns_folder_and_description(toy: Path) -> None:
    by_columns = read_cases(toy / "toy" / "rows.jsonl")
    assert [case.answers for case in by_columns] == [("Yes.", "No."), ("Two.", "One.")]
    assert read_cases(toy) == by_columns
    described = toy.parent / "described"
    described.mkdir()
    text = "name: mine\nform: toy\nrevision: '7'\n"
    (described / "dataset.yaml").write_text(text, encoding="utf-8")
    found = read_set(str(described))
    assert (found.name, found.revision, list(found.cases)) == ("mine", "7", by_columns)


def test_messages_name_the_formats_that_there_are(toy: Path) -> None:
    (toy.parent / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds neither pair_gt_all/ nor votes\.jsonl nor .*toy/"):
        read_cases(toy.parent / "empty")
    (toy.parent / "empty" / "dataset.yaml").write_text("name: x\nform: votes\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"form is 'votes'; accepted: layout, .*, toy"):
        read_cases(toy.parent / "empty")


def test_a_file_of_no_format_is_read_as_votes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'votes' is missing"):
        read_cases(write_lines(tmp_path / "rows.jsonl", ROWS))


@pytest.mark.parametrize("folder", ["~", "s3:"])
def test_what_is_written_lies_where_it_was_asked_for(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow takes some paths for addresses, and `~` for the home folder."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MEDRM_CACHE", f"{folder}/cache")
    monkeypatch.chdir(tmp_path)
    write_phantom(Path(folder, "ph"), cases=4, seed=3)
    assert len(read_set(f"{folder}/ph").cases) == 4
    arguments = ["data", "export", f"{folder}/ph", "--to", "hub", "--output", f"{folder}/hub"]
    assert main([*arguments, "--dimensions", "accuracy"]) == 0
    assert Path(folder, "hub", "data", "accuracy.parquet").is_file()
    arguments = ["evaluate", "--model", "mock:oracle", "--benchmark", f"{folder}/ph"]
    assert main([*arguments, "--no_images", "--output_dir", f"{folder}/ev"]) == 0
    assert main(["report", f"{folder}/ev", "--export"]) == 0
    assert Path(folder, "ev", "exports", "verdicts.parquet").is_file()
    assert not list(Path("home").rglob("*.parquet"))
    assert {path.name for path in tmp_path.iterdir()} == {"home", folder}

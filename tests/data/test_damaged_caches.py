"""Whatever is damaged in the cache is found, and made again as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from damages import KINDS
from files import picture, png, row, write_lines, write_parquet
from indexed import cases_of

from medrm.data.images import decode
from medrm.data.readers.votes_jsonl import phantom_folder
from medrm.data.store.indexed_cases import CaseIndex, stored_facts
from medrm.errors import DataError
from medrm.files import cache_dir
from medrm.integrity import MANIFEST, damage, read_record, write_record


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["index.json", "cases.arrow", "clusters.npy", MANIFEST])
def test_a_damaged_index_is_built_again(mixed: Path, name: str, kind: str) -> None:
    whole = cases_of(mixed)
    expected = list(whole)
    KINDS[kind](whole.case_index.folder / name)
    again = cases_of(mixed)
    assert list(again) == expected
    assert again.case_index.folder != whole.case_index.folder


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_facts_are_found_again(mixed: Path, kind: str) -> None:
    cases = cases_of(mixed)
    expected = dict(stored_facts([cases.case_index]))
    for name in ("image-facts.arrow", "image-facts.arrow.sha256"):
        KINDS[kind](cases.case_index.folder / name)
        assert dict(stored_facts([cases.case_index])) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_values_are_computed_again(mixed: Path, kind: str) -> None:
    index = cases_of(mixed).case_index
    for _ in range(2):
        assert index.cached_json("some", lambda: [1, 2]) == [1, 2]
        assert index.cached_json("some", list) == [1, 2]
        numbers = CaseIndex(index.folder).cached_array("numbers", lambda: np.arange(7))
        assert numbers.tolist() == list(range(7))
        for name in ("some.json", "numbers.npy"):
            KINDS[kind](index.folder / name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_copy_of_a_table_is_made_again(tmp_path: Path, kind: str) -> None:
    stored = [row(f"q{number}", number) for number in range(4)]
    write_parquet(tmp_path / "pair_gt_all" / "parquet" / "brain.parquet", stored, "image")
    labels = [{"question_id": f"q{n}", "human_answer": {"overall": "A"}} for n in range(4)]
    write_lines(tmp_path / "pair_gt_all" / "brain.jsonl", labels)
    expected = list(cases_of(tmp_path))
    (copy,) = (cache_dir() / "tables").rglob("*.arrow")
    shutil.copy2(copy, copy.with_name("new"))
    copy.with_name("new").replace(copy)  # this process has the other one open
    KINDS[kind](copy)
    again = cases_of(tmp_path)
    assert list(again) == expected
    assert [case.images[0].read() for case in again] == [png(picture(n)) for n in range(4)]


def test_an_image_that_changes_after_it_was_indexed_is_refused(mixed: Path) -> None:
    case = next(case for case in cases_of(mixed) if case.images and not case.images[0].problem)
    (ref,) = case.images
    decode(ref)
    path = mixed.parent / ref.name
    path.write_bytes(png(picture(77)))
    with pytest.raises(DataError, match="not what it was when its set was read"):
        decode(ref)


@pytest.mark.parametrize("kind", ["missing", "half", "bit in the middle"])
def test_a_damaged_phantom_set_is_drawn_again(kind: str) -> None:
    folder = phantom_folder(cases=2, seed=5)
    expected = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    KINDS[kind](folder / "votes.jsonl")
    assert phantom_folder(cases=2, seed=5) == folder
    again = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert again == expected
    assert damage(folder) == []


def test_every_byte_of_a_kept_record_counts(tmp_path: Path) -> None:
    path, record = tmp_path / "kept" / "reply.json", {"text": "A is better.", "usage": [1, 2.5]}
    write_record(path, record)
    assert read_record(path) == record
    data = path.read_bytes()
    for index in range(len(data)):
        changed = bytearray(data)
        changed[index] ^= 1 << index % 8
        path.write_bytes(changed)
        try:
            read = read_record(path)
        except ValueError:
            continue
        assert {name: read.get(name) for name in record} == record  # another name of the digest
    path.write_text(json.dumps(record))  # as earlier versions wrote it
    assert read_record(path) == record

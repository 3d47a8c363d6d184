from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import picture, png, row, vote, write_lines, write_parquet
from indexed import cases_of

from medrm.data import case_set as load
from medrm.data import images
from medrm.data.case_set import digest_of, dimensions_of, read_set
from medrm.data.images import examine
from medrm.data.labels import LabelRules
from medrm.data.readers import votes_jsonl as rows
from medrm.data.store import build_index
from medrm.data.store.indexed_cases import (
    CaseIndex,
    IndexedCases,
    column,
    concatenate,
    label_column,
    list_column,
    select,
    stored_facts,
    unreadable_cases,
)
from medrm.errors import ConfigError, DataError
from medrm.files import cache_dir
from medrm.schema import Case


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))


def test_columns_say_what_the_cases_say(mixed: Path) -> None:
    """Whole and in part, what is stored is what the cases themselves give."""
    whole = cases_of(mixed)
    for stored in (whole, select(whole, np.array([6, 2, 4])), whole[1:5][::-1], whole[:0]):
        decoded = list(stored)
        assert [case.case_id for case in decoded] == [stored[n].case_id for n in range(len(stored))]
        for name in ("image_count", "answer_count", "question_hash", "text_hash", "digest"):
            assert column(stored, name).tolist() == column(decoded, name).tolist()
        for name in ("answer_hashes", "image_digests"):
            for ours, theirs in zip(
                list_column(stored, name), list_column(decoded, name), strict=True
            ):
                assert ours.tolist() == theirs.tolist()
        for name in ("accuracy", "overall", "own", "none"):
            assert label_column(stored, name).tolist() == label_column(decoded, name).tolist()
        assert dimensions_of(stored) == dimensions_of(decoded)
        assert digest_of(stored) == digest_of(decoded)
    assert whole[-1] == whole[6]
    with pytest.raises(IndexError):
        whole[7]


def test_cases_go_to_workers_and_stay_in_their_index(mixed: Path) -> None:
    whole = cases_of(mixed)
    part = select(whole, np.array([5, 0]))
    copy: IndexedCases = pickle.loads(pickle.dumps(part))
    assert list(copy) == list(part) == [whole[5], whole[0]]
    assert copy[1].images[0].read() == (mixed.parent / "images" / "1.png").read_bytes()
    both = concatenate(part, whole[3:4])
    assert isinstance(both, IndexedCases)
    assert list(both) == [whole[5], whole[0], whole[3]]
    assert concatenate(part, [whole[3]]) == [whole[5], whole[0], whole[3]]
    assert select(list(whole), np.array([1])) == [whole[1]]


def test_lines_of_a_case_need_not_stand_together(votes_file: Any, tmp_path: Path) -> None:
    lines = [
        vote(f"c{case}", f"a{annotator}", votes={"overall": "AB"[(case + annotator) % 3 == 0]})
        for annotator in range(3)
        for case in range(40)
    ]
    apart = list(cases_of(votes_file(*lines)))
    beside = list(cases_of(votes_file(*sorted(lines, key=lambda one: int(one["case_id"][1:])))))
    assert apart == beside
    assert [case.case_id for case in apart] == [f"c{number}" for number in range(40)]
    assert {label.votes for case in apart for label in case.labels.values()} == {3}


def test_a_set_is_read_once(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_set(str(mixed))

    def never(*given: Any) -> None:
        raise AssertionError("the set is read, or a case decoded")

    monkeypatch.setattr(load, "_read_file", never)
    monkeypatch.setattr(CaseIndex, "case_json", never)
    again = read_set(str(mixed))
    assert (again.digest, again.dimensions) == (first.digest, ("accuracy", "overall", "own"))
    assert again.agreement == first.agreement
    with pytest.raises(AssertionError, match="is read"):
        read_set(str(mixed), LabelRules("split"))


def _rewritten(path: Path, change: Any) -> None:
    """Changes a file and sets its times back, as `cp -p` does."""
    status = path.stat()
    change()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _new_line(path: Path) -> None:
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(vote("c9")) + "\n")


def _new_image(path: Path) -> None:
    (path.parent / "images" / "2.png").write_bytes(png(picture(9)))


def _edited_image(path: Path) -> None:
    """Of the same size and time, in the same place."""
    image = path.parent / "images" / "2.png"
    content = bytearray(image.read_bytes())
    content[-20] ^= 1

    def write() -> None:
        with image.open("r+b") as file:
            file.write(content)

    _rewritten(image, write)


def _found_image(path: Path) -> None:
    (path.parent / "images" / "none.png").write_bytes(png(picture(9)))


@pytest.mark.parametrize("change", [_new_line, _new_image, _edited_image, _found_image])
def test_a_changed_file_is_read_again(
    mixed: Path, change: Any, caplog: pytest.LogCaptureFixture
) -> None:
    before = read_set(str(mixed))
    stored_facts([before.cases.case_index])  # type: ignore[attr-defined]
    change(mixed)
    with caplog.at_level(logging.INFO):
        after = read_set(str(mixed))
    assert after.digest != before.digest
    assert "cases read and indexed" in caplog.text
    assert ("has changed" in caplog.text) == (change is not _new_line)
    facts = stored_facts([after.cases.case_index])  # type: ignore[attr-defined]
    assert dict(facts) == examine(after.cases)


def test_facts_are_kept_and_each_image_is_decoded_once(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = cases_of(mixed)
    shown, decoded = [], []
    look = images._facts
    monkeypatch.setattr(images, "_facts", lambda ref: decoded.append(ref.digest) or look(ref))
    facts = stored_facts([cases.case_index], lambda *step: shown.append(step))
    assert len(decoded) == len(set(decoded)) == len(facts) == 4
    assert shown[-1] == (4, 4)
    assert dict(stored_facts([cases.case_index])) == dict(facts)
    assert len(decoded) == 4
    assert dict(facts) == examine(cases)
    expected = [False] * 5 + [True, True]
    for given in (facts, examine(cases)):
        assert unreadable_cases(cases, given).tolist() == expected
        assert unreadable_cases(list(cases), given).tolist() == expected
    with pytest.raises(KeyError):
        facts["0" * 64]


def test_images_in_a_table_are_read_from_it(tmp_path: Path) -> None:
    stored = [row(f"q{number}", number) for number in range(4)]
    write_parquet(tmp_path / "pair_gt_all" / "parquet" / "brain.parquet", stored, "image")
    labels = [{"question_id": f"q{n}", "human_answer": {"overall": "A"}} for n in range(4)]
    write_lines(tmp_path / "pair_gt_all" / "brain.jsonl", labels)
    cases_of(tmp_path)
    again: list[Case] = pickle.loads(pickle.dumps(list(cases_of(tmp_path))))
    assert [case.images[0].read() for case in again] == [png(picture(n)) for n in range(4)]
    (copy,) = (cache_dir() / "tables").rglob("*.arrow")
    torn = copy.read_bytes()[:-4000]
    copy.unlink()  # this process has it open
    copy.write_bytes(torn)
    assert cases_of(tmp_path)[3].images[0].read() == png(picture(3))
    shutil.rmtree(cache_dir() / "tables")
    assert cases_of(tmp_path)[3].images[0].read() == png(picture(3))


def test_a_table_that_keeps_its_time_is_read_again(layout: Any) -> None:
    folder = layout()
    before = read_set(str(folder))
    table = folder / "pair_gt_all" / "parquet" / "brain.parquet"
    changed = [row("q1", 1), row("q2", 2, question="Where is it?")]
    _rewritten(table, lambda: write_parquet(table, changed, "image"))
    after = read_set(str(folder))
    assert after.digest != before.digest
    assert "Where is it?" in {case.question for case in after.cases}


def test_a_linked_file_has_the_images_beside_the_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path / "votes.jsonl", [vote()])
    for number, folder in enumerate((tmp_path / "one", tmp_path / "other")):
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "1.png").write_bytes(png(picture(number)))
        (folder / "votes.jsonl").symlink_to(tmp_path / "votes.jsonl")
        monkeypatch.chdir(folder)
        assert cases_of(Path("votes.jsonl"))[0].images[0].read() == png(picture(number))
        assert len(list((cache_dir() / "index").iterdir())) == number + 1
        cases_of(folder / "votes.jsonl")
        assert len(list((cache_dir() / "index").iterdir())) == number + 1


def test_an_index_in_use_outlives_a_change(mixed: Path) -> None:
    """A run that is training reads its cases to the end, whoever indexes the set anew."""
    running = cases_of(mixed)
    _found_image(mixed)
    assert cases_of(mixed)[5].images[0].problem is None
    assert [case.case_id for case in running] == [f"c{number}" for number in range(1, 8)]
    assert running[5].images[0].problem is not None


@pytest.mark.parametrize("change", ["votes", "image"])
def test_what_changes_while_it_is_read(
    mixed: Path, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = rows._draft

    def changing(*given: Any) -> Any:
        if change == "votes":
            mixed.write_text(mixed.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        else:
            _new_image(mixed)
        return draft(*given)

    monkeypatch.setattr(rows, "_draft", changing)
    if change == "votes":
        with pytest.raises(DataError, match="changed while it was read"):
            read_set(str(mixed))
    else:
        read_set(str(mixed))
    monkeypatch.setattr(rows, "_draft", draft)
    assert cases_of(mixed)[1].images[0].digest == (
        hashlib.sha256((mixed.parent / "images" / "2.png").read_bytes()).hexdigest()
    )


def test_a_cache_that_cannot_be_written(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRM_CACHE", str(mixed / "cache"))
    with pytest.raises(ConfigError, match=r"cannot be written .* Set MEDRM_CACHE"):
        read_set(str(mixed))
    with pytest.raises(ConfigError, match=r"cannot be written .* Set MEDRM_CACHE"):
        read_set("phantom")


def test_another_decoder_reads_a_set_again(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cases_of(mixed)
    monkeypatch.setattr(build_index.PIL, "__version__", "other")
    assert cases_of(mixed).case_index.folder != first.case_index.folder


def test_an_index_names_no_patient_and_is_private(votes_file: Any) -> None:
    case_index = cases_of(
        votes_file(vote("c1", patient="Mx Doe"), vote("c2", study="s9"))
    ).case_index
    assert case_index.folder.stat().st_mode & 0o077 == 0
    assert all(b"Mx Doe" not in path.read_bytes() for path in case_index.folder.iterdir())


def test_what_cannot_be_read_leaves_no_index(votes_file: Any) -> None:
    path = votes_file(vote("c1"), vote("c2", votes={"overall": "C"}))
    for _ in range(2):
        with pytest.raises(DataError, match="'C'"):
            read_set(str(path))
    assert list((cache_dir() / "index").iterdir()) == []

"""Sets with medical images: clusters, what is read again, what is told, and what to nobody."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import vote, write_lines, write_parquet
from medical_samples import DICOM, NIFTI, RAMP, digests, write_dicom, write_series

from medrm.cli import main
from medrm.data import image_references
from medrm.data.case_set import CaseSet, read_cases, read_set
from medrm.data.image_references import ImageOptions, StoredCell, file_images
from medrm.data.images import decode
from medrm.data.medical import converter
from medrm.data.medical.conversions import parse_conversion
from medrm.data.mixture import read_training_set
from medrm.errors import ConfigError, DataError

PLANTED = {
    "PatientName": "Zqname^Zqfirst",
    "PatientID": "zqid4711",
    "PatientBirthDate": "19580613",
    "PatientComments": "zqcomment",
    "AccessionNumber": "zqaccession",
    "InstitutionName": "zqinstitution",
    "ReferringPhysicianName": "Zqdoctor",
    "StudyDescription": "zqstudy",
    "SeriesDescription": "zqseries",
    "StudyInstanceUID": "1.2.999.4711.1",
    "SeriesInstanceUID": "1.2.999.4711.2",
    "DeviceSerialNumber": "zqserial",
}


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def votes(folder: Path, images: dict[str, list[str]], about: dict[str, Any] | None = None) -> Path:
    """Votes on cases with these images."""
    rows = [
        vote(case_id, image=..., images=paths, question=f"What is in {case_id}?")
        for case_id, paths in images.items()
    ]
    if about is not None:
        (folder / "dataset.json").write_text(json.dumps(about))
    return write_lines(folder / "votes.jsonl", rows)


def clusters(read: CaseSet) -> dict[str, str]:
    return {case.case_id: case.cluster for case in read.cases}


def test_patient_and_study_of_the_files_keep_cases_together(tmp_path: Path) -> None:
    """By hashes that no other salt gives, and that name no cluster."""
    tags = {
        "a": {"PatientID": "4711", "StudyInstanceUID": "1.2.1"},
        "b": {"PatientID": "4711", "StudyInstanceUID": "1.2.2"},
        "c": {"PatientID": "4712", "StudyInstanceUID": "1.2.2"},
        "d": {"PatientID": "4713", "StudyInstanceUID": "1.2.3"},
        "e": {"PatientID": "ANONYMOUS", "StudyInstanceUID": "1.2.4"},
        "f": {"PatientID": "anon-7", "StudyInstanceUID": "1.2.5"},
    }
    for number, (name, own) in enumerate(tags.items()):
        write_dicom(tmp_path / f"{name}.dcm", RAMP + np.int16(number), **own)
    path = votes(tmp_path, {name: [f"{name}.dcm"] for name in tags})
    of_case = clusters(read_set(str(path), image_conversion="ct_lung"))
    assert of_case["a"] == of_case["b"] == of_case["c"]
    assert len({*of_case.values()}) == 4
    (case,) = (c for c in read_cases(path, "ct_lung") if c.case_id == "a")
    assert (case.images[0].name, decode(case.images[0]).size) == ("a.dcm", (50, 40))


def everything_written(folders: list[Path]) -> Iterator[bytes]:
    for folder in folders:
        for path in folder.rglob("*"):
            yield str(path).encode()
            if path.is_file():
                yield path.read_bytes()


def test_no_tag_is_told_to_anybody(
    tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    """Not in the cache, the index, an audit, an import, the log or an error; nor an id's digest."""
    import hashlib

    data, out = tmp_path / "data", tmp_path / "out"
    out.mkdir()
    write_dicom(data / "1.dcm", BurnedInAnnotation="YES", **PLANTED)
    write_series(data / "series", [1, 2, 3], **PLANTED)
    broken = write_dicom(data / "broken.dcm", **PLANTED | {"PatientBirthDate": "zqbirth"})
    broken.write_bytes(broken.read_bytes()[:-100])
    write_dicom(data / "mr.dcm", Modality="MR", **PLANTED)
    images = {"a": ["1.dcm"], "b": ["series"], "c": ["broken.dcm"], "d": ["mr.dcm"]}
    path = votes(data, images)
    with caplog.at_level(logging.DEBUG):
        audit = ["data", "audit", str(path), "--image_conversion", "ct_lung,frames=all:9"]
        assert main([*audit, "--output", str(out / "audit.json")]) == 0
        imported = ["data", "import", str(path), "--image_conversion", "ct_bone,frames=all:9"]
        assert main([*imported, "--output", str(out / "set")]) == 0
        with pytest.raises(DataError) as refused:
            read_set(str(path))
    shown = capfd.readouterr()
    told = [
        *everything_written([own_cache, out]),
        caplog.text.encode(),
        str(refused.value).encode(),
    ]
    told += [shown.out.encode(), shown.err.encode()]
    words = [part for value in PLANTED.values() for part in (value, *value.split("^"))]
    words += [hashlib.sha256(word.encode()).hexdigest()[:16] for word in words]
    words += [hashlib.sha256(f"patient:{PLANTED['PatientID']}".encode()).hexdigest()[:16]]
    everything = b"\n".join(told).lower()
    assert [word for word in words if word.lower().encode() in everything] == []
    assert "annotations burned into their pixels, such as 1.dcm" in caplog.text
    result = json.loads((out / "audit.json").read_text())
    converted = result["images"]["converted"]
    assert converted["conversion"] == "ct_lung,frames=all:9"
    assert converted["files"] == {"DICOM": 1, "DICOM series": 1}
    assert converted["pictures"] == {"window in Hounsfield units": 4}
    assert result["findings"]["identity"] == ["burned-in annotation: 1 file, such as 1.dcm"]
    assert len(result["findings"]["images"]) == 2
    lines = [json.loads(line) for line in (out / "set" / "votes.jsonl").read_text().splitlines()]
    assert [(line["case_id"], len(line["images"])) for line in lines] == [("a", 1), ("b", 3)]
    assert lines[0]["patient"] == lines[1]["patient"]
    assert lines[0]["patient"].startswith("dicom-")
    assert main([*audit, "--fail_on", "identity"]) == 1


def test_a_set_is_read_again_where_a_medical_image_changes(tmp_path: Path, own_cache: Path) -> None:
    write_series(tmp_path / "series", [1, 2])
    write_dicom(tmp_path / "one.dcm")
    path = votes(
        tmp_path, {"a": ["one.dcm"], "b": ["series"]}, {"image_conversion": "minmax,frames=all:9"}
    )
    read = lambda: [[ref.digest for ref in case.images] for case in read_cases(path)]  # noqa: E731
    first = read()
    indexes = len(list((own_cache / "index").iterdir()))
    assert (read(), len(list((own_cache / "index").iterdir()))) == (first, indexes)
    write_dicom(tmp_path / "one.dcm", RAMP[:, ::-1].copy())
    second = read()
    assert (first[0] != second[0], first[1]) == (True, second[1])
    write_dicom(tmp_path / "series" / "9.dcm", RAMP.T.copy(), InstanceNumber=9)
    assert read()[1] != second[1]
    (tmp_path / "one.dcm").unlink()
    assert "no file" in str(read_cases(path)[0].images[0].problem)
    shutil.rmtree(own_cache / "medical")
    assert read()[1] != second[1]  # made again


@pytest.mark.parametrize("form", ["option", "dataset.json", "dataset.yaml"])
def test_where_the_conversion_is_named(tmp_path: Path, form: str) -> None:
    shutil.copy(DICOM / "CT_small.dcm", tmp_path / "1.dcm")
    shutil.copy(NIFTI / "example4d.nii.gz", tmp_path / "2.nii.gz")
    rows = [
        {"prompt": f"q{n}", "chosen": "good", "rejected": "bad", "images": [name]}
        for n, name in enumerate(("1.dcm", "2.nii.gz"))
    ]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    asked = "medgemma-1.5-ct,frames=all:3"
    if form == "dataset.json":
        (tmp_path / "dataset.json").write_text(json.dumps({"image_conversion": asked}))
    elif form == "dataset.yaml":
        about = f"name: mine\nfiles: [rows.jsonl]\nimage_conversion: {asked}\n"
        (tmp_path / "dataset.yaml").write_text(about)
        path = tmp_path
    read = read_set(str(path), image_conversion=asked if form == "option" else None)
    assert read.image_conversion == asked
    assert [len(case.images) for case in read.cases] == [1, 3]
    assert [ref.name for ref in read.cases[1].images][1] == "2.nii.gz, picture 16 of 24"
    other = read_set(str(path), image_conversion="file_window")
    assert (other.image_conversion, other.digest != read.digest) == ("file_window", True)


def test_a_set_without_medical_images_has_no_conversion(votes_file: Callable[..., Path]) -> None:
    path = votes_file(vote())
    assert read_set(str(path), image_conversion="ct_lung").image_conversion is None
    assert read_set(str(path)).digest == read_set(str(path), image_conversion="ct_lung").digest


def test_pictures_of_a_series_stay_with_their_turn(tmp_path: Path) -> None:
    write_series(tmp_path / "series", [1, 2, 3])
    write_dicom(tmp_path / "one.dcm")
    answers = {"chosen": "good", "rejected": "bad"}
    turns = [
        {"role": "user", "content": "<image> What is this?"},
        {"role": "assistant", "content": "A CT."},
        {"role": "user", "content": "<image> And this?"},
    ]
    parts = [{"type": "image", "image": "series"}, {"type": "text", "text": "What is this?"}]
    own = [{"role": "user", "content": parts}, *turns[1:2], {"role": "user", "content": "Sure?"}]
    rows = [
        {"prompt": turns, "images": ["series", "one.dcm"], **answers},
        {"prompt": own, **answers},
    ]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    first, second = read_cases(path, "ct_lung,frames=all:5")
    assert [turn.images for turn in first.context] == [3, 0]
    assert [turn.images for turn in second.context] == [3, 0]
    assert (len(first.images), len(second.images)) == (4, 3)


def test_what_the_disk_says_while_an_image_is_converted_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an image that cannot be looked at is no medical one, but one with a problem."""
    write_dicom(tmp_path / "1.dcm")
    (tmp_path / "empty").mkdir()
    options = ImageOptions(None, parse_conversion("ct_lung"))
    (ref,) = file_images("empty", tmp_path, options=options)
    assert "a folder without DICOM files" in str(ref.problem)
    write_series(tmp_path / "long", [1, 2, 3])
    monkeypatch.setattr(converter, "MOST_FILES", 2)
    (ref,) = file_images("long", tmp_path, options=options)
    assert "holds more than 2 DICOM files" in str(ref.problem)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(image_references, "convert_files", full)
    with pytest.raises(OSError, match="No space left"):
        file_images("1.dcm", tmp_path, options=options)
    monkeypatch.setattr(image_references, "kind_of_file", full)
    (ref,) = file_images("1.dcm", tmp_path, options=options)
    assert (ref.problem, bool(ref.digest)) == (None, True)


def test_medical_images_in_cells_and_data_urls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import base64

    stored = (DICOM / "CT_small.dcm").read_bytes()
    row = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    cell = [{**row, "images": [{"bytes": stored, "path": None}]}]
    url = f"data:application/dicom;base64,{base64.b64encode(stored).decode()}"
    table = write_parquet(tmp_path / "rows.parquet", cell)
    lines = write_lines(tmp_path / "rows.jsonl", [{**row, "images": [url]}])
    expected = digests(DICOM / "CT_small.dcm", "ct_lung")
    read, count = StoredCell.__call__, 0

    def counted(cell: StoredCell) -> bytes:
        nonlocal count
        count += 1
        return read(cell)

    monkeypatch.setattr(StoredCell, "__call__", counted)
    list(read_cases(table, "ct_lung"))
    assert count == 1
    for path in (table, lines):
        (case,) = read_cases(path, "ct_lung")
        assert [ref.digest[:12] for ref in case.images] == expected
        with pytest.raises(DataError, match="--image_conversion"):
            read_cases(path)


def test_sets_that_were_converted_differently_do_not_mix(tmp_path: Path) -> None:
    for name, conversion in (("a", "ct_lung"), ("b", "ct_bone")):
        write_dicom(tmp_path / name / "1.dcm", RAMP)
        votes(tmp_path / name, {name: ["1.dcm"]}, {"image_conversion": conversion})
    both = f"{tmp_path / 'a'},{tmp_path / 'b'}"
    with pytest.raises(ConfigError, match="in different ways"):
        read_training_set(both)
    mixed = read_training_set(both, read=partial(read_set, image_conversion="ct_lung"))
    assert mixed.converted["files"] == {"DICOM": 2}


@pytest.mark.usefixtures("own_cache")
def test_agreement_and_derived_pairs_take_a_conversion(tmp_path: Path) -> None:
    write_dicom(tmp_path / "1.dcm", RAMP)
    rows = [vote("a", name, image=..., images=["1.dcm"]) for name in ("anna", "ben")]
    source = write_lines(tmp_path / "votes.jsonl", rows)
    asked = {"question": "Is there a mass?", "answer": "no", "image": "1.dcm"}
    questions = write_lines(tmp_path / "vqa.jsonl", [asked])
    build = ["build", "--from", "vqa", str(questions), "--output", str(tmp_path / "pairs")]
    for command in (["agreement", str(source)], build):
        assert main(["data", *command]) == 2
        assert main(["data", *command, "--image_conversion", "ct_lung"]) == 0
    assert len(read_cases(tmp_path / "pairs")[0].images) == 1

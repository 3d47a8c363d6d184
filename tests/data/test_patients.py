"""Patients and studies: all of a case count, rows and files are compared, no export names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files import picture, vote, write_lines
from medical_samples import RAMP, write_dicom
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from planted import found

from medrm.cli import main
from medrm.data.case_set import read_set
from medrm.data.mixture import read_training_set
from medrm.data.pseudonyms import pseudonyms, salt
from medrm.data.splits import split_by_cluster
from medrm.exchange.exporters import EXPORTERS

CT = ("--image_conversion", "ct_lung")


def imported(source: Path, output: Path, *options: str) -> tuple[dict[str, Any], Path]:
    """The report of an import, and its folder."""
    command = ["data", "import", str(source), "--output", str(output), *options]
    assert main(command) == 0
    return json.loads((output / "import_report.json").read_text("utf-8")), output


def scans(folder: Path, patients: dict[str, str]) -> None:
    """A CT of each name, of a patient; `empty` ones show the same pixels."""
    for number, (name, patient) in enumerate(patients.items()):
        stored = RAMP * 0 if name.startswith("empty") else RAMP + np.int16(number)
        study = f"1.2.{number}"
        write_dicom(folder / f"{name}.dcm", stored, PatientID=patient, StudyInstanceUID=study)


def shown(case_id: str, *images: str, reader: str = "anna", **stated: Any) -> dict[str, Any]:
    paths = [f"{name}.dcm" for name in images]
    return vote(case_id, reader, image=..., images=paths, question=f"{case_id}?", **stated)


@pytest.mark.parametrize("form", ["read", "imported"])
def test_a_case_of_two_patients_keeps_both_in_one_part_of_a_split(
    tmp_path: Path, form: str
) -> None:
    """In an order in which the first patient alone would leave the second in another part."""
    others = {f"other{n}": f"O{n}" for n in range(12)}
    scans(tmp_path, {"a": "P1", "b": "P2", "b2": "P2", "a2": "P1"} | others)
    rows = [shown("both", "a", "b"), shown("second", "b2"), shown("first", "a2")]
    rows += [shown(name, name) for name in others]
    source = write_lines(tmp_path / "votes.jsonl", rows)
    if form == "imported":
        _, source = imported(source, tmp_path / "set", *CT)
    cases = read_set(str(source), image_conversion="ct_lung").cases
    clusters = {case.case_id: case.cluster for case in cases}
    assert clusters["both"] == clusters["first"] == clusters["second"]
    assert len({*clusters.values()}) == 1 + len(others)
    for seed in range(8):
        parts = dict(zip(clusters, split_by_cluster(cases, (0.5, 0.5), seed), strict=True))
        assert parts["both"] == parts["first"] == parts["second"]


def test_rows_and_files_that_name_other_patients_are_told(tmp_path: Path) -> None:
    scans(tmp_path, {"a": "P1", "b": "P2", "c": "P3", "empty1": "P4", "empty2": "P5"})
    alike = [shown("1", "a", patient="X"), shown("2", "b", patient="Y"), shown("3", "c")]
    # Two readers of pictures that look the same, and are of two patients.
    alike += [shown(n, f"empty{n[-1]}", reader=r) for r in ("anna", "ben") for n in ("4.1", "4.2")]
    report, first = imported(write_lines(tmp_path / "1.jsonl", alike), tmp_path / "first", *CT)
    assert (report["not_taken"], report["notes"]) == (0, [])
    lines = [json.loads(line) for line in (first / "votes.jsonl").read_text().splitlines()]
    assert [lines[0]["patient"][0], lines[0]["patient"][1][:6]] == ["X", "dicom-"]
    assert lines[2]["patient"].startswith("dicom-")
    cases = read_set(str(first)).cases
    assert len({case.cluster for case in cases}) == 4  # those of one picture are one

    told = "do not fit together in 2 rows, such as line 1, line 2;"
    for differing in (
        [shown("1", "a", patient="X"), shown("2", "b", patient="X")],
        [shown("1", "a", patient="X"), shown("2", "a", patient="Y")],
        [
            shown("1", "a", patient="P2"),
            shown("2", "b", patient="P1"),
            shown("3", "c", patient="P3"),
        ],
        [shown("1", "a", "b", patient="X"), shown("2", "b", "c", patient="Y")],
    ):
        path = write_lines(tmp_path / "2.jsonl", differing)
        report, second = imported(path, tmp_path / "second", *CT, "--overwrite_output_dir")
        (note,) = report["notes"]
        assert note.startswith("Patient of rows")
        assert told in note
        assert len({case.cluster for case in read_set(str(second)).cases}) < 3
    exact = [shown("3", "c", patient="P3"), shown("1", "a", patient=" P1 ", study="1.2.0")]
    report, _ = imported(write_lines(tmp_path / "3.jsonl", exact), tmp_path / "third", *CT)
    assert report["notes"] == []


def test_what_is_exported_has_hashes_and_comes_back(tmp_path: Path) -> None:
    """Names, numbers and UIDs in rows, headers and names of files are in no form of export."""
    tags = {
        "PatientName": "Zqname^First", "PatientID": "zqmrn-1", "AccessionNumber": "zqaccession",
        "StudyInstanceUID": "1.2.999.4711.1", "PatientBirthDate": "19580613",
    }  # fmt: skip
    scan = write_dicom(tmp_path / "zqfolder" / "zqfile-mueller.dcm", **tags)
    stated = {"patient": "zqmrn-2", "study": "1.2.999.4711.2", "images": [scan.name]}
    rows = [
        vote(case_id, reader, image=..., **stated)
        for case_id in ("c1", "c2")
        for reader in ("anna", "ben")
    ]
    source = write_lines(scan.parent / "votes.jsonl", rows)
    chosen = tmp_path / "zqcases.txt"
    chosen.write_text("c1\nc2\n")
    words = ("zqname", "zqmrn", "zqaccession", "1.2.999", "19580613", "zqfile", "zqfolder")
    for form in EXPORTERS:
        output = tmp_path / form
        command = ["data", "export", str(source), "--to", form, "--output", str(output), *CT]
        assert main([*command, "--cases", str(chosen)]) == 0
        told = [hit for hit in found([output], [*words, str(tmp_path)]) if "zqfolder" not in hit]
        assert told == [], form
    row = json.loads((tmp_path / "trl" / "accuracy.jsonl").read_text().splitlines()[0])
    assert [hashed[:6] for hashed in row["patient"]] == ["keyed-", "dicom-"]
    of_trainer = read_set(str(tmp_path / "trl" / "accuracy.jsonl")).cases
    assert len({case.cluster for case in of_trainer}) == 1

    # A case that comes back alone is of the same patient, and beside the others has its id again.
    project = tmp_path / "label_studio"
    tasks = json.loads((project / "tasks.json").read_text())
    result = {"type": "choices", "from_name": "accuracy", "to_name": "question"}
    result["value"] = {"choices": ["A"]}
    for task in tasks:
        task["annotations"] = [{"id": 1, "completed_by": 7, "result": [result]}]
    (project / "export.json").write_text(json.dumps(tasks))
    _, alone = imported(project / "export.json", tmp_path / "alone")
    others = [vote("c3", image=..., images=[], patient="zqmrn-2", question="Why?")]
    other = write_lines(tmp_path / "other.jsonl", others)
    both = read_training_set(f"{other},{alone}")
    assert (len(both.cases), len({case.cluster for case in both.cases})) == (3, 1)
    join = ("--join", str(source.parent), *CT)
    report, joined = imported(project / "export.json", tmp_path / "joined", *join)
    assert (report["not_taken"], report["lines"]) == (0, 6)
    lines = [json.loads(line) for line in (joined / "votes.jsonl").read_text().splitlines()]
    assert {line["patient"][0] for line in lines} == {"zqmrn-2"}
    assert len(read_set(str(joined)).cases[0].labels) == 1


def test_hashes_of_another_machine_are_told_and_stay_on_its_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on(machine: str) -> None:
        monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / machine))
        salt.cache_clear()

    scans(tmp_path, {"a": "P1", "b": "P1", "c": "P2"})
    on("there")
    first = write_lines(tmp_path / "1.jsonl", [shown("1", "a"), shown("2", "c")])
    _, there = imported(first, tmp_path / "there set", *CT)
    on("here")
    join = ("--join", str(there), *CT)
    # A further reader on the same cases: these stay as they are.
    again = write_lines(tmp_path / "2.jsonl", [shown("1", "a", reader="ben")])
    report, both = imported(again, tmp_path / "again", *join)
    assert (report["not_taken"], report["notes"]) == (0, [])
    assert len({case.cluster for case in read_set(str(both)).cases}) == 2
    # The same patient on another case: nobody can tell.
    more = write_lines(tmp_path / "3.jsonl", [shown("3", "b")])
    for rows, told in ((more, 1), (write_lines(tmp_path / "4.jsonl", [vote("3", images=[])]), 0)):
        report, both = imported(rows, tmp_path / "told", *join, "--overwrite_output_dir")
        assert len(report["notes"]) == told
    report, both = imported(more, tmp_path / "told", *join, "--overwrite_output_dir")
    assert report["notes"][0].startswith("there set states patients as hashes by the key of ano")
    assert len({case.cluster for case in read_set(str(both)).cases}) == 3
    # With the key of the other machine the patient is one.
    (tmp_path / "shared" / "medical").mkdir(parents=True)
    key = (tmp_path / "there" / "medical" / "salt").read_bytes()
    (tmp_path / "shared" / "medical" / "salt").write_bytes(key)
    on("shared")
    report, both = imported(more, tmp_path / "shared set", *join)
    assert report["notes"] == []
    assert len({case.cluster for case in read_set(str(both)).cases}) == 2
    salt.cache_clear()


@pytest.mark.parametrize("first", ["P1", "keyed-" + "a" * 32])
@pytest.mark.parametrize("keys", ["unknown", "other"])
def test_another_patient_of_a_case_contradicts_it_unless_by_another_key(
    tmp_path: Path, first: str, keys: str
) -> None:
    report_file = tmp_path / "first" / "import_report.json"
    lines = [vote("1", image=..., images=[], patient=first)]
    report_file.parent.mkdir()
    write_lines(report_file.with_name("votes.jsonl"), lines)
    if keys == "other":
        stated_by = report_file if first.startswith("keyed") else tmp_path / report_file.name
        stated_by.write_text(json.dumps({"hash_key": "0" * 16}))
    (hashed,) = pseudonyms(["patient:P2"])["patient"]
    other = "P2" if first.startswith("keyed") and keys == "other" else hashed
    rows = [vote("1", "ben", image=..., images=[], patient=other)]
    rows.append(vote("2", "ben", image=..., images=[], question="Why?"))
    second = write_lines(tmp_path / "rows.jsonl", rows)
    report, joined = imported(second, tmp_path / "set", "--join", str(tmp_path / "first"))
    written = [json.loads(line) for line in (joined / "votes.jsonl").read_text().splitlines()]
    assert {line["patient"] for line in written if line["case_id"] == "1"} == {first}
    reasons = [row["reason"] for row in report["unread"]]
    assert len(written) == (3 if keys == "other" else 2)
    assert all("case '1' has other patient than on" in reason for reason in reasons)


def test_images_that_hold_texts_are_counted(tmp_path: Path) -> None:
    texts, exif = PngInfo(), Image.Exif()
    texts.add_text("Patient", "Mx Doe")
    exif[0x013B] = "Mx Doe"
    for name, more in (("1.png", {"pnginfo": texts}), ("2.jpg", {"exif": exif}), ("3.png", {})):
        picture(int(name[0])).save(tmp_path / name, **more)
    picture(4).save(tmp_path / "4.jpg", comment="Mx Doe")
    picture(5).save(tmp_path / "5.gif", comment="Mx Doe")
    picture(6).save(tmp_path / "6.tif", description="Mx Doe")
    for name in ("7.jpg", "8.gif", "9.tif"):
        picture(int(name[0])).save(tmp_path / name)
    rows = [vote(path.name, image=path.name) for path in sorted(tmp_path.iterdir())]
    source = write_lines(tmp_path / "votes.jsonl", [*rows, vote("again", image="1.png")])
    for form in ("trl", "hub", "sheet"):
        command = ["data", "export", str(source), "--to", form, "--output", str(tmp_path / form)]
        assert main(command) == 0
        report = json.loads((tmp_path / form / "export_report.json").read_text())
        assert "which may say who somebody is: 5." in report["notes"][-1]

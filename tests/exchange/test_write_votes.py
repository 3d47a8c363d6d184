"""What an import writes: a set that can be read, and a report of all that is not in it."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from PIL import Image

from medrm.cli import main
from medrm.data.case_set import read_set
from medrm.data.medical.conversions import parse_conversion
from medrm.errors import ConfigError, DataError, raise_problems
from medrm.exchange.imported import Imported, Importer, Opened, unread
from medrm.exchange.open_source import open_source
from medrm.exchange.write_votes import write_votes


def png(grey: int) -> bytes:
    stored = io.BytesIO()
    Image.new("L", (8, 8), grey).save(stored, "PNG")
    return stored.getvalue()


def toy(opened: Opened) -> Imported:
    """Takes each row as a line, but for those that say no."""
    imported = Imported(iter(()), notes=["a toy"])

    def lines() -> Any:
        for place, row in opened.records:
            if row.get("no"):
                imported.unread.append(unread(place, "it says no", row))
            else:
                yield place, row

    imported.lines = lines()
    return imported


TOY = Importer("toy", lambda opened: True, toy)


def line(case_id: str, annotator: str, vote: str = "A", **changes: Any) -> dict[str, Any]:
    shared = {"images": ["scan.png"], "question": "Q?", "answer_a": "No.", "answer_b": "Yes."}
    return {
        "case_id": case_id,
        "annotator": annotator,
        **shared,
        "votes": {"overall": vote},
    } | changes


def write(path: Path, *rows: object) -> Opened:
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return open_source(path)


def test_what_cannot_be_read_is_listed_and_the_rest_is_a_set(tmp_path: Path) -> None:
    (tmp_path / "scan.png").write_bytes(png(10))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "same.PNG").write_bytes(png(10))
    (tmp_path.parent / "outside.png").write_bytes(png(1))
    (tmp_path / "other.png").write_bytes(png(50))
    inline = "data:image/png;base64," + base64.b64encode(png(30)).decode()
    opened = write(
        tmp_path / "rows.jsonl",
        line("1", "anna", extra={"Station": 3}, comment="unsharp"),
        "{no JSON",
        line("1", "ben", "tie", images=["sub\\same.PNG"]),
        line("1", "ben", "B"),
        line("1", "carla", question="Another?"),
        line("2", "anna", images=["lost.png"]),
        line("3", "anna", no=True),
        line("4", "anna", images=["../outside.png"]),
        line("5", "anna", images=[inline]),
        line("6", "anna", "C"),
        line("1", "dora", images=["other.png"]),
    )
    report = write_votes(tmp_path / "set", opened, TOY)
    assert json.loads((tmp_path / "set" / "import_report.json").read_text()) == report
    reasons = {row["place"]: row["reason"] for row in report["unread"]}
    assert list(reasons) == [f"line {number}" for number in (2, 4, 5, 6, 7, 8, 10, 11)]
    assert "no valid JSON" in reasons["line 2"]
    assert "'ben' votes twice on 'overall' of case '1', also on line 3" in reasons["line 4"]
    assert "case '1' has other question than on line 1" in reasons["line 5"]
    assert reasons["line 6"] == "there is no file 'lost.png'"
    assert reasons["line 7"] == "it says no"
    assert "leads outside the data folder" in reasons["line 8"]
    assert "'overall' is 'C'" in reasons["line 10"]
    assert "case '1' has other images" in reasons["line 11"]
    assert len(list((tmp_path / "set" / "images").iterdir())) == 2  # none of rows not taken
    counts = {key: report[key] for key in ("rows", "lines", "cases", "images", "without_image")}
    assert counts == {"rows": 11, "lines": 3, "cases": 2, "images": 2, "without_image": 2}
    assert report["annotators"] == {"anna": 2, "ben": 1}
    assert report["notes"] == ["a toy"]
    assert report["importer"] == "toy"
    cases = {case.case_id: case for case in read_set(str(tmp_path / "set")).cases}
    assert cases["1"].images[0].read() == png(10)
    assert cases["5"].images[0].read() == png(30)
    assert cases["1"].labels["overall"].shares == (0.5, 0.5, 0)
    kept = json.loads((tmp_path / "set" / "votes.jsonl").read_text().splitlines()[0])
    assert kept["extra"] == {"Station": 3}
    assert kept["comment"] == "unsharp"


def test_images_of_a_joined_set_keep_their_patient(tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    scan = pydicom.dcmread(Path(pydicom.__file__).parent / "data" / "test_files" / "CT_small.dcm")
    scan.PatientID = "P-77"
    scan.save_as(first / "scan.dcm")
    write(
        first / "votes.jsonl",
        line("1", "anna", images=["scan.dcm"]),
        line("2", "anna", images=None),
        line("3", "anna", images=["lost.png"]),
    )
    opened = write(tmp_path / "rows.jsonl", line("4", "ben", images=[]))
    opened.image_conversion = parse_conversion("ct_lung")
    report = write_votes(tmp_path / "set", opened, TOY, first)
    places = [row["place"] for row in report["unread"]]
    assert places == ["first/votes.jsonl line 2", "first/votes.jsonl line 3"]
    assert report["converted"]["files"] == {"DICOM": 1}
    kept, _ = map(json.loads, (tmp_path / "set" / "votes.jsonl").read_text().splitlines())
    assert kept["patient"].startswith("dicom-")
    assert "P-77" not in (tmp_path / "set" / "votes.jsonl").read_text()


def test_nothing_taken_and_folders_in_use_are_refused(tmp_path: Path) -> None:
    opened = write(tmp_path / "rows.jsonl", line("1", "anna", images=["lost.png"]))
    with pytest.raises(
        DataError, match=r"none of its 1 row is taken\.\n- line 1: there is no file"
    ):
        write_votes(tmp_path / "set", opened, TOY)
    assert not (tmp_path / "set").exists()
    opened = write(tmp_path / "rows.jsonl", line("1", "anna", images=[]))
    write_votes(tmp_path / "set", opened, TOY)
    with pytest.raises(ConfigError, match="--overwrite_output_dir"):
        write_votes(tmp_path / "set", opened, TOY)
    write_votes(tmp_path / "set", opened, TOY, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match="what medrm has not written"):
        write_votes(tmp_path / "mine", opened, TOY, overwrite=True)


def test_the_command_imports_votes_in_our_own_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line("1", "anna", images=[]), line("1", "ben", images=[]) | {"case_id": True}]
    (tmp_path / "rows.json").write_text(json.dumps([*rows, 3]))
    argv = ["data", "import", str(tmp_path / "rows.json"), "--output", str(tmp_path / "set")]
    assert main(argv) == 0
    assert "not taken: 2, 0 of them for an image" in capsys.readouterr().out
    assert main(argv) == 2  # it is there
    assert [case.case_id for case in read_set(str(tmp_path / "set")).cases] == ["1"]


def test_what_is_no_picture_is_never_copied(tmp_path: Path) -> None:
    stored = (Path(pydicom.__file__).parent / "data/test_files/CT_small.dcm").read_bytes()
    (tmp_path / "no_preamble.dcm").write_bytes(stored[128:])
    (tmp_path / "shifted.dcm").write_bytes(b" " + stored[400:])
    (tmp_path / "shifted.png").write_bytes(b" " + stored[400:])
    (tmp_path / "picture.dcm").write_bytes(png(3))
    (tmp_path / "cut.png").write_bytes(png(4)[:-30])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"text")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "good.png").write_bytes(png(5))
    names = [path.name for path in sorted(tmp_path.iterdir())]
    exported = f"images/{'a' * 64}.png"
    rows = [line(name, "anna", images=[name]) for name in [*names, exported]]
    opened = write(tmp_path / "rows.jsonl", *rows, line("cut.png", "ben", images=["cut.png"]))
    opened.image_conversion = parse_conversion("ct_lung")
    report = write_votes(tmp_path / "set", opened, TOY)
    assert (report["cases"], report["images"], report["without_image"]) == (2, 2, 9)
    taken = [json.loads(row) for row in (tmp_path / "set/votes.jsonl").read_text().splitlines()]
    assert [row["case_id"] for row in taken] == ["good.png", "no_preamble.dcm"]
    copies = list((tmp_path / "set" / "images").iterdir())
    assert {copy.suffix for copy in copies} == {".png"}
    assert not any(b"CompressedSamples" in copy.read_bytes() for copy in copies)
    reasons = [row["reason"] for row in report["unread"]]
    assert sum("cannot be decoded" in reason for reason in reasons) == 5
    assert sum("named as DICOM" in reason for reason in reasons) == 2
    assert "beside cases.jsonl" in reasons[-2]


def test_a_join_that_adds_no_vote_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", line("1", "anna", images=[]))
    write_votes(tmp_path / "first", first, TOY)
    opened = write(tmp_path / "rows.jsonl", line("1", "anna", images=[]))
    with pytest.raises(DataError, match="votes twice"):
        write_votes(tmp_path / "set", opened, TOY, tmp_path / "first")
    assert not (tmp_path / "set").exists()


def test_columns_left_over_and_votes_not_taken_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rows.csv").write_text(
        "Case,Question,Answer A,Answer B,Image,Anna,Ben,Station\n"
        "1,Q?,yes,no,,A,B,3\n2,Q?,yes,no,a.png,A,B,3\n3,Q?,yes,no,a.png,C,D,3\n"
    )
    (tmp_path / "map.yaml").write_text(
        "columns: {case_id: Case, question: Question, answer_a: Answer A, answer_b: Answer B, "
        "image: Image}\n"
        "votes: [{column: Anna, dimension: overall, annotator: Anna}, "
        "{column: Ben, dimension: overall, annotator: Ben}]\n"
        "values: {A: A, B: B}\n"
    )
    (tmp_path / "a.png").write_bytes(png(1))
    argv = ["data", "import", str(tmp_path / "rows.csv"), "--output", str(tmp_path / "set")]
    assert main([*argv, "--mapping", str(tmp_path / "map.yaml")]) == 0
    report = json.loads((tmp_path / "set" / "import_report.json").read_text())
    counts = ("not_taken", "rows_not_taken", "without_image", "rows_without_image")
    assert [report[name] for name in counts] == [3, 2, 1, 1]
    assert report["notes"][-1] == "Not interpreted, and kept in `extra` (lines): 'Station' (2)."
    shown = " ".join(capsys.readouterr().out.split())
    assert "on 1 case by 2 readers, 1 image" in shown
    assert "not taken: 3 votes or lines, in 2 rows, 1 of them for an image" in shown
    assert "'Station' (2)" in shown


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("e.json", "[]", "holds no rows"),
        ("e.json", "5", "holds no rows"),
        ("e.json", "", "holds no rows"),
        ("e.jsonl", "", "holds no rows"),
        ("e.csv", "Case,Image\n", "holds no rows"),
        ("e.json", "[1]", "it is no object"),
        ("e.json", '{"data": [{"Case": 1}]}', "rows stand in a list of objects"),
        ("e.jsonl", '{"prompt": "q", "chosen": "a", "rejected": "b"}', "--train_data"),
        ("e.jsonl", '{"messages": [], "rejected_response": "b"}', "--train_data"),
    ],
)
def test_what_holds_nothing_to_import_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str, told: str
) -> None:
    (tmp_path / name).write_text(content)
    assert main(["data", "import", str(tmp_path / name), "--output", str(tmp_path / "set")]) == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_parquet_names_its_columns_before_a_row_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"case": ["1"], "scan": [png(1)]}), tmp_path / "rows.parquet")
    with monkeypatch.context() as patched:
        patched.delattr("medrm.exchange.open_source.plain_batches")
        opened = open_source(tmp_path / "rows.parquet")
    assert opened.columns == ("case", "scan")
    assert [row for _, row in opened.records] == [{"case": "1", "scan": png(1)}]


def test_a_folder_and_lost_lines_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        open_source(tmp_path)
    (tmp_path / "rows.csv").write_text('a,b\n1,2\n3,"4\n5,6\n7,8\n')
    opened = open_source(tmp_path / "rows.csv")
    assert len(list(opened.records)) == 1
    assert "lines 3 to 5 of the text; all 3 lines are lost" in opened.records.unread[0].reason


def test_the_command_to_go_on_with_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my study.csv").write_text("Case,Colour\n1,red\n")
    argv = ["data", "import", str(tmp_path / "my study.csv"), "--output", str(tmp_path / "set")]
    assert main(argv) == 2
    assert f"`medrm data import '{tmp_path}/my study.csv' --suggest" in capsys.readouterr().err


def test_a_problem_is_counted_in_the_singular() -> None:
    with pytest.raises(DataError, match=r"^a\.csv has 1 problem\."):
        raise_problems(DataError, "a.csv", ["line 1: it is empty"])

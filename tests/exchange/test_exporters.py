"""Exports: what other programs are given, what is left out of it, and that it comes back."""

from __future__ import annotations

import csv
import io
import json
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from exported_set import FORMULA, HARD, LONG, ODD, content, drafts, export, line, votes
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from medrm.cli import main
from medrm.data.case_set import read_cases
from medrm.data.images import bytes_image
from medrm.data.pseudonyms import pseudonyms
from medrm.exchange import case_files
from medrm.exchange.case_files import ImageCopies
from medrm.exchange.exported import Export, Exporter
from medrm.exchange.exporters import EXPORTERS
from medrm.schema import Case, PairLabel


def test_a_label_studio_project_shows_answers_in_a_drawn_order_and_tells_no_more(
    source: Path, tmp_path: Path
) -> None:
    report = export(source, "label_studio", tmp_path / "p", "--seed", "2")
    assert report["left_out"] == [
        {"reason": "an image cannot be read", "count": 1, "examples": ["lost"]}
    ]
    view = ElementTree.parse(tmp_path / "p" / "labelling_config_2_answers.xml").getroot()
    choices = {tag.get("name"): [c.get("value") for c in tag] for tag in view.iter("Choices")}
    assert choices == {
        "overall": ["A", "tie", "B", "both unacceptable"],
        "overall_strength": ["slightly", "strongly"],
        "dimension_2": ["A", "tie", "B", "both unacceptable"],
        "dimension_2_strength": ["slightly", "strongly"],
        "confidence": ["low", "medium", "high"],
    }
    assert ODD in [tag.get("value") for tag in view.iter("Header")]
    assert {tag.get("choice") for tag in view.iter("Choices")} == {"single-radio"}
    named = {tag.get("name") for tag in view.iter() if tag.get("name")}
    assert {tag.get("toName") for tag in view.iter() if tag.get("toName")} <= named
    three = ElementTree.parse(tmp_path / "p" / "labelling_config_3_answers.xml").getroot()
    ranks = [tag.get("name") for tag in three.iter("Choices")][:3]
    assert ranks == ["overall_rank_1", "overall_rank_2", "overall_rank_3"]

    tasks = json.loads((tmp_path / "p" / "tasks_2_answers.json").read_text("utf-8"))
    stored, orders = drafts(source), set()
    for data in (task["data"] for task in tasks):
        draft, order = stored[data["case_id"]], data["order"]
        assert [draft.answers[i] for i in order] == [data["answer_1"], data["answer_2"]]
        assert data["question"] == draft.question
        assert data["seed"] == 2
        assert data["dimensions"] == {"overall": "overall", "dimension_2": ODD}
        for address in data["images"]:
            image = tmp_path / "p" / address.removeprefix("/data/local-files/?d=")
            with Image.open(image) as shown:
                assert shown.format == "PNG"
                assert shown.size == (24, 16)
        orders.add(tuple(order))
    assert orders == {(0, 1), (1, 0)}
    # Every variable of the configuration is in every task.
    used = {tag.get("value", "")[1:] for tag in view.iter() if tag.get("value", "")[:1] == "$"}
    assert {name.partition("[")[0] for name in used} <= set(tasks[0]["data"])
    shown = json.dumps(tasks) + (tmp_path / "p" / "labelling_config_2_answers.xml").read_text()
    assert not [word for word in ("model-x", "patient-", "anna", "ben", "scan") if word in shown]

    again = export(source, "label_studio", tmp_path / "q", "--seed", "2", "--embed_images")
    assert again["rows"] == report["rows"] == {"tasks": 4}
    embedded = json.loads((tmp_path / "q" / "tasks_2_answers.json").read_text("utf-8"))
    assert [task["data"]["order"] for task in embedded] == [task["data"]["order"] for task in tasks]
    assert embedded[0]["data"]["images"][0].startswith("data:image/png;base64,iVBOR")


@pytest.mark.parametrize("table", ["csv", "xlsx", "ods"])
def test_votes_in_a_sheet_come_back_as_they_were(source: Path, tmp_path: Path, table: str) -> None:
    folder = tmp_path / "sheet"
    export(source, "sheet", folder, "--table", table, "--with_votes")
    before, after = drafts(source), {}
    for answers in (2, 3):
        back = tmp_path / f"back{answers}"
        file = folder / f"votes_{answers}_answers.{table}"
        assert main(["data", "import", str(file), "--output", str(back)]) == 0
        after |= drafts(back)
    assert after.keys() == before.keys() - {"lost"}
    for case_id, draft in after.items():
        assert content(draft) == content(before[case_id])
        assert votes(draft) == votes(before[case_id])
    (remark,) = after["turns"].remarks
    assert remark.comment == "- none"


def test_a_text_in_a_sheet_is_never_a_formula(source: Path, tmp_path: Path) -> None:
    import openpyxl

    export(source, "sheet", tmp_path / "x", "--with_votes")
    export(source, "sheet", tmp_path / "c", "--with_votes", "--table", "csv")
    sheet = openpyxl.load_workbook(tmp_path / "x" / "votes_2_answers.xlsx").active
    cells = [cell for row in sheet.iter_rows() for cell in row if cell.value is not None]
    assert {cell.data_type for cell in cells} == {"s"}
    assert FORMULA in [cell.value for cell in cells]
    with (tmp_path / "c" / "votes_2_answers.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    assert not [cell for row in rows for cell in row if cell.strip()[:1] in ("=", "+", "-", "@")]
    assert "'" + FORMULA in [cell for row in rows for cell in row]


def test_a_reader_fills_a_sheet_and_only_what_is_asked(source: Path, tmp_path: Path) -> None:
    import openpyxl

    folder = tmp_path / "sheet"
    export(source, "sheet", folder)
    path = folder / "votes_2_answers.xlsx"
    book = openpyxl.load_workbook(path)
    sheet = book.active
    columns = {cell.value: cell.column for cell in sheet[1]}
    assert sheet.protection.sheet
    unlocked = {name for name, n in columns.items() if not sheet.cell(2, n).protection.locked}
    asked = {f"{word}: {name}" for word in ("vote", "strength") for name in ("overall", ODD)}
    assert unlocked == asked | {"annotator", "confidence", "reason", "comment"}
    listed = {
        next(iter(v.sqref.ranges)).min_col: v.formula1
        for v in sheet.data_validations.dataValidation
    }
    assert listed[columns["vote: overall"]] == '"A,tie,B,neither"'
    assert sheet.cell(2, columns["image 1"]).hyperlink.target.startswith("images/")
    assert len(sheet._images) == 4  # one of each image, at most, of three cases
    hidden = [
        name
        for name, n in columns.items()
        if sheet.column_dimensions[openpyxl.utils.get_column_letter(n)].hidden
    ]
    assert hidden == ["medrm_sheet"]

    def fill(row: int, **cells: str) -> None:
        for name, value in cells.items():
            sheet.cell(row, columns[name.replace("__", ": ")], value)

    fill(2, annotator="carla", vote__overall="a", strength__overall="strongly", confidence="high")
    fill(3, vote__overall="both unacceptable", reason="+ no")
    fill(4, vote__overall="left")
    for row, text in ((1, "answer ok"), (2, "see me")):
        sheet.cell(row, len(columns) + 1, text)
    book.save(path)
    back = tmp_path / "back"
    assert main(["data", "import", str(path), "--output", str(back)]) == 0
    before, after = drafts(source), drafts(back)
    first, second, _third = (sheet.cell(row, columns["case_id"]).value for row in (2, 3, 4))
    shown_first = sheet.cell(2, columns["answer A"]).value
    assert set(after) == {first, second}
    (vote,) = after[first].votes["overall"]
    assert before[first].answers[vote.value] == shown_first
    assert (vote.annotator, vote.strength, vote.confidence) == ("carla", "strongly", "high")
    (vote,) = after[second].votes["overall"]
    assert (vote.annotator, vote.value, vote.reason) == ("carla", "neither", "+ no")
    assert all(content(after[name]) == content(before[name]) for name in after)
    report = json.loads((back / "import_report.json").read_text("utf-8"))
    assert report["notes"][-1].endswith("kept in `extra` (lines): 'answer ok' (1).")
    reasons = [row["reason"] for row in report["unread"]]
    assert reasons[0].startswith("'overall' is 'left'; accepted are A, tie, B, neither")

    # Filled sheets are not replaced, and one away from its cases says where it belongs.
    again = ["data", "export", str(source), "--to", "sheet", "--output", str(folder)]
    assert main([*again, "--overwrite_output_dir"]) == 2
    moved = tmp_path / "moved.xlsx"
    moved.write_bytes(path.read_bytes())
    assert main(["data", "import", str(moved), "--output", str(tmp_path / "none")]) == 2


def test_cases_beside_a_sheet_are_those_of_an_export(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(source, "sheet", tmp_path / "p", "--table", "csv")
    path = tmp_path / "p" / "votes_2_answers.csv"
    cases = (tmp_path / "p" / "cases.jsonl").read_text("utf-8").splitlines(True)
    foreign = '{"case_id": "007"}\n'
    for lines, told in (
        (foreign, "is not beside it"),
        (cases[0] + foreign, "line 2: it is no"),
        (foreign + cases[0], "line 1: it is no"),
    ):
        (tmp_path / "p" / "cases.jsonl").write_text(lines, "utf-8")
        assert main(["data", "import", str(path), "--output", str(tmp_path / "none")]) == 2
        assert told in " ".join(capsys.readouterr().err.split())


def test_a_row_that_shows_another_case_than_its_hidden_cell_is_not_taken(
    source: Path, tmp_path: Path
) -> None:
    import openpyxl

    folder = tmp_path / "sheet"
    export(source, "sheet", folder)
    for name, word in (
        ("medrm_sheet", "names case"),
        ("case_id", "its 'case_id' is"),
        ("answer A", "its 'answer A' is"),
        ("question", "its 'question' is"),
    ):
        book = openpyxl.load_workbook(folder / "votes_2_answers.xlsx")
        sheet = book.active
        columns = {cell.value: cell.column for cell in sheet[1]}
        for row in (2, 3, 4):
            sheet.cell(row, columns["annotator"], "carla")
            sheet.cell(row, columns["vote: overall"], "A")
        sheet.cell(1, columns[f"vote: {ODD}"], "Stimme")
        second, third = (sheet.cell(row, columns[name]) for row in (2, 3))
        second.value, third.value = third.value, second.value
        second.data_type = third.data_type = "s"
        book.save(folder / "filled.xlsx")
        back = tmp_path / f"back {name}"
        command = ["data", "import", str(folder / "filled.xlsx"), "--output", str(back)]
        assert main(command) == 0
        report = json.loads((back / "import_report.json").read_text("utf-8"))
        assert [row["place"] for row in report["unread"]] == ["row 2", "row 3"]
        assert all(word in row["reason"] for row in report["unread"])
        assert report["lines"] == 1
        missing = f"Column 'vote: {ODD}' is missing: no votes on '{ODD}' are read."
        assert missing in report["notes"]


@pytest.mark.parametrize("table", ["csv", "xlsx"])
def test_a_sheet_without_its_hidden_column_is_refused(
    source: Path, tmp_path: Path, table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import openpyxl

    folder = tmp_path / "sheet"
    export(source, "sheet", folder, "--with_votes", "--table", table)
    for answers in (2, 3):
        path = folder / f"votes_{answers}_answers.{table}"
        if table == "csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = [row[:-1] for row in csv.reader(file)]
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(rows)
        else:
            book = openpyxl.load_workbook(path)
            book.active.delete_cols(book.active.max_column)
            book.save(path)
        assert main(["data", "import", str(path), "--output", str(tmp_path / "none")]) == 2
        assert "hidden column 'medrm_sheet' is missing" in capsys.readouterr().err


def preferred(case: Case) -> str:
    label = case.labels["overall"]
    assert isinstance(label, PairLabel)
    assert isinstance(label.choice, int)
    return case.answers[label.choice]


def test_rows_for_trainers_say_what_a_majority_prefers(source: Path, tmp_path: Path) -> None:
    rows = {}
    for form in ("trl", "ms_swift", "llamafactory"):
        report = export(source, form, tmp_path / form)
        odd = next(name for name in report["rows"] if name != "overall.jsonl")
        assert odd.startswith("genauigkeit_q-")
        assert report["rows"] == {"overall.jsonl": 3, odd: 1}
        counts = {row["reason"]: row["count"] for row in report["left_out"]}
        assert counts == {
            "an image cannot be read": 1,
            "nobody votes on the dimension": 2,
            "no majority for an answer": 3,
            "a majority sees a tie": 1,
        }
        text = (tmp_path / form / "overall.jsonl").read_text("utf-8")
        rows[form] = [json.loads(row) for row in text.split("\n")[:-1]]
        assert [row["case_id"] for row in rows[form]] == ["=1+1", "three#0-2", "three#1-2"]
        assert all((tmp_path / form / name).is_file() for name in rows[form][0]["images"])
    before = drafts(source)["=1+1"]
    shown = [{"type": "image", "text": None}] * 2 + [{"type": "text", "text": FORMULA}]
    assert rows["trl"][0]["prompt"] == [{"role": "user", "content": shown}]
    swift = rows["ms_swift"][0]
    assert swift["messages"] == [
        {"role": "user", "content": f"<image><image>{FORMULA}"},
        {"role": "assistant", "content": LONG},
    ]
    assert swift["rejected_response"] == HARD
    assert swift["patient"] == pseudonyms(["patient:patient-=1+1"])["patient"]
    factory = rows["llamafactory"][1]
    assert factory["conversations"] == [{"from": "human", "value": "What of three?"}]
    assert (factory["chosen"]["value"], factory["rejected"]["value"]) == ("three", "one")
    described = json.loads((tmp_path / "llamafactory" / "dataset_info.json").read_text())
    assert described["overall"]["file_name"] == "overall.jsonl"
    assert described["overall"]["ranking"]
    assert len(described) == 2

    for form in rows:
        case = read_cases(tmp_path / form / "overall.jsonl")[0]
        assert preferred(case) == LONG
        assert set(case.answers) == {HARD, LONG}
        assert [ref.digest for ref in case.images] == [ref.digest for ref in before.images]


def test_what_another_trainer_takes_for_an_image_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    marked = line("marked", "anna", images=[], answers=["see <image>", "no"])
    plain = line("plain", "anna", images=[])
    path.write_text(json.dumps(marked) + "\n" + json.dumps(plain) + "\n")
    for form in ("ms_swift", "llamafactory"):
        report = export(path, form, tmp_path / form)
        assert report["rows"] == {"overall.jsonl": 1}
        assert "<image>" in report["left_out"][0]["reason"]
    export(path, "trl", tmp_path / "trl")
    text = (tmp_path / "trl" / "overall.jsonl").read_text()
    row = json.loads(text.split("\n")[1])
    assert row["prompt"] == [{"role": "user", "content": "What of plain?"}]
    assert "images" not in row
    assert text.count("\n") == 2


def test_the_hub_folder_loads_with_its_images_and_asks_for_a_licence(
    source: Path, tmp_path: Path
) -> None:
    from datasets import load_dataset

    export(source, "hub", tmp_path / "hub")
    data = load_dataset(str(tmp_path / "hub"), "overall", split="train", cache_dir=str(tmp_path))
    assert data["case_id"][:] == ["=1+1", "three#0-2", "three#1-2"]
    first = data[0]
    assert [image.size for image in first["images"]] == [(24, 16)] * 2
    assert (first["chosen_share"], first["rejected_share"], first["vote_count"]) == (
        0.875,
        0.125,
        2,
    )
    assert first["chosen"][0]["content"][0]["text"] == LONG
    assert [
        preferred(case) for case in read_cases(tmp_path / "hub" / "data" / "overall.parquet")
    ] == [
        LONG,
        "three",
        "three",
    ]
    card = (tmp_path / "hub" / "README.md").read_text("utf-8")
    assert "Under which licence" in card
    assert "For research only." in card
    text = card + (tmp_path / "hub" / "data" / "overall.parquet").read_bytes().decode("latin-1")
    assert not [word for word in ("patient-", "model-x", "anna", "ben", "scan.png") if word in text]


def test_an_exporter_from_outside(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_ids(given: Export) -> None:
        ids = [draft.case_id for draft in given.with_images()]
        given.write("ids.txt", (f"{case_id}\n".encode() for case_id in ids))
        given.rows["ids.txt"] = len(ids)

    monkeypatch.setitem(EXPORTERS, "ids", Exporter(write_ids))
    report = export(source, "ids", tmp_path / "ids")
    assert (tmp_path / "ids" / "ids.txt").read_text().split() == ["007", "=1+1", "turns", "three"]
    assert report["rows"] == {"ids.txt": 4}


def test_images_that_hold_texts_are_counted_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, image = ImageCopies(tmp_path), Image.new("L", (8, 8), 90)
    named = PngInfo()
    named.add_text("Title", "Mueller")
    saved: list[tuple[str, dict[str, Any]]] = [
        ("PNG", {}), ("JPEG", {}), ("TIFF", {}), ("GIF", {}),
        ("PNG", {"pnginfo": named}), ("JPEG", {"comment": b"Mueller"}),
        ("TIFF", {"description": "Mueller"}), ("GIF", {"comment": b"Mueller"}),
    ]  # fmt: skip
    refs = []
    for kind, texts in saved:
        image.save(file := io.BytesIO(), kind, **texts)
        refs.append(bytes_image(kind, partial(bytes, file.getvalue())))
    looked_at: list[bytes] = []
    states_text = case_files._states_text
    monkeypatch.setattr(
        case_files, "_states_text", lambda stored: looked_at.append(stored) or states_text(stored)
    )
    for ref in [*refs, *refs]:
        assert copies.content(ref) == ref.read()
    assert copies.with_texts == 4
    assert len(looked_at) == len({*looked_at})

"""Workbooks of Excel and OpenDocument: what people make of cells, and what attackers do."""

from __future__ import annotations

import io
import random
import time
import zipfile
from collections.abc import Callable
from datetime import date, datetime
from datetime import time as clock
from pathlib import Path
from typing import Any

import openpyxl
import pandas as pd
import pytest
from openpyxl.styles import numbers

from medrm.cli import main
from medrm.errors import ConfigError, DataError, MedrmError
from medrm.exchange.importers import IMPORTERS
from medrm.exchange.open_source import open_source
from medrm.exchange.tables.grid import text_of
from medrm.exchange.write_votes import write_votes

HEADER = ["Fall", "Frage", "Antwort 1", "Antwort 2", "Leser", "Urteil"]


def texts(path: Path, sheet: str | None = None) -> list[list[str]]:
    """The columns and rows of a workbook, as texts."""
    opened = open_source(path, mapping=None if sheet is None else {"sheet": sheet})
    rows = [[text_of(cell) for cell in row.values()] for _, row in opened.records]
    return [list(opened.columns), *rows]


def test_cells_of_excel(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Befunde"
    sheet.append(["Lesestudie 2024"])
    sheet.append([])
    sheet.append([*HEADER, "Datum", "Dauer", None, "Summe"])
    sheet.append([17, "Was?", "Milz", "Leber", "Ada", "=", datetime(2024, 3, 1), clock(0, 1, 5)])
    sheet.append([None, "Was?", "Milz", "Leber", "Ben", 2.0, date(2024, 3, 2), 0.5, "x", "=1+1"])
    sheet.append([42, "Was?", "Milz", "Leber", "Ben", True, "#N/A"])
    sheet["F4"].data_type = "s"
    sheet["G6"].data_type = "e"
    sheet["A6"].number_format = "00000"
    sheet["H6"] = clock(1, 5)  # as Excel stores 1:05 that is typed
    sheet["H6"].number_format = "h:mm"
    sheet["B5"].number_format = numbers.FORMAT_TEXT
    sheet.merge_cells("A4:A5")
    sheet["XFD4"].number_format = "0.00"
    book.create_sheet("Andere").append(["nichts"])
    hidden = book.create_sheet("Alt", 0)
    hidden.sheet_state = "hidden"
    book.save(tmp_path / "b.xlsx")
    assert texts(tmp_path / "b.xlsx") == [
        [*HEADER, "Datum", "Dauer", "column 9", "Summe"],
        ["17", "Was?", "Milz", "Leber", "Ada", "=", "2024-03-01", "00:01:05", "", ""],
        ["17", "Was?", "Milz", "Leber", "Ben", "2", "2024-03-02", "0.5", "x", ""],
        ["00042", "Was?", "Milz", "Leber", "Ben", "true", "", "1:05", "", ""],
    ]
    notes = " ".join(open_source(tmp_path / "b.xlsx").notes)
    for words in (
        "Sheet 'Befunde' is read", "Not read: Alt; Andere", "1 merged cells", "(J5) hold formulas",
        "(G6) hold errors", "'Lesestudie 2024'",
    ):  # fmt: skip
        assert words in notes
    assert texts(tmp_path / "b.xlsx", "Andere") == [["nichts"]]
    with pytest.raises(ConfigError, match=r"no sheet 'Befund'.*Did you mean 'Befunde'"):
        texts(tmp_path / "b.xlsx", "Befund")


def test_hidden_rows_repeated_headers_and_long_ids_are_told(tmp_path: Path) -> None:
    rows = [HEADER, [12345678901234567890, "Was?", "Milz", "Leber", "Ada", "A"]]
    rows += [[2, "Was?", "Milz", "Leber", "ada ", "B"], [], HEADER]
    rows += [[3, "Was?", "Milz", "Leber", "Ada", "B", "in a column without a name"]]
    book = openpyxl.Workbook()
    for cells in rows:
        book.active.append([*cells, ""] if cells else [])
    book.active.row_dimensions[3].hidden = True
    book.save(tmp_path / "b.xlsx")
    opened = open_source(tmp_path / "b.xlsx")
    report = write_votes(tmp_path / "set", opened, IMPORTERS["sheet"])
    assert (report["lines"], report["rows"]) == (3, 4)
    assert "'column 7' (1)" in " ".join(report["notes"])
    (refused,) = report["unread"]
    assert (refused["place"], refused["reason"]) == ("row 5", "it names the columns once more")
    notes = " ".join(report["notes"])
    assert "1 hidden row (3), as where a filter is set, is read as any other" in notes
    assert "An id is a number of more than 15 digits" in notes
    assert "Readers 'Ada', 'ada' count as 2, and differ in capitals" in notes
    row = "<table:table-row {0}>{1}</table:table-row>"
    texts_of = [("", "a"), ('table:number-rows-repeated="3"', "b")]
    texts_of += [('table:visibility="filter"', "c"), ("", "d")]
    save_ods(tmp_path / "b.ods", "".join(row.format(how, text_cell(t)) for how, t in texts_of))
    assert "1 hidden row (5), as" in " ".join(open_source(tmp_path / "b.ods").notes)
    texts_of.insert(1, ('table:number-rows-repeated="2" table:visibility="collapse"', "e"))
    save_ods(tmp_path / "b.ods", "".join(row.format(how, text_cell(t)) for how, t in texts_of))
    notes = " ".join(open_source(tmp_path / "b.ods").notes)
    assert "3 hidden rows (2, 3, 7), as where a filter is set, are read" in notes


def test_of_several_sheets_with_rows_one_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = openpyxl.Workbook()
    for name in ("Befunde", "Runde 2", "Alt"):
        book.create_sheet(name)
        for cells in (HEADER, [name, "Was?", "Milz", "Leber", "Ada", "A"]):
            book[name].append(cells)
    book["Alt"].sheet_state = "hidden"
    book["Sheet"].append(["Legende"])
    path = tmp_path / "b.xlsx"
    book.save(path)
    (tmp_path / "b.csv").write_text("a,b\n1,2\n")
    out, mapping = ("--output", str(tmp_path / "set")), ("--mapping", str(tmp_path / "m.yaml"))

    def told(name: str, *options: str) -> str:
        assert main(["data", "import", str(tmp_path / name), *options]) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "2 sheets with rows: 'Befunde', 'Runde 2'. Name one by --sheet" in told("b.xlsx", *out)
    assert "no sheet 'Rund 2'" in told("b.xlsx", *out, "--sheet", "Rund 2")
    assert "is no workbook" in told("b.csv", *out, "--sheet", "Befunde")
    command = ["data", "import", str(path), "--sheet", "Runde 2"]
    assert main([*command, *out]) == 0
    assert '"case_id": "Runde 2"' in (tmp_path / "set" / "votes.jsonl").read_text()
    assert main([*command, "--suggest", *mapping]) == 0
    assert 'sheet: "Runde 2"' in (tmp_path / "m.yaml").read_text()
    assert "is there, and says more" in told("b.xlsx", "--sheet", "Alt", "--suggest", *mapping)
    assert "Keep one" in told("b.xlsx", "--sheet", "Alt", *out, *mapping)
    assert main(["data", "import", str(path), *mapping, *out, "--overwrite_output_dir"]) == 0
    del book["Runde 2"]
    book.save(path)
    assert texts(path)[1][0] == "Befunde"


def test_two_rows_of_headers(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["", "", "Dr. Ada", None, "Dr. Ben", None])
    sheet.append(["Fall", "Frage", "Genauigkeit", "Gesamt", "Genauigkeit", "Gesamt"])
    sheet.append([1, "Was?", "A", "B", "=", "A"])
    sheet.merge_cells("C1:D1")
    sheet.merge_cells("E1:F1")
    book.save(tmp_path / "b.xlsx")
    assert texts(tmp_path / "b.xlsx")[0] == [
        *("Fall", "Frage", "Dr. Ada / Genauigkeit", "Dr. Ada / Gesamt"),
        *("Dr. Ben / Genauigkeit", "Dr. Ben / Gesamt"),
    ]


def test_cells_of_open_document(tmp_path: Path) -> None:
    rows = [
        [17, "Was ist  das?", "Milz", "Leber\nMagen", "Ada", "="],
        [18, "Was?", "Milz", "Leber", "Ben", 2.0],
    ]
    frame = pd.DataFrame(rows, columns=HEADER)
    frame["Datum"] = pd.Timestamp(2024, 3, 1)
    frame["ok"] = [True, False]
    with pd.ExcelWriter(tmp_path / "b.ods", engine="odf") as writer:
        frame.to_excel(writer, sheet_name="Befunde", index=False)
        frame.to_excel(writer, sheet_name="Zwei", index=False)
    with pytest.raises(ConfigError, match="has 2 sheets with rows: 'Befunde', 'Zwei'"):
        texts(tmp_path / "b.ods")
    assert texts(tmp_path / "b.ods", "Befunde") == [
        [*HEADER, "Datum", "ok"],
        ["17", "Was ist  das?", "Milz", "Leber\nMagen", "Ada", "=", "2024-03-01", "true"],
        ["18", "Was?", "Milz", "Leber", "Ben", "2", "2024-03-01", "false"],
    ]
    assert texts(tmp_path / "b.ods", "Zwei") == texts(tmp_path / "b.ods", "Befunde")
    cells = [text_cell(text) for text in ("Fall", "Urteil", "Wer")]
    first = [text_cell("7", ' table:number-rows-spanned="2"'), text_cell("A<text:s text:c='2'/>x")]
    first += [
        text_cell("<text:a>Ada</text:a>"),
        "<table:table-cell table:number-columns-repeated='99'/>",
    ]
    second = [text_cell("B<office:annotation><text:p>no</text:p></office:annotation>")] * 2
    rows = [cells, first, ["<table:covered-table-cell/>", *second]]
    joined = (f"<table:table-row>{''.join(cells)}</table:table-row>" for cells in rows)
    save_ods(tmp_path / "c.ods", "".join(joined))
    assert texts(tmp_path / "c.ods")[1:] == [["7", "A  x", "Ada"], ["7", "B", "B"]]


def text_cell(text: str, attributes: str = "") -> str:
    tag = "table:table-cell"
    return f'<{tag} office:value-type="string"{attributes}><text:p>{text}</text:p></{tag}>'


def test_a_hidden_table_of_open_document_is_not_read_unless_it_is_named(tmp_path: Path) -> None:
    styles = "<office:automatic-styles><style:style style:name='h' style:family='table'>"
    styles += "<style:table-properties table:display='false'/></style:style>"
    rows = "".join(f"<table:table-row>{text_cell(text)}</table:table-row>" for text in ("a", "b"))
    hidden = f"<table:table table:name='Alt' table:style-name='h'>{rows}</table:table>"
    save_ods(tmp_path / "b.ods", rows, before=f"{styles}</office:automatic-styles>{hidden}")
    assert texts(tmp_path / "b.ods") == texts(tmp_path / "b.ods", "T") == [["a"], ["b"]]
    assert "Not read: Alt" in " ".join(open_source(tmp_path / "b.ods").notes)
    assert texts(tmp_path / "b.ods", "Alt") == [["a"], ["b"]]


def save_ods(path: Path, rows: str, head: str = "", before: str = "") -> None:
    spaces = "".join(
        f' xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for name in ("office", "style", "table", "text")
    )
    content = (
        f"{head}<office:document-content{spaces}>{before}"
        f'<table:table table:name="T">{rows}</table:table>'
    )
    pack(path, {"content.xml": f"{content}</office:document-content>"})


def pack(path: Path, members: dict[str, str | bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def with_sheet(path: Path, rows: str, after: str = "", head: str = "") -> None:
    """A workbook of Excel with a sheet of this XML."""
    stored = io.BytesIO()
    openpyxl.Workbook().save(stored)
    with zipfile.ZipFile(stored) as archive:
        members: dict[str, str | bytes] = {n: archive.read(n) for n in archive.namelist()}
    space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    sheet = f"{head}<worksheet {space}><sheetData>{rows}</sheetData>{after}</worksheet>"
    pack(path, members | {"xl/worksheets/sheet1.xml": sheet})


TEXT = '<c r="{0}" t="inlineStr"><is><t>{1}</t></is></c>'
FIRST = '<row r="1">' + TEXT.format("A1", "Fall") + TEXT.format("B1", "Urteil") + "</row>"
LAUGHS = "<!DOCTYPE x [" + "".join(
    f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(12)
) + "]>"  # fmt: skip


def ods_row(attributes: str = "", cell: str = "") -> str:
    return f"<table:table-row{attributes}>{text_cell('x', cell)}</table:table-row>"


FAR = ' table:number-columns-repeated="9999999"'
MERGED = "<mergeCells>" + '<mergeCell ref="A1:B1000000"/>' * 1000 + "</mergeCells>"
LAST = f'<row r="900000">{TEXT.format("A900000", "x")}</row>'
ATTACKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "laughs.xlsx": (
        lambda path: with_sheet(path, "<row><c t='str'><v>&l11;</v></c></row>", head=LAUGHS),
        "readable workbook",
    ),
    "laughs.ods": (lambda path: save_ods(path, "<x>&l11;</x>", LAUGHS), "readable workbook"),
    "columns.ods": (lambda path: save_ods(path, ods_row("", FAR)), "more than 1,000 columns"),
    "row.xlsx": (lambda path: with_sheet(path, f'{FIRST}<row r="99999999999"/>'), "rows"),
    "back.xlsx": (
        lambda path: with_sheet(path, f'{FIRST}<row r="3"/><row r="2"/>'),
        "row 2 stands behind row 3",
    ),
    "no_zip.xlsx": (lambda path: path.write_bytes(b"\xd0\xcf\x11\xe0 old"), "password"),
    "empty.xlsx": (lambda path: pack(path, {"a.txt": ""}), "no readable workbook"),
    "empty.ods": (lambda path: pack(path, {"content.xml": "<a/>"}), "no sheet"),
    "styles.xlsx": (
        lambda path: pack(path, {"xl/styles.xml": " " * 2**24}),
        r"styles\.xml has 16,777,216 bytes",
    ),
    "old.xls": (lambda path: path.write_bytes(b""), r"Save it there as \.xlsx"),
    "old.xlsb": (lambda path: path.write_bytes(b""), r"Save it there as \.xlsx"),
}


def with_picture(path: Path) -> None:
    """Adds a part that makes the workbook as large as one of so many rows would be."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("xl/media/1.png", random.Random(0).randbytes(10**5))


LARGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bomb.xlsx": (lambda path: with_sheet(path, FIRST, " " * 2**29), "unpacked"),
    "repeated.xlsx": (lambda path: with_sheet(path, FIRST, " " * 2**25), "200 times as many"),
    "media.xlsx": (lambda path: pack(path, {"xl/media/sheet1.xml": " " * 2**29}), "unpacked"),
    "bomb.ods": (lambda path: save_ods(path, " " * 2**29), "unpacked"),
    "wide.xlsx": (
        lambda path: with_sheet(path, "<row>" + "<c><v>1</v></c>" * 10**6 + "</row>"),
        "has more than 200,000 elements",
    ),
    "rows.xlsx": (
        lambda path: with_sheet(path, "<row/>" * 3_000_000) or with_picture(path),
        "more than 2,000,000 rows",
    ),
    "merged.xlsx": (lambda path: with_sheet(path, FIRST + LAST, MERGED), "merged cells cover"),
    "long.ods": (
        lambda path: save_ods(path, ods_row() + ods_row(' table:number-rows-repeated="9999999"')),
        "more than 1,000,000 rows",
    ),
}


def attacked(make: Callable[[Path], Any], words: str, path: Path) -> None:
    make(path)
    started = time.monotonic()
    with pytest.raises(MedrmError, match=words):
        for _ in open_source(path).records:
            pass
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_end_in_a_message(tmp_path: Path, name: str) -> None:
    attacked(*ATTACKS[name], tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_attacks_end_in_a_message(tmp_path: Path, name: str) -> None:
    attacked(*LARGE[name], tmp_path / name)


def test_a_workbook_that_is_too_large_or_empty_is_not_said_to_have_a_password(
    tmp_path: Path,
) -> None:
    book = openpyxl.Workbook()
    book.active.cell(1, 1001, "x")
    book.save(tmp_path / "wide.xlsx")
    (tmp_path / "empty.xlsx").write_bytes(b"")
    for name, words in (("wide", "it has more than 1,000 columns"), ("empty", "is empty")):
        with pytest.raises(DataError, match=words) as caught:
            open_source(tmp_path / f"{name}.xlsx")
        assert "password" not in str(caught.value)

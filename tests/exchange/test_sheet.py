"""Sheets with columns of any name: what is suggested for them, and what they become."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medrm.cli import main
from medrm.data.case_set import read_set
from medrm.errors import ConfigError, DataError
from medrm.exchange.importers import IMPORTERS
from medrm.exchange.mapping import sheet_mapping, value_key
from medrm.exchange.mapping_file import load_mapping, read_mapping
from medrm.exchange.open_source import open_source
from medrm.exchange.suggest import suggest
from medrm.exchange.tables.grid import number_of
from medrm.exchange.write_votes import write_votes

GERMAN = """\
Fall-Nr.;Bild;Frage;Antwort 1;Antwort 2;Links;Leser;Genauigkeit;Gesamturteil;Sicherheit;\
Lesezeit (s);Bemerkung;Station;Patientenname
007;bilder\\a.png;"Größe; wo?";"Nein, ""klein"".";Ja;Modell 1;Müller;links;rechts viel besser;0,8;\
12,5;unscharf;3;Erika
007;bilder\\a.png;"Größe; wo?";"Nein, ""klein"".";Ja;Modell 2;Weiß;links;beide unbrauchbar;0,5;\
1:05;;3;
010;bilder\\a.png;Was?;Milz;Leber;Modell 2;Müller;=;;;;;;
011;bilder\\b.png;Was?;Milz;Leber;Modell 1;Müller;links;links;;;;;
012;;Was?;Milz;Leber;Modell 1;Müller;links;links;;;;;
013;bilder\\a.png;Was?;Milz;;Modell 1;Müller;links;links;;;;;
014;bilder\\a.png;Was?;Milz;Leber;Modell 1;Müller;;;;;;;
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bilder").mkdir()
    Image.new("L", (8, 8), 70).save(tmp_path / "bilder" / "a.png")
    return tmp_path


def imported(path: Path, mapping: str | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The lines of a sheet, and the report; by a mapping, or by what is suggested."""
    opened = open_source(path, mapping=None if mapping is None else load_mapping(mapping))
    output = path.parent / f"set of {path.name}"
    report = write_votes(output, opened, IMPORTERS["sheet"], overwrite=True)
    lines = [json.loads(line) for line in (output / "votes.jsonl").read_text().splitlines()]
    assert len(read_set(str(output)).cases) == report["cases"]
    return lines, report


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le"])
def test_a_german_sheet_needs_no_mapping(folder: Path, encoding: str) -> None:
    lines, report = imported(write(folder / "Befunde.CSV", GERMAN, encoding))
    assert [line["votes"] for line in lines] == [
        {"accuracy": "A", "overall": "strongly_b"},
        {"accuracy": "B", "overall": "neither"},  # model 2 stood left
        {"accuracy": "tie"},
    ]
    first, second, _ = lines
    assert first["case_id"] == "007"
    assert first["answer_a"] == 'Nein, "klein".'
    assert first["question"] == "Größe; wo?"
    assert (first["annotator"], second["annotator"]) == ("Müller", "Weiß")
    assert (first["seconds"], second["seconds"]) == (12.5, 65)
    assert first["confidence"] == 0.8
    assert first["comment"] == "unscharf"
    assert first["extra"] == {"Station": "3"}
    assert "Erika" not in json.dumps([lines, report])
    reasons = {row["place"]: row["reason"] for row in report["unread"]}
    assert reasons == {
        "row 5": "there is no file 'bilder/b.png'",
        "row 6": "it has no image in 'Bild'",
        "row 7": "'Antwort 2' is empty",
        "row 8": "it has no vote",
    }
    assert report["rows"] == 7


TEXT_ROWS = {"Frage": "Was?", "Antwort A": "Milz", "Antwort B": "Leber"}


def table(path: Path, rows: list[dict[str, Any]], separator: str = "\t") -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
    return write(path, "".join(f"{separator.join(cells)}\n" for cells in lines))


@pytest.mark.parametrize(
    "foreign", ["", "no JSON", "[1]", '{"case_id": 7}', '{"case_id": "1", "votes": {}}', "\0" * 99]
)
def test_cases_of_another_program_beside_a_sheet_are_not_read(tmp_path: Path, foreign: str) -> None:
    write(tmp_path / "cases.jsonl", foreign + "\n")
    rows = [{"Fall": "1", **TEXT_ROWS, "Leser": "Ada", "Urteil": "A"}]
    (line,), report = imported(table(tmp_path / "s.tsv", rows))
    assert (line["votes"], report["not_taken"]) == ({"overall": "A"}, 0)


def test_numbers_are_read_alike_wherever_they_stand(tmp_path: Path) -> None:
    numbers = {
        "3,5": 3.5, "-1": -1, "\u22121": -1, "+2": 2, "1.234": 1.234, "1.234,5": 1234.5,
        "1,234.5": 1234.5, "1.234.567": 1234567, "1 234,5": 1234.5, "1'234": 1234, "2e-1": 0.2,
        "0.30000000000000004": 0.30000000000000004, "007": 7, "12345678901234567": None,
        "1.234.56": None, "1e999": None, "nan": None, "1.": None, "12/2": None,
    }  # fmt: skip
    assert {text: number_of(text) for text in numbers} == numbers
    assert [number_of(cell) for cell in (4, True, float("inf"), 10**400)] == [4, None, None, None]
    assert value_key("1,50") == value_key("+1.5")
    assert value_key("12345678901234567") != value_key("12345678901234568")
    rows = [{"q": "Q", "x": "1", "y": "2", "px": "1.234,5", "py": "1 300", "s": "1:05"}]
    mapping = """
        columns: {question: q, answer_a: x, answer_b: y, seconds: s}
        fixed: {annotator: Ada}
        votes: [{ratings: [px, py], dimension: overall}]
    """
    (line,), _ = imported(table(tmp_path / "s.tsv", rows), mapping)
    assert (line["votes"], line["seconds"]) == ({"overall": "B"}, 65)


def test_a_column_for_each_reader_and_dimension(tmp_path: Path) -> None:
    readings = {"Dr. Otto Genauigkeit": "A", "Dr. Otto Gesamt": "B", "Dr. Ada Genauigkeit": "="}
    rows = [
        {"Fall": "1", **TEXT_ROWS, **readings, "Dr. Ada Gesamt": ""},
        {"Fall": "2", **TEXT_ROWS, **readings, "Dr. Ada Genauigkeit": "", "Dr. Ada Gesamt": "A"},
    ]
    lines, report = imported(table(tmp_path / "wide.tsv", rows))
    assert [(line["case_id"], line["annotator"], line["votes"]) for line in lines] == [
        ("1", "Dr. Otto", {"accuracy": "A", "overall": "B"}),
        ("1", "Dr. Ada", {"accuracy": "tie"}),
        ("2", "Dr. Otto", {"accuracy": "A", "overall": "B"}),
        ("2", "Dr. Ada", {"overall": "A"}),
    ]
    assert not report["unread"]


def test_a_row_for_each_dimension_and_answers_named_by_side(tmp_path: Path) -> None:
    sides = {"Frage": "Was?", "Antwort links": "Milz", "Antwort rechts": "Leber", "R": "eins"}
    turned = {"Frage": "Was?", "Antwort links": "Leber", "Antwort rechts": "Milz", "R": "zwei"}
    rows = [
        {"Fall": 1, **sides, "Links": "M1", "Kriterium": "Relevanz", "Urteil": 2},
        {"Fall": 1, **turned, "Links": "M2", "Kriterium": "Relevanz", "Urteil": 2},
        {"Fall": 1, **turned, "Links": "M2", "Kriterium": "Stil", "Urteil": -1},
        {"Fall": 1, **turned, "Links": "M2", "Kriterium": "Stil", "Urteil": 0},
        {"Fall": 1, **turned, "Links": "M3", "Kriterium": "Stil", "Urteil": 0},
        {"Fall": 1, **turned, "Links": "M2", "Kriterium": "Witz", "Urteil": 0},
    ]
    path = table(tmp_path / "long.csv", rows, ",")
    opened = open_source(path)
    suggestion = suggest(opened)
    for point in ("'2' means as a vote; it may be a scale", "'M1' is, on the left", "votes in 'Ur"):
        assert any(point in text for text in suggestion.open_points)
    with pytest.raises(ConfigError, match=r"values\.2 is still '\?'"):
        sheet_mapping(load_mapping(suggestion.text), opened.columns)
    mapping = """
        columns: {case_id: Fall, question: Frage, annotator: R, dimension: Kriterium,
                  answer_left: Antwort links, answer_right: Antwort rechts}
        votes: [{column: Urteil}]
        values: {-2: strongly_left, -1: slightly_left, 0: tie, 1: slightly_right,
                 2: strongly_right, =: tie}
        order: {column: Links, values: {M1: A, M2: B}}
        dimensions: {relevanz: relevance, Stil: Stil}
    """
    lines, report = imported(path, mapping)
    assert [(line["annotator"], line["votes"]) for line in lines] == [
        ("eins", {"relevance": "strongly_b"}),
        ("zwei", {"relevance": "strongly_a"}),
        ("zwei", {"Stil": "slightly_b"}),
    ]
    assert {(line["answer_a"], line["answer_b"]) for line in lines} == {("Milz", "Leber")}
    assert ["votes twice" in row["reason"] for row in report["unread"]] == [True, False, False]
    path.write_text(path.read_text("utf-8").replace("Stil", "1.10"), "utf-8")
    _, report = imported(path, mapping.replace("Stil:", "1.1:"))
    assert sum("'1.10', which the mapping's" in row["reason"] for row in report["unread"]) == 2


def test_ratings_and_ranks_of_several_answers(tmp_path: Path) -> None:
    rows = [
        {
            "q": "Was?",
            "x": "1",
            "y": "2",
            "z": "3",
            "rx": 2,
            "ry": 1,
            "rz": 2,
            "sx": "3,5",
            "sy": 4,
        },
        {"q": "Wo?", "x": "1", "y": "2", "z": "3", "rx": 2, "ry": "", "rz": 2, "sx": 3, "sy": 4},
    ]
    mapping = """
        columns: {question: q, answers: [x, y, z]}
        fixed: {annotator: Ada}
        votes: [{ranks: [rx, ry, rz], dimension: overall}]
        ignore: [sx, sy]
    """
    path = table(tmp_path / "ranks.tsv", rows)
    (line,), report = imported(path, mapping)
    assert line["votes"] == {"overall": [[1], [0, 2]]}
    assert report["unread"][0]["reason"] == "'rx', 'ry', 'rz' are '2', '', '2'; give numbers"
    rated = """
        columns: {question: q, answer_a: x, answer_b: y}
        fixed: {annotator: Ada}
        votes: [{ratings: [sx, sy], dimension: overall}]
    """
    lines, _ = imported(path, rated)
    assert [line["votes"] for line in lines] == [{"overall": "B"}] * 2
    assert lines[0]["case_id"] != lines[1]["case_id"]
    assert lines[0]["extra"]["rz"] == "2"


def test_numbers_for_each_answer(tmp_path: Path) -> None:
    sides = {"Frage": "Was?", "Antwort links": "Milz", "Antwort rechts": "Leber", "R": "eins"}
    turned = {**sides, "Antwort links": "Leber", "Antwort rechts": "Milz", "R": "zwei"}
    rows: list[dict[str, Any]] = [
        {**sides, "Links": "Modell 1", "Punkte links": 5, "Punkte rechts": "2,5", "Note links": 1},
        {**turned, "Links": "Modell 2", "Punkte links": 4, "Punkte rechts": 4, "Note links": 2},
    ]
    rows = [{"Leser": row.pop("R"), **row, "Note rechts": 6} for row in rows]
    opened = open_source(table(tmp_path / "n.tsv", rows))
    suggestion = suggest(opened)
    (point,) = suggestion.open_points
    assert point == "whether the highest number in 'Note links' and 'Note rechts' is best"
    text = suggestion.text.replace('ratings: ["Note', 'ranks: ["Note')
    lines, report = imported(opened.path, text.replace('dimension: "?"', "dimension: accuracy"))
    assert not report["unread"]
    assert [line["votes"] for line in lines] == [
        {"overall": "A", "accuracy": "A"},
        {"overall": "tie", "accuracy": "B"},
    ]


def test_parquet_and_json_keep_what_they_hold(folder: Path) -> None:
    row = {"id": 17.0, "image": {"bytes": (folder / "bilder" / "a.png").read_bytes()}, **TEXT_ROWS}
    row |= {"reader": 3, "preference": "A", "age": float("nan"), "tags": ["ct", None], "raw": b"12"}
    pq.write_table(pa.Table.from_pylist([row]), folder / "rows.parquet")
    (line,), _ = imported(folder / "rows.parquet")
    assert (line["case_id"], line["annotator"], line["votes"]) == ("17", "3", {"overall": "A"})
    assert line["extra"] == {"tags": ["ct", None], "raw": "2 bytes"}
    plain = {key: value for key, value in row.items() if key not in ("raw", "age")}
    plain["image"] = ["bilder/a.png", "bilder/a.png"]
    (folder / "rows.json").write_text(json.dumps([plain, 5]))
    (line,), report = imported(folder / "rows.json")
    assert len(line["images"]) == 2
    assert report["unread"][0]["reason"] == "it is no object but int"
    rows = [{"id": n, **TEXT_ROWS, "reader": "Ada", "preference": "A"} for n in range(60)]
    rows[-1] |= {"patient": "P9", "ward": 3}  # columns that the last row alone has
    (folder / "late.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines, _ = imported(folder / "late.jsonl")
    assert (lines[-1]["patient"], lines[-1]["extra"]) == ("P9", {"ward": 3})


def test_a_mapping_is_refused_with_all_that_is_wrong(tmp_path: Path) -> None:
    columns = ("Fall", "Frage", "A", "B", "Urteil")
    wrong = """
        columns: {case_id: Fal, question: Frage, answer_a: A, answer_b: Frage}
        votes: [{column: Urteil, dimension: Accuracy}, {ratings: [A], dimension: overall}]
        values: {"1": a, "2": B, "3": "?"}
        order: {column: Links}
        fixed: {question: Was}
    """
    with pytest.raises(ConfigError) as caught:
        sheet_mapping(load_mapping(wrong), columns)
    for words in (
        "no column 'Fal' (it has 'Fall', 'Frage', 'A', 'B', 'Urteil'). Did you mean 'Fall'?",
        "column 'Frage' is named twice",
        "values.3 is still '?'",
        "values: '1' cannot mean 'a'",
        "order: give the column and what its values mean",
        "no column 'Links'",
        "dimension 'Accuracy' is not accepted",
        "votes[1]: nothing says who votes",
        "votes[2] names 1 columns for 2 answers",
        "question stands in columns and in fixed",
    ):
        assert words in str(caught.value)
    shapes = (
        "{colums: {}, votes: [{column: [x], dim: y}], columns: {image: 3, reader: R}, values: x}"
    )
    with pytest.raises(ConfigError) as caught:
        sheet_mapping(load_mapping(shapes), columns)
    for words in ("'colums'. Did you mean 'columns'?", "values is 'x'"):
        assert words in str(caught.value)
    twice = """
        values: {a: A, A: B, "1": tie, "1.0": tie}
        order: {column: Urteil, values: {Links: A, links: B}}
        votes: [{column: Urteil, values: {"2": A, "+2": B}}]
    """
    with pytest.raises(ConfigError) as caught:
        sheet_mapping(load_mapping(twice), columns)
    for words in ("values: 'a' and 'A' are", "order.values: 'Links'", "votes[1].values: '2'"):
        assert words in str(caught.value)
    assert "1.0" not in str(caught.value)
    for text in ("a: 1\na: 2", "- 1", "[" * 10_000, "a: *b"):
        path = write(tmp_path / "map.yaml", text)
        with pytest.raises(ConfigError, match="no readable YAML"):
            read_mapping(path)


def test_rows_that_are_none_and_tables_without_end(tmp_path: Path) -> None:
    rows = [
        "Titel der Studie", "", "Frage,Antwort 1,Antwort 2,Leser,Urteil,Notiz,Notiz",
        "Q,Milz,Leber,Ada,1,x", 'Q,"Milz" und,Leber,Ada,2', "Q,Milz,Leber,c,d,e,f,g,h",
        "Q2,Milz,Leber,Ada,1,,z", "", 'Q3,"Milz,Leber,Ada,1', "Q4,Milz,Leber,Ada,1",
    ]  # fmt: skip
    lines, report = imported(write(tmp_path / "rows.csv", "\n".join(rows)))
    assert lines[0]["comment"] == "x"
    assert lines[1]["extra"] == {"Notiz (2)": "z"}
    reasons = {row["place"]: row["reason"] for row in report["unread"]}
    assert "expected after" in reasons.pop("row 5")
    assert reasons.pop("row 6") == "it has 9 cells, the header 7: its columns are moved"
    assert "lines 9 to 10 of the text" in reasons.pop("row 9")
    assert not reasons
    assert any("'Titel der Studie'" in note for note in report["notes"])
    assert any("called 'Notiz (2)'" in note for note in report["notes"])
    for text_bytes in (b"\0\0\0", b"\xff\xfea\0b", b"a;\x81\n", b""):
        (tmp_path / "no.csv").write_bytes(text_bytes)
        with pytest.raises(DataError, match=r"save it in UTF-8|no header"):
            open_source(tmp_path / "no.csv")
    wide = write(tmp_path / "wide.csv", ",".join(map(str, range(1_000_000))) + "\n")
    with pytest.raises(DataError, match="has 1,000,000 columns"):
        open_source(wide)


def test_the_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet, mapping = (
        write(folder / "b.csv", GERMAN + "015;bilder/a.png;Q;Milz;Leber;Modell 1;Ada;links;7"),
        folder / "m.yaml",
    )
    command = ["data", "import", str(sheet)]
    assert main([*command, "--output", str(folder / "set")]) == 2
    assert main([*command, "--suggest", "--mapping", str(mapping)]) == 0
    assert main([*command, "--suggest", "--mapping", str(mapping)]) == 2
    assert main([*command, "--output", str(folder / "set"), "--mapping", str(mapping)]) == 2
    assert not (folder / "set").exists()
    mapping.write_text(mapping.read_text().replace('"7": "?"', '"7": tie'))
    assert main([*command, "--output", str(folder / "set"), "--mapping", str(mapping)]) == 0
    shown = capsys.readouterr().out
    assert "8 rows read, 4 lines of votes on 3 cases by 3 readers, 1 image" in " ".join(
        shown.split()
    )
    assert "row 5: there is no file 'bilder/b.png'" in shown


def test_rows_of_trainers_are_said_to_need_no_import(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "chosen": "Good.", "rejected": "Bad."}
    path = write(tmp_path / "trl.jsonl", json.dumps(row))
    with pytest.raises(ConfigError, match=r"look like preferences.*--train_data \S*trl\.jsonl"):
        imported(path)
    assert len(read_set(str(path)).cases) == 1


def test_what_is_ignored_stands_in_no_report(folder: Path) -> None:
    named = GERMAN.replace("014;", "014b;").replace("links;links;;;;;\n013", "links;;;;;;Rita\n013")
    _, report = imported(write(folder / "names.csv", named))
    assert "Left out, as the mapping says: 'Patientenname'." in report["notes"]
    text = json.dumps(report)
    assert "Rita" not in text
    assert "Erika" not in text


def test_a_further_reader_is_joined(folder: Path) -> None:
    lines, _ = imported(write(folder / "first.csv", GERMAN))
    first = folder / "set of first.csv"
    rows = [
        {**lines[0], "images": [str(first / lines[0]["images"][0])], "annotator": "Ada"},
        {**lines[0], "images": [str(first / lines[0]["images"][0])]},
    ]
    (folder / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["data", "import", str(folder / "more.jsonl"), "--output", str(folder / "all")]
    assert main([*command, "--join", str(folder)]) == 2
    assert main([*command, "--join", str(first)]) == 0
    report = json.loads((folder / "all" / "import_report.json").read_text())
    assert report["annotators"] == {"Müller": 2, "Weiß": 1, "Ada": 1}
    (refused,) = report["unread"]
    assert "'Müller' votes twice on 'accuracy' of case '007', also on set of" in refused["reason"]
    (case, _) = read_set(str(folder / "all")).cases
    assert case.labels["accuracy"].votes == 3

"""What is suggested for the columns of a sheet where names and values say only half of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from test_sheet import TEXT_ROWS, imported, table

from medrm.cli import main
from medrm.data.medical.conversions import CONVERSIONS, RULES
from medrm.evaluation.audit import KINDS
from medrm.exchange.mapping import sheet_mapping
from medrm.exchange.mapping_file import load_mapping
from medrm.exchange.open_source import open_source
from medrm.exchange.sheet_words import role_of
from medrm.exchange.suggest import suggest


def suggested(path: Path, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """The mapping that is suggested for rows, and what it leaves open."""
    suggestion = suggest(open_source(table(path, rows)))
    return load_mapping(suggestion.text), "\n".join(suggestion.open_points)


def test_all_of_three_answers_are_suggested_or_asked_for(tmp_path: Path) -> None:
    answers = {"Antw. 1": "Milz", "Antw. 2": "Leber", "Antw. 3": "Niere"}
    ranks: dict[str, Any] = {"Rang 1": 1, "Rang 2": 2, "Rang 3": 2}
    row = {"Fall": 1, "Frage": "Was?", **answers, "Untersucher": "Ada", **ranks}
    mapping, points = suggested(tmp_path / "three.tsv", [row])
    assert mapping["columns"]["answers"] == [*answers]
    assert mapping["votes"] == [{"ranks": [*ranks], "dimension": "overall"}]
    assert not points
    (line,), _ = imported(tmp_path / "three.tsv")
    assert (line["annotator"], line["votes"]) == ("Ada", {"overall": [[0], [1, 2]]})
    unranked = {key: row[key] for key in row if key not in ranks} | {"Beste": "C"}
    mapping, points = suggested(tmp_path / "unranked.tsv", [unranked])
    assert mapping["votes"] == [{"ranks": ["?"], "dimension": "overall"}]
    assert points == "no column is recognised as votes"
    gap = {**TEXT_ROWS, "Antwort D": "Herz", "Leser": "Ada", "Urteil": "A"}
    mapping, points = suggested(tmp_path / "gap.tsv", [gap])
    assert mapping["columns"]["answers"] == "?"
    assert points == "whether 'Antwort D' are answers too"


def test_numbers_that_may_be_a_scale_are_asked_for(tmp_path: Path) -> None:
    def rows(name: str, numbers: list[int]) -> list[dict[str, Any]]:
        case = {**TEXT_ROWS, "Leser": "Ada", "Urteil": "A"}
        return [{"Fall": n, **case, name: number} for n, number in enumerate(numbers)]

    mapping, points = suggested(tmp_path / "s.tsv", rows("Gr\u00fcndlichkeit", [-2, 2, 0, 0]))
    scale = {"column": "Gr\u00fcndlichkeit", "dimension": "?"}
    assert mapping["votes"][1] == {**scale, "values": {"-2": "?", "0": "?", "2": "?"}}
    assert "'Gr\u00fcndlichkeit' may hold votes" in points
    rated = [{**row, "Genauigkeit": row["N"]} for row in rows("N", [-50, 50])]
    mapping, _ = suggested(tmp_path / "same.tsv", rated)
    assert mapping["votes"][-1] == {"column": "N", "dimension": "?"}
    for name, numbers in (("Anzahl Herde", [0, 1, 1]), ("Dosis", [75, 80, 75]), ("Dosis", [3, 3])):
        mapping, points = suggested(tmp_path / "no.tsv", rows(name, numbers))
        assert not points


def test_one_odd_cell_hides_no_column(tmp_path: Path) -> None:
    answers = {"Frage": "Was?", "Antwort links": "Milz", "Antwort rechts": "Leber"}
    rows: list[dict[str, Any]] = [
        {"Fall": n, **answers, "Links stand": "AB"[n % 2], "Dr. Ada": "A", "Dr. Bob": "B"}
        | {"Dr. Eve": 4 + n % 2, "Nom du patient": f"Durand {n}"}
        for n in range(12)
    ]
    rows[3] |= {"Links stand": "Modell 3", "Dr. Bob": "siehe Bericht", "Dr. Eve": "3,5"}
    mapping, points = suggested(tmp_path / "odd.tsv", rows)
    readers = ["Dr. Ada", "Dr. Bob", "Dr. Eve"]
    assert [vote["column"] for vote in mapping["votes"]] == readers
    assert mapping["order"]["values"] == {"A": "A", "B": "B", "Modell 3": "?"}
    assert mapping["values"]["siehe Bericht"] == "?"
    assert "what 'siehe Bericht' means as a vote" in points
    assert mapping["ignore"] == ["Nom du patient"]


def test_what_a_name_says_besides_the_dimension_is_a_reader_only_among_readers(
    tmp_path: Path,
) -> None:
    def annotators(*names: str) -> list[tuple[str, str]]:
        row = {"Fall": 1, **TEXT_ROWS, **dict.fromkeys(names, "A")}
        mapping, _ = suggested(tmp_path / "r.tsv", [row])
        return [(vote["dimension"], vote["annotator"]) for vote in mapping["votes"]]

    assert annotators("Richtigkeit (fachlich)", "Overall impression") == [("?", "?")] * 2
    assert annotators("Richtigkeit (fachlich)", "Richtigkeit (sprachlich)") == [("?", "?")] * 2
    assert annotators("Stil", "Witz") == [("?", "?")] * 2
    assert annotators("Richtigkeit M\u00fcller", "Richtigkeit Wei\u00df") == [
        ("accuracy", "M\u00fcller"),
        ("accuracy", "Wei\u00df"),
    ]
    assert annotators("Leser 1", "Leser 2") == [("overall", "Leser 1"), ("overall", "Leser 2")]
    for name in ("Befunder/in", "Untersucher", "Untersucherin", "Arzt/\u00c4rztin"):
        assert role_of(name) == "annotator"


@pytest.mark.parametrize(
    "head",
    [
        *("Seite", "K\u00f6rperseite", "side", "Laterality", "LAT", "Auge", "breast side", "sex"),
        *("Geschlecht", "ICD-10", "Stadium", "Blutgruppe", "Modell", "Auff\u00e4llig", "Gruppe"),
        *("Welche ist schlechter", "Worse answer", "Fehler in Antwort", "GT", "Runde"),
    ],
)
@pytest.mark.parametrize("values", ["links rechts", "A B", "1 2", "beide keine"])
def test_a_column_that_names_another_kind_holds_no_votes(
    tmp_path: Path, head: str, values: str
) -> None:
    one, other = values.split()
    by_row = [{"Fall": n, **TEXT_ROWS, head: (one, other)[n % 2]} for n in range(6)]
    long = [{**row, "Leser": "Ada", "Urteil": "AB"[n % 3 % 2]} for n, row in enumerate(by_row)]
    mapping, points = suggested(tmp_path / "long.tsv", long)
    assert (mapping["votes"], points) == ([{"column": "Urteil", "dimension": "overall"}], "")
    wide = [{**row, "AB": "A", "CD": "B"} for row in by_row]
    mapping, points = suggested(tmp_path / "wide.tsv", wide)
    assert [(vote["column"], vote["annotator"]) for vote in mapping["votes"]] == [
        *(("AB", "AB"), ("CD", "CD"))
    ]


def test_what_is_the_same_for_all_readers_of_a_case_is_no_vote(tmp_path: Path) -> None:
    def rows(**columns: str) -> list[dict[str, Any]]:
        cells = {name: values.split() for name, values in columns.items()}
        return [
            {"Fall": n // 2, **TEXT_ROWS, "Leser": ("Ada", "Ben")[n % 2]}
            | {name: of_rows[n] for name, of_rows in cells.items()}
            for n in range(6)
        ]

    herd, votes, stil = "links links rechts rechts links links", "A B A A B A", "A A B B B B"
    mapping, points = suggested(tmp_path / "a.tsv", rows(Urteil=votes, Erguss=herd))
    assert (mapping["votes"], points) == ([{"column": "Urteil", "dimension": "overall"}], "")
    text = suggest(open_source(tmp_path / "a.tsv")).text
    assert '"Erguss"  ("links", "rechts"; no vote, for it is the same for all' in text
    mapping, points = suggested(tmp_path / "b.tsv", rows(Urteil=votes, Stil=votes))
    assert points == "column 'Stil' may hold votes: about which dimension?"
    # Readers who agree on all cases have voted all the same.
    mapping, points = suggested(tmp_path / "c.tsv", rows(Urteil=stil))
    assert (mapping["votes"], points) == ([{"column": "Urteil", "dimension": "overall"}], "")
    mapping, points = suggested(tmp_path / "d.tsv", rows(Urteil=votes, Gesamturteil=stil))
    assert len(mapping["votes"]) == 2


def test_models_that_wrote_the_answers_are_no_answers(tmp_path: Path) -> None:
    models = {"Modell A": "gpt", "Modell B": "llama", "Modell links": "gpt"}
    row = {"Fall": 1, **models, **TEXT_ROWS, "Leser": "Ada", "Urteil": "A"}
    mapping, _ = suggested(tmp_path / "m.tsv", [row])
    assert [mapping["columns"][f"answer_{side}"] for side in "ab"] == ["Antwort A", "Antwort B"]
    assert "answer_left" not in mapping["columns"]
    assert mapping["order"] == {"column": "Modell links", "values": {"gpt": "?"}}
    row |= {"Antwort links": row.pop("Antwort A"), "Antwort rechts": row.pop("Antwort B")}
    mapping, _ = suggested(tmp_path / "m.tsv", [row])
    assert mapping["columns"]["answer_right"] == "Antwort rechts"
    assert "answer_a" not in mapping["columns"]


def test_answers_that_swap_within_a_case_need_an_order(tmp_path: Path) -> None:
    case = {"Fall": 1, "Frage": "Was?", "Antwort links": "Milz", "Antwort rechts": "Leber"}
    turned = {**case, "Antwort links": "Leber", "Antwort rechts": "Milz"}
    rows = [
        {**case, "links war": "GPT", "Leser": "Ada", "Urteil": "links"},
        {**turned, "links war": "Llama", "Leser": "Ben", "Urteil": "links"},
    ]
    mapping, points = suggested(tmp_path / "swap.tsv", rows)
    assert mapping["order"] == {"column": "?", "values": {"?": "?"}}
    assert points.endswith("left and right swap within case '1'")
    mapping.pop("order")
    text = json.dumps(mapping)
    _, report = imported(tmp_path / "swap.tsv", text)
    (refused,) = report["unread"]
    assert "its two answers the other way round than row 2" in refused["reason"]
    assert "`order:`" in refused["reason"]
    mapping["order"] = {"column": "links war", "values": {"GPT": "A", "Llama": "B"}}
    lines, report = imported(tmp_path / "swap.tsv", json.dumps(mapping))
    assert [line["votes"]["overall"] for line in lines] == ["A", "B"]


def test_one_byte_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    rows = [{"Fall": n, **TEXT_ROWS, "Leser": "Gr\u00fcn", "Urteil": "A"} for n in range(3)]
    path = table(tmp_path / "mixed.tsv", rows)
    assert not [note for note in open_source(path).notes if "1252" in note]
    path.write_bytes(path.read_bytes() + b"3\tWas?\tMilz\tLeber\tGr\xfcn\tA\n")
    (note,) = (note for note in open_source(path).notes if "not in UTF-8" in note)
    assert note.startswith("The text is not in UTF-8, from line 5 on, so all of it is read as")


def test_a_mapping_that_names_a_sheet_is_completed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    book = openpyxl.Workbook()
    book.active.append(["Fall", "Legende"])
    second = book.create_sheet("Lesungen 2")
    second.append(["Titel"])
    row = {"Fall": 7, **TEXT_ROWS, "Leser": "Ada", "Urteil": "B"}
    second.append([*row])
    second.append([*row.values()])
    book.save(tmp_path / "two.xlsx")
    mapping = tmp_path / "map.yaml"
    command = ["data", "import", str(tmp_path / "two.xlsx"), "--mapping", str(mapping)]
    mapping.write_text("sheet: Lesungen 2\nheader_row: 2\n")
    assert main([*command, "--suggest"]) == 0
    content = load_mapping(mapping.read_text("utf-8"))
    assert (content["sheet"], content["header_row"]) == ("Lesungen 2", "2")
    assert content["columns"]["annotator"] == "Leser"
    assert main([*command, "--suggest"]) == 2
    assert "says more than `sheet:`" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "set")]) == 0
    (line,) = (tmp_path / "set" / "votes.jsonl").read_text().splitlines()
    assert json.loads(line)["votes"] == {"overall": "B"}


def test_the_manual_has_all_names_to_which_the_help_refers(root: Path) -> None:
    manual = (root / "data" / "README.md").read_text("utf-8")
    for name in (*CONVERSIONS, *KINDS):
        assert f"`{name}`" in manual, name
    assert all(f"`{rule}" in manual for rule in RULES)
    assert all(word in manual for word in ("`,frames=`", "`,plane=`", "--image_conversion"))


def test_the_mapping_of_the_manual_is_one(root: Path) -> None:
    blocks = (root / "data" / "README.md").read_text("utf-8").split("```yaml\n")[1:]
    (block,) = (text.split("```")[0] for text in blocks if text.startswith("sheet:"))
    content = load_mapping(block)
    columns: list[str] = [
        *("Fall", "Bild 1", "Bild 2", "Frage", "Antwort 1", "Antwort 2", "Leser", "Kriterium"),
        *(
            "Patient",
            "Bemerkung",
            "Genauigkeit",
            "Warum",
            "Dr. Ada",
            "Punkte 1",
            "Punkte 2",
            "Rang 1",
            "Rang 2",
        ),
        *("Links stand", "Patientenname"),
    ]
    mapping = sheet_mapping(content, columns)
    assert {*mapping.used} == {*columns}
    assert mapping.values["k. a."] == "none"

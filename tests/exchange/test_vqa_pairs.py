"""Wrong answers that are made of right ones: by which rule, of which rows, and how marked."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from medrm.cli import main
from medrm.data.case_set import CaseSet, read_set
from medrm.errors import ConfigError, DataError
from medrm.exchange.wrong_answers import RULES, normalised, wrong_answer
from medrm.pipeline.data_build import BuildRequest, build_cases

MADE = {
    ("yes_no", "Yes"): {"No"},
    ("yes_no", "no."): {"yes."},
    ("yes_no", "NO"): {"YES"},
    ("yes_no", "Nein"): {"Ja"},
    ("yes_no", "Yes, a mass"): set(),
    ("number", "2"): {"0", "1", "3", "4"},
    ("number", "0"): {"1", "2"},
    ("number", "about 4 cm"): {f"about {n} cm" for n in (2, 6, 8)},
    ("number", "120 mm"): {"60 mm", "180 mm", "240 mm"},
    ("number", "12 mm"): {"6 mm", "18 mm", "24 mm"},
    ("number", "5mm"): {"2.5mm", "7.5mm", "10mm"},
    ("number", "3 masses"): {f"{n} masses" for n in (1, 2, 4, 5, 6)},
    ("number", "less than 5 mm"): set(),
    ("number", "> 3"): set(),
    ("number", "1.5 mm"): {"0.8 mm", "2.2 mm", "3.0 mm"},
    ("number", "Three"): {"Two", "Four", "Five"},
    ("number", "T2"): set(),
    ("number", "L4-L5"): set(),
    ("number", "1,000"): set(),
    ("laterality", "Left lung"): {"Right lung"},
    ("laterality", "both left and right"): set(),
    ("laterality", "leftover"): set(),
    ("position", "the upper lobe, lateral"): {"the lower lobe, lateral", "the upper lobe, medial"},
    ("position", "bilateral"): set(),
    ("modality", "CT scan"): {"MRI", "X-RAY", "ULTRASOUND", "PET", "ENDOSCOPY"}
    | {"X-ray", "Ultrasound", "Endoscopy"},
    ("modality", "mammogram"): {"CT", "MRI", "Ultrasound", "ultrasound", "PET", "endoscopy"},
    ("modality", "PET-CT"): set(),
    ("organ", "Knee and hip"): set(),
    ("organ", "a mass"): set(),
}


@pytest.mark.parametrize(("rule", "answer"), MADE)
def test_what_a_rule_makes_of_an_answer(rule: str, answer: str) -> None:
    drawn = {wrong_answer(rule, answer, {normalised(answer)}, Random(seed)) for seed in range(60)}
    assert drawn - {None} <= MADE[rule, answer]
    assert (drawn == {None}) == (not MADE[rule, answer])


def test_an_organ_of_another_region_takes_the_place() -> None:
    drawn = {str(wrong_answer("organ", "Both Lungs", set(), Random(seed))) for seed in range(200)}
    assert {"Both Kidneys", "Both Livers", "Both Brains"} <= drawn
    assert not {"Both Hearts", "Both Aortas"} & drawn


@pytest.mark.parametrize("rule", RULES)
def test_what_is_right_is_never_made(rule: str) -> None:
    """Whatever is drawn, and however it is written."""
    for answer in ("Yes", "two", "3", "left", "upper", "CT", "lung"):
        first = wrong_answer(rule, answer, {normalised(answer)}, Random(1))
        if first is not None:
            right = {normalised(answer), normalised(f"The {first.upper()}.")}
            assert wrong_answer(rule, answer, right, Random(1)) != first


def row(number: int, question: str, answer: Any, **changes: Any) -> dict[str, Any]:
    return {
        "qid": number,
        "img_name": f"{number % 2}.png",
        "question": question,
        "answer": answer,
    } | changes


ROWS = [
    row(0, "Is there a mass?", "Yes", organ="lung", q_lang="en"),
    row(1, "Is there a mass?", "No", patient="p7"),
    row(2, "How many nodules?", 2),
    row(3, "Which side?", "Left"),
    row(4, "What is seen?", "Pneumonia"),
    row(5, "What is seen?", "Effusion"),
    row(6, "what is seen", "effusion"),
    row(7, "Why?", "Unclear"),
    row(8, "Where?", ["a", "b"]),
    row(9, "Where?", ""),
    row(10, "Which?", "left", img_name=None),
    row(11, "Which?", "left", img_name="lost.png"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from PIL import Image

    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name, grey in (("0.png", 20), ("1.png", 200)):
        picture = Image.new("L", (9, 8), grey)
        picture.putpixel((0, 0), 90)
        picture.save(tmp_path / name)
    return tmp_path


def build(folder: Path, rows: list[dict[str, Any]], *options: str) -> tuple[CaseSet, Any]:
    path = folder / "vqa.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    argv = ["data", "build", "--from", "vqa", str(path), "--output", str(folder / "set")]
    assert main([*argv, "--overwrite_output_dir", *options]) == 0
    report = json.loads((folder / "set" / "import_report.json").read_text("utf-8"))
    return read_set(str(folder / "set")), report


def by_rule(report: dict[str, Any]) -> dict[str, int]:
    return {name.removeprefix("derived:"): count for name, count in report["annotators"].items()}


def test_pairs_of_a_file(folder: Path) -> None:
    found, report = build(folder, ROWS)
    assert found.dimensions == ("accuracy",)
    assert by_rule(report) == {"yes_no": 2, "number": 1, "laterality": 1, "other_image": 1}
    cases = {case.case_id: case for case in found.cases}
    assert list(cases) == list("01235")
    better = {name: case.answers[case.labels["accuracy"].choice] for name, case in cases.items()}  # type: ignore[index]
    assert better == {str(r["qid"]): str(r["answer"]) for r in ROWS[:6] if r["qid"] != 4}
    assert set(cases["0"].answers) == {"Yes", "No"}
    assert set(cases["5"].answers) == {"Pneumonia", "Effusion"}
    assert cases["0"].groups == {"source": "derived:yes_no", "organ": "lung"}
    stored = (folder / "set" / "votes.jsonl").read_text("utf-8")
    lines = [json.loads(text) for text in stored.splitlines()]
    assert {line["annotator"] for line in lines} == {line["source"] for line in lines}
    assert lines[0]["extra"] == {"q_lang": "en"}
    # One image, one cluster.
    assert cases["0"].cluster == cases["2"].cluster
    assert len({cases[name].cluster for name in "135"} - {cases["0"].cluster}) == 1
    reasons = {line["place"]: line["reason"] for line in report["unread"]}
    assert reasons == {
        # `Effusion` is right about image 0 as well, for row 7 says so.
        "row 5": "no rule makes of 'Pneumonia' what is no answer to it in the file",
        "row 7": "no rule makes of 'effusion' what is no answer to it in the file",
        "row 8": "no rule makes of 'Unclear' what is no answer to it in the file",
        "row 9": "it has 2 reference answers; accepted is one",
        "row 10": "its answer is ''; give text",
        "row 11": "its image is None; give one path, data URL or stored image",
        "row 12": "there is no file 'lost.png'",
    }


def test_the_same_seed_gives_the_same_files_and_positions_tell_nothing(folder: Path) -> None:
    rows = [row(n, f"How many nodules in {n}?", n % 7) for n in range(300)]
    first, _ = build(folder, rows)
    votes = (folder / "set" / "votes.jsonl").read_bytes()
    build(folder, rows)
    assert (folder / "set" / "votes.jsonl").read_bytes() == votes
    # A row keeps its pair whatever stands around it.
    half, _ = build(folder, rows[::2])
    kept = {case.case_id: case.answers for case in half.cases}
    assert kept == {c.case_id: c.answers for c in first.cases if c.case_id in kept}
    build(folder, rows, "--seed", "1")
    assert (folder / "set" / "votes.jsonl").read_bytes() != votes
    assert 110 < sum(case.labels["accuracy"].choice == 0 for case in first.cases) < 190


def test_rules_are_chosen_and_ordered(folder: Path) -> None:
    rows = [row(0, "Is there a mass?", "Yes"), row(1, "Is there a mass?", "No")]
    _, report = build(folder, rows, "--rules", "other_image", "yes_no")
    assert by_rule(report) == {"other_image": 2}
    _, report = build(folder, [*rows, row(2, "Which side?", "left")], "--rules", "laterality")
    assert (report["lines"], report["not_taken"]) == (1, 2)


def test_what_may_agree_is_not_taken_from_another_image(folder: Path) -> None:
    asked = "What is seen?"
    rows = [row(0, asked, "Left effusion"), row(1, asked, "effusion"), row(3, asked, "A mass")]
    rows += [row(4, "Which scan?", "CT scan"), row(5, "Which scan?", "computed tomography")]
    found, _ = build(folder, rows, "--rules", "other_image")
    assert {case.case_id: {*case.answers} for case in found.cases} == {
        "0": {"Left effusion", "A mass"}
    }


def test_columns_by_other_names(folder: Path) -> None:
    rows = [{"Frage": "Karzinom?", "Antwort": "ja", "Bild": "0.png", "id": 1} for _ in range(2)]
    with pytest.raises(ConfigError, match="known as question or answer or image; there are Frage"):
        build_cases(BuildRequest(str(written(folder, rows)), Path("out"), "vqa"))
    names = ("--question_column", "Frage", "--answer_column", "Antwort", "--image_column", "Bild")
    found, report = build(folder, rows, *names)
    assert [case.case_id for case in found.cases] == ["row-1", "row-2"]
    assert "the ids in 'id' repeat" in report["notes"][0]
    found, _ = build(folder, rows, *names, "--without_images")
    assert found.cases[0].images == ()
    request = BuildRequest(str(written(folder, rows)), Path("out"), "vqa", question_column="Frag")
    with pytest.raises(ConfigError, match="Did you mean 'Frage'"):
        build_cases(request)


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "vqa.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_nothing_is_made_of_nothing(folder: Path) -> None:
    request = BuildRequest(str(written(folder, [row(0, "Why?", "Unclear")])), Path("out"), "vqa")
    with pytest.raises(DataError, match="none of its 1 row is taken"):
        build_cases(request)
    assert not (folder / "out").exists()

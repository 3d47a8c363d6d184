"""A project that a reader has worked through in Label Studio comes back as the same cases."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from exported_set import ODD, content, drafts, export, line

from medrm.cli import main
from medrm.data.case_set import read_cases
from medrm.data.sources import CaseDraft

FORMS = ("json", "json_min", "csv")


def filled(project: Path, name: str, chosen: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """What Label Studio exports as JSON of tasks in which a reader has made these choices.

    Args:
        project: folder of the export.
        name: behind those of its files.
        chosen: case id to control to choice, `reason` being a text.
    """
    view = ElementTree.parse(project / f"labelling_config{name}.xml").getroot()
    aliases = {
        control.get("name"): {choice.get("alias") or choice.get("value") for choice in control}
        for control in view.iter("Choices")
    }
    tasks = []
    for number, task in enumerate(json.loads((project / f"tasks{name}.json").read_text("utf-8"))):
        results = []
        for control, choice in chosen.get(task["data"]["case_id"], {}).items():
            is_text = control == "reason"
            assert is_text or choice in aliases[control]
            results.append(
                {
                    "id": f"r{number}{control}",
                    "type": "textarea" if is_text else "choices",
                    "value": {"text": [choice]} if is_text else {"choices": [choice]},
                    "from_name": control,
                    "to_name": "question",
                    "origin": "manual",
                }
            )
        annotation = {
            "id": 100 + number,
            "completed_by": {"id": 4, "email": "dora@example.org"},
            "result": results,
            "was_cancelled": False,
            "ground_truth": False,
            "created_at": "2026-11-30T08:00:00.000000Z",
            "updated_at": "2026-11-30T08:01:00.000000Z",
            "lead_time": 31.5,
        }
        annotations = [annotation] if results else []
        tasks.append({"id": number + 1, **task, "annotations": annotations, "predictions": []})
    return tasks


def as_exported(tasks: list[dict[str, Any]], form: str, folder: Path) -> Path:
    """Writes tasks as Label Studio's JSON, JSON_MIN or CSV."""
    path = folder / f"export.{'csv' if form == 'csv' else 'json'}"
    rows: list[dict[str, Any]] = tasks
    if form != "json":
        rows = [
            {
                **task["data"],
                "id": task["id"],
                **{
                    result["from_name"]: next(iter(result["value"].values()))[0]
                    for result in annotation["result"]
                },
                "annotator": annotation["completed_by"]["email"],
                "annotation_id": annotation["id"],
                **{key: annotation[key] for key in ("created_at", "updated_at", "lead_time")},
            }
            for task in tasks
            for annotation in task["annotations"]
        ]
    if form != "csv":
        path.write_text(json.dumps(rows), encoding="utf-8")
        return path
    with path.open("w", encoding="utf-8", newline="") as file:
        names = sorted({name for row in rows for name in row})
        writer = csv.DictWriter(file, names, quoting=csv.QUOTE_NONNUMERIC)
        writer.writeheader()
        writer.writerows(
            {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()}
            for row in rows
        )
    return path


@pytest.mark.parametrize("form", FORMS)
def test_choices_of_a_reader_come_back_as_votes_on_the_stored_answers(
    source: Path,
    tmp_path: Path,
    form: str,
) -> None:
    export(source, "label_studio", tmp_path / "p", "--seed", "2")
    before = drafts(source)
    pairs = {
        "007": {"overall": "A", "overall_strength": "slightly", "confidence": "high"},
        "=1+1": {"overall": "tie", "dimension_2": "neither", "reason": "=no <b>"},
        "turns": {"dimension_2": "B"},
    }
    ranks = {"three": {f"overall_rank_{n}": rank for n, rank in ((1, "2"), (2, "1"), (3, "2"))}}
    after: dict[str, CaseDraft] = {}
    for name, choices in (("_2_answers", pairs), ("_3_answers", ranks)):
        path = as_exported(filled(tmp_path / "p", name, choices), form, tmp_path / "p")
        back = tmp_path / f"back{name}"
        assert main(["data", "import", str(path), "--output", str(back)]) == 0
        after |= drafts(back)
    assert [content(after[name]) for name in after] == [content(before[name]) for name in after]
    assert set(after) == {*pairs, *ranks}
    shown = {
        task["data"]["case_id"]: task["data"]
        for name in ("_2_answers", "_3_answers")
        for task in json.loads((tmp_path / "p" / f"tasks{name}.json").read_text("utf-8"))
    }

    (vote,) = after["007"].votes["overall"]
    assert before["007"].answers[vote.value] == shown["007"]["answer_1"]
    dora = "4" if form == "json" else "dora@example.org"  # what the other forms have
    assert (vote.annotator, vote.strength, vote.confidence) == (dora, "slightly", "high")
    assert vote.seconds == 31.5
    assert not any(remark.extra for draft in after.values() for remark in draft.remarks)
    values = {name: [v.value for v in votes] for name, votes in after["=1+1"].votes.items()}
    assert values == {"overall": ["tie"], ODD: ["neither"]}
    assert after["=1+1"].votes[ODD][0].reason == "=no <b>"
    (vote,) = after["turns"].votes[ODD]
    assert before["turns"].answers[vote.value] == shown["turns"]["answer_2"]
    (vote,) = after["three"].votes["overall"]
    best = before["three"].answers.index(shown["three"]["answer_2"])
    assert vote.value == ((best,), tuple(sorted({0, 1, 2} - {best})))


@pytest.mark.parametrize("form", FORMS)
def test_whatever_a_dimension_is_called_and_an_answer_says_its_votes_come_back(
    tmp_path: Path, form: str
) -> None:
    names = ["seconds", "comment", "answer_1", "x_rank_1", "order", "A/B", '{"a": 1}']
    answers = ['[{"text": "x"}]', "/data/upload/1.png"]
    row = line("17", "anna", images=[], answers=answers, votes=dict.fromkeys(names, "tie"))
    (tmp_path / "votes.jsonl").write_text(json.dumps(row) + "\n")
    export(tmp_path / "votes.jsonl", "label_studio", tmp_path / "p")
    (task,) = json.loads((tmp_path / "p" / "tasks.json").read_text("utf-8"))
    chosen = {"17": dict.fromkeys(task["data"]["dimensions"], "A")}
    path = as_exported(filled(tmp_path / "p", "", chosen), form, tmp_path / "p")
    assert main(["data", "import", str(path), "--output", str(tmp_path / "back")]) == 0
    after = drafts(tmp_path / "back")["17"]
    first = task["data"]["order"][0]
    assert {name: [v.value for v in votes] for name, votes in after.votes.items()} == (
        {name: [first] for name in names}
    )
    assert content(after) == content(drafts(tmp_path / "votes.jsonl")["17"])


def test_a_further_reader_joins_the_others(source: Path, tmp_path: Path) -> None:
    project = tmp_path / "p"
    export(source, "label_studio", project, "--least_agreed", "1", "--dimensions", "overall")
    (task,) = json.loads((project / "tasks.json").read_text("utf-8"))
    case_id = task["data"]["case_id"]
    path = as_exported(filled(project, "", {case_id: {"overall": "tie"}}), "json", project)
    back = tmp_path / "joined"
    assert main(["data", "import", str(path), "--output", str(back)]) == 0
    for name in ("scan.png", "deep.tif"):
        (back / name).write_bytes((source.parent / name).read_bytes())
    with (back / "votes.jsonl").open("a", encoding="utf-8") as joined:
        joined.writelines(
            row for row in source.read_text("utf-8").splitlines(True) if "lost.png" not in row
        )
    readers = [vote.annotator for vote in drafts(back)[case_id].votes["overall"]]
    assert readers == ["4", "anna", "ben"]


def test_pictures_of_dicom_files_keep_patient_and_study_together(tmp_path: Path) -> None:
    data = pytest.importorskip("pydicom.data")
    (tmp_path / "a.dcm").write_bytes(Path(data.get_testdata_file("CT_small.dcm")).read_bytes())
    row = line("17", "anna", images=["a.dcm"])
    del row["patient"]
    (tmp_path / "votes.jsonl").write_text(json.dumps(row) + "\n")
    conversion = ("--image_conversion", "ct_abdomen")
    export(tmp_path / "votes.jsonl", "label_studio", tmp_path / "p", *conversion)
    export(tmp_path / "votes.jsonl", "trl", tmp_path / "rows", *conversion)
    path = as_exported(filled(tmp_path / "p", "", {"17": {"overall": "A"}}), "json", tmp_path / "p")
    assert main(["data", "import", str(path), "--output", str(tmp_path / "back")]) == 0
    (before,) = read_cases(tmp_path / "votes.jsonl", "ct_abdomen")
    for copied in ("back", "rows/overall.jsonl"):
        (after,) = read_cases(tmp_path / copied)
        assert after.cluster == before.cluster
        assert [ref.digest for ref in after.images] == [ref.digest for ref in before.images]
    assert "dicom-" not in (tmp_path / "p" / "tasks.json").read_text("utf-8")

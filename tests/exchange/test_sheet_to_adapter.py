"""From a sheet of three readers to agreement, an adapter and a fourth reader; nothing leaves."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pydicom
import pytest
from reader_study import READERS, write_study

from medrm.cli import main

DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
MEDICAL = ("CT_small.dcm", "693_J2KI.dcm", "MR_small.dcm")
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The imported study beside its sheet, on a machine without a network."""

    def refuse(*_: object) -> Any:
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    sheet = write_study(tmp_path / "klinik", medical=tuple(DICOM / name for name in MEDICAL))
    output, conversion = tmp_path / "lesestudie", ["--image_conversion", "file_window"]
    assert main(["data", "import", str(sheet), "--output", str(output), *conversion]) == 0
    return output


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def annotated(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tasks of a Label Studio project as it exports them, when a reader prefers answer A in all."""
    return [
        task
        | {
            "id": number,
            "annotations": [
                {
                    "id": number,
                    "completed_by": {"id": 4, "email": "vier@klinik.example"},
                    "was_cancelled": False,
                    "lead_time": 31.5,
                    "result": [
                        {
                            "id": "x",
                            "type": "choices",
                            "from_name": name,
                            "to_name": "question",
                            "value": {"choices": [choice]},
                        }
                        for name, choice in (("accuracy", "A"), ("overall", "neither"))
                    ],
                }
            ],
            "drafts": [],
            "predictions": [],
        }
        for number, task in enumerate(tasks, start=1)
    ]


def test_a_fourth_reader_is_asked_and_joined(study: Path, tmp_path: Path) -> None:
    report = read(study / "import_report.json")
    assert {key: report[key] for key in ("rows", "lines", "cases", "images", "not_taken")} == {
        "rows": 120, "lines": 120, "cases": 100, "images": 100, "not_taken": 0,
    }  # fmt: skip
    assert report["annotators"] == dict.fromkeys(READERS, 40)
    assert report["votes"]["overall"]["neither"] == 2
    assert report["converted"]["files"] == {"DICOM": 3}
    sheet, plain = tmp_path / "klinik" / "lesestudie.xlsx", tmp_path / "unconverted"
    assert main(["data", "import", str(sheet), "--output", str(plain)]) == 0
    unconverted = read(plain / "import_report.json")
    assert (unconverted["without_image"], unconverted["lines"]) == (6, 114)
    assert all("--image_conversion" in row["reason"] for row in unconverted["unread"])
    agreement = tmp_path / "agreement.json"
    assert main(["data", "agreement", str(study), "--output", str(agreement)]) == 0
    assert read(agreement)["dimensions"]["accuracy"]["units"] == 20
    project = tmp_path / "fourth"
    command = ["data", "export", str(study), "--to", "label_studio", "--least_agreed", "15"]
    assert main([*command, "--output", str(project)]) == 0
    tasks = read(project / "tasks.json")
    assert len(tasks) == 15
    (project / "export.json").write_text(json.dumps(annotated(tasks)))
    command = ["data", "import", str(project / "export.json"), "--join", str(study)]
    assert main([*command, "--output", str(tmp_path / "four")]) == 0
    joined = read(tmp_path / "four" / "import_report.json")
    assert (joined["lines"], joined["cases"], joined["images"]) == (135, 100, 100)
    assert not joined["unread"]
    lines = (tmp_path / "four" / "votes.jsonl").read_text().splitlines()[120:]
    shown_first = {task["data"]["case_id"]: task["data"]["order"][0] for task in tasks}
    assert {(line["case_id"], line["votes"]["accuracy"]) for line in map(json.loads, lines)} == {
        (case_id, "AB"[first]) for case_id, first in shown_first.items()
    }
    assert {"".join(json.loads(line)["patient"])[0] for line in lines} == {"P"}


@pytest.mark.slow
def test_an_adapter_is_trained_and_measured_under_the_name_of_the_set(
    study: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "recipes" / "train_rm.py"), "--train_data", str(study)]
    command += ["--output_dir", str(run), "--max_steps", "2", "--controls", "none"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = read(run / "evaluation" / "after" / "report.json")
    assert report["benchmark"]["name"] == "lesestudie"
    assert report["protocols"]["robust"]["dimensions"]["accuracy"]["n"] > 10
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    # The next study is other cases: an adapter is not measured on what it learned from.
    sheet, next_study = write_study(tmp_path / "next", 20, 20, seed=8), tmp_path / "study_2027"
    assert main(["data", "import", str(sheet), "--output", str(next_study)]) == 0
    command = ["evaluate", "--model", str(run / "adapter"), "--benchmark", str(next_study)]
    assert main([*command, "--output_dir", str(tmp_path / "measured")]) == 0
    assert read(tmp_path / "measured" / "report.json")["benchmark"]["name"] == "study_2027"
    command[-1] = str(study)
    assert main([*command, "--output_dir", str(tmp_path / "refused")]) == 2

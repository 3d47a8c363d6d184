"""How medical images became pictures is part of a model: kept, taken up again, and checked."""

from __future__ import annotations

import base64
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pipeline.entry import Recipe

import medrm
from medrm.cli import main
from medrm.data.images import decode
from medrm.errors import ConfigError, DataError
from medrm.models.adapter_config import read_adapter_config, update_adapter_config
from medrm.scorer.caller_cases import CallerImages

sys.path.append(str(Path(__file__).parents[1] / "data"))
from files import vote, write_lines
from medical_samples import DICOM, converted, write_dicom, write_series

GOLDEN = Path(__file__).parents[1] / "golden" / "reward_adapter"
QUESTION, ANSWERS = "Is there a nodule?", ["Yes, on the left.", "No."]
CT = DICOM / "CT_small.dcm"


@pytest.fixture
def lung_model(tmp_path: Path) -> Path:
    """A reward model that says that it was trained on medical images by `ct_lung`."""
    folder = tmp_path / "adapter"
    shutil.copytree(GOLDEN, folder)
    update_adapter_config(folder, image_conversion="ct_lung")
    return folder


def picture(path: Path, conversion: str) -> Image.Image:
    (ref,) = converted(path, conversion)
    return decode(ref)


def test_a_loaded_model_reads_medical_images_as_it_was_trained(
    lung_model: Path, tmp_path: Path
) -> None:
    assert json.loads((lung_model / "medrm.json").read_text())["image_conversion"] == "ct_lung"
    assert "image_conversion" not in json.loads((GOLDEN / "medrm.json").read_text())
    model = medrm.load(lung_model)
    expected = model.score([picture(CT, "ct_lung")], QUESTION, ANSWERS)
    url = f"data:application/dicom;base64,{base64.b64encode(CT.read_bytes()).decode()}"
    for image in (CT, str(CT), CT.read_bytes(), url, {"bytes": CT.read_bytes(), "path": None}):
        assert np.array_equal(model.score([image], QUESTION, ANSWERS), expected)
    rows = [{"question": QUESTION, "answers": ANSWERS, "images": [str(CT)]}]
    ((_, rewards),) = model.score_cases(rows)
    assert np.array_equal(rewards, expected)
    with pytest.raises(ConfigError, match="trained on medical images by ct_lung"):
        medrm.load(lung_model, image_conversion="ct_bone")
    with pytest.raises(DataError, match="--image_conversion"):
        medrm.load(GOLDEN).score([CT], QUESTION, ANSWERS)
    other = medrm.load(GOLDEN, image_conversion="ct_bone").score([CT], QUESTION, ANSWERS)
    assert np.array_equal(other, model.score([picture(CT, "ct_bone")], QUESTION, ANSWERS))
    assert not np.array_equal(other, expected)
    with pytest.raises(DataError, match="cannot be converted"):
        model.score([DICOM / "MR_small.dcm"], QUESTION, ANSWERS)


def test_bytes_of_clients_are_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    from medrm.data.medical.conversions import parse_conversion

    source = CallerImages(conversion=parse_conversion("ct_lung"))
    (ref,) = source.encoded(base64.b64encode(CT.read_bytes()).decode(), 0)
    assert decode(ref).size == (128, 128)
    (problem,) = source.stored((DICOM / "MR_truncated.dcm").read_bytes(), 1)
    assert "pixels are damaged" in str(problem.problem)
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "salt"]
    assert left == []


def test_scores_of_files(
    lung_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_series(tmp_path / "data" / "series", [1, 2, 3])
    rows = [
        {"question": QUESTION, "answers": ANSWERS, "images": ["series"]},
        {"question": QUESTION, "answers": ANSWERS, "images": ["none.dcm"]},
    ]
    source = write_lines(tmp_path / "data" / "rows.jsonl", rows)

    def scored(model: Path, name: str, *options: str) -> list[dict[str, Any]] | None:
        output = tmp_path / f"{name}.jsonl"
        words = ["--model", str(model), "--input", str(source), "--output", str(output)]
        status = main(["score", *words, *options])
        return None if status else [json.loads(line) for line in output.read_text().splitlines()]

    own, missing = scored(lung_model, "own") or []
    stated, _ = scored(GOLDEN, "stated", "--image_conversion", "ct_lung") or []
    assert own["rewards"] == stated["rewards"]
    (ref,) = converted(folder, "ct_lung")
    stream = io.BytesIO()
    decode(ref).save(stream, "PNG")
    expected = medrm.load(GOLDEN).score([stream.getvalue()], QUESTION, ANSWERS)
    found = np.array(list(own["rewards"].values())).T
    assert np.array_equal(found.astype(np.float32), expected)
    assert missing["state"] != "ok"
    assert scored(lung_model, "refused", "--image_conversion", "ct_bone") is None
    assert "trained on medical images by ct_lung" in capsys.readouterr().err


def test_an_evaluation_records_it_and_a_comparison_sees_it(
    lung_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write_dicom(tmp_path / f"{n}.dcm", RescaleIntercept=n * 40 - 900) for n in range(4)]
    rows = [vote(path.stem, image=path.name, question=f"Is {path.stem} normal?") for path in paths]
    data = write_lines(tmp_path / "votes.jsonl", rows)

    def evaluated(name: str, model: str | Path, *options: str) -> dict[str, Any] | None:
        words = ["--model", str(model), "--benchmark", str(data), "--output_dir"]
        status = main(["evaluate", *words, str(tmp_path / name), *options])
        report = tmp_path / name / "report.json"
        return None if status else json.loads(report.read_text())["settings"]

    lung, bone = (
        evaluated(name, "mock:longer", "--image_conversion", f"ct_{name}")
        for name in ("lung", "bone")
    )
    assert lung is not None
    assert bone is not None
    assert (lung["image_conversion"], bone["image_conversion"]) == ("ct_lung", "ct_bone")
    compared = ["compare", str(tmp_path / "lung"), str(tmp_path / "bone")]
    assert main([*compared, "--output_dir", str(tmp_path / "compared")]) == 0
    comparison = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert comparison["differences"]["image_conversion"] == {
        "before": "ct_lung",
        "after": "ct_bone",
    }
    assert not comparison["comparable"]
    own = evaluated("own", lung_model)
    assert own is not None
    assert own["image_conversion"] == "ct_lung"
    assert evaluated("other", lung_model, "--image_conversion", "ct_bone") is None
    assert "trained on medical images by ct_lung" in capsys.readouterr().err
    assert evaluated("none", "mock:longer") is None
    assert "--image_conversion with one of" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_keeps_it_and_goes_on_with_no_other(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    rows = []
    for number in range(24):
        stored = np.random.default_rng(number).integers(-900, 900, (40, 50)).astype(np.int16)
        patient = f"{number // 2}"
        write_dicom(
            data / f"{number}.dcm", stored, PatientID=patient, StudyInstanceUID=f"1.{number}"
        )
        votes = {"overall": "AB"[number % 2]}
        rows.append(vote(f"c{number}", image=f"{number}.dcm", question=f"{number}?", votes=votes))
    train_data = write_lines(data / "votes.jsonl", rows)
    asked = {"train_data": train_data, "image_conversion": "ct_lung", "controls": "none"}
    assert recipe(**asked) == 0
    contract = read_adapter_config(tmp_path / "run" / "adapter")
    assert contract.image_conversion == "ct_lung"
    manifest = json.loads((tmp_path / "run" / "run.json").read_text())
    assert manifest["data"]["train"]["image_conversion"] == "ct_lung"
    before = json.loads((tmp_path / "run/evaluation/before/report.json").read_text())
    assert before["settings"]["image_conversion"] == "ct_lung"
    assert before["benchmark"]["clusters"] == before["benchmark"]["cases"] / 2
    assert recipe(**asked) == 0  # finished already
    capsys.readouterr()
    assert recipe(**asked | {"image_conversion": "ct_bone"}) == 2
    assert "image_conversion: ct_lung then, ct_bone now" in capsys.readouterr().err

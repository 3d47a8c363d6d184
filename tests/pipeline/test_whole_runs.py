"""Files of whole runs: their modes, and what a damaged checkpoint or adapter comes to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from damages import KINDS
from pipeline.entry import Recipe, refuse_models

from medrm.cli import main
from medrm.evaluation.report import read_json, write_json
from medrm.integrity import damage

WEIGHTS = "adapter_model.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_modes_of_all_files_follow_the_umask(
    recipe: Recipe, phantom: Path, tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        assert recipe(train_data=phantom, max_steps=2, controls="frozen_probe,blank_images") == 0
    finally:
        os.umask(before)
    paths = list((tmp_path / "run").rglob("*"))
    names = {path.name for path in paths}
    assert {WEIGHTS, "run.json", "metrics.jsonl", "report.html", "optimizer.pt"} <= names
    assert any(path.suffix == ".webp" for path in paths)
    modes = {path: path.stat().st_mode & 0o777 for path in paths}
    assert [p for p, m in modes.items() if p.is_file() and m != mode] == []
    assert [p for p, m in modes.items() if p.is_dir() and m != 0o777 & ~umask] == []


@pytest.mark.slow
def test_a_run_passes_over_a_damaged_checkpoint_and_refuses_a_damaged_adapter(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = {"train_data": phantom, "stages": "train", "controls": "none"}
    run = tmp_path / "run"
    assert recipe(**options) == 0
    straight = (run / "adapter" / WEIGHTS).read_bytes()
    for kind in ("bit in the middle", "missing"):
        shutil.rmtree(run / "adapter")
        KINDS[kind](run / "checkpoint-4" / "optimizer.pt")
        caplog.clear()
        assert recipe(**options) == 0
        assert "checkpoint-4 is damaged and is passed over: optimizer.pt" in caplog.text
        assert (run / "adapter" / WEIGHTS).read_bytes() == straight
        assert damage(run / "checkpoint-4") == damage(run / "adapter") == []

    shutil.rmtree(run / "adapter")
    KINDS["zeroed"](run / "checkpoint-2" / WEIGHTS)
    assert recipe(**options, resume_from_checkpoint=run / "checkpoint-2") == 2
    assert f"{WEIGHTS} has another content" in capsys.readouterr().err

    assert recipe(**options) == 0  # from the newest, or anew where that ends with a damaged one
    assert (run / "adapter" / WEIGHTS).read_bytes() == straight
    KINDS["bit at the end"](run / "adapter" / WEIGHTS)
    arguments = ["--model", str(run / "adapter"), "--benchmark", "phantom"]
    assert main(["evaluate", *arguments, "--output_dir", str(tmp_path / "scores")]) == 2
    assert f"{WEIGHTS} has another content" in capsys.readouterr().err
    caplog.clear()
    assert recipe(**options) == 0
    assert (
        f"adapter is damaged, and is made anew from the last checkpoint: {WEIGHTS}" in caplog.text
    )
    assert (run / "adapter" / WEIGHTS).read_bytes() == straight
    growing = {**options, "stages": "before", "max_steps": 8}
    assert recipe(**growing) == 2  # of a cosine schedule it would be another run anyway
    assert (run / "adapter" / WEIGHTS).read_bytes() == straight


DERIVED = ("verdicts.jsonl", "report.json", "official.csv")
UNSEALED = ["finished.json", "evaluation/after/manifest.json"]
"""What lacks where a run is killed before it seals what it has measured."""


@pytest.mark.slow
def test_damaged_files_of_a_run_are_made_again(
    recipe: Recipe, phantom: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What follows from the responses without a model; these with one."""
    options = {
        "train_data": phantom,
        "controls": "zero_shot_verdict,zero_shot_likelihood,frozen_probe",
    }
    assert recipe(**options) == 0
    run = tmp_path / "run"
    rows = {name: run / "evaluation" / name for name in ("before", "after", "frozen_probe")}
    names = ["before.json", "finished.json", "comparison.json", "report.html", "run.json"]
    names += [
        f"evaluation/{row}/{file}"
        for row in rows
        for file in (*DERIVED, "responses.jsonl", "cases.jsonl", "evaluation.json", "manifest.json")
    ]
    whole = {name: (run / name).read_bytes() for name in names}

    def mended(damaged: list[str], kind: str) -> str:
        for name in damaged:
            KINDS[kind](run / name)
        caplog.clear()
        assert recipe(**options) == 0, damaged
        for name in whole:
            if name == "run.json":
                assert read_json(run / name).keys() >= {"config", "identity"}
            elif name != "report.html":
                assert (run / name).read_bytes() == whole[name], (name, damaged, kind)
        assert (run / "report.html").read_bytes().rstrip().endswith(b"</html>")
        return caplog.text

    derived = [f"evaluation/{row}/{file}" for row in rows for file in DERIVED]
    for kind in ("bit in the middle", "half", "missing", "zeroed"):
        with pytest.MonkeyPatch.context() as patch:
            refuse_models(patch)
            said = mended([*derived, "finished.json", "comparison.json"], kind)
        for row in list(rows.values())[kind == "missing" :]:  # `before` is copied again
            assert f"{row} was damaged, and was derived anew from its responses.jsonl" in said
    with pytest.MonkeyPatch.context() as patch:
        refuse_models(patch)
        mended(["comparison.json"], "bit in the middle")
        assert f"{run / 'report.html'} is damaged, and is written anew" in mended(
            ["report.html"], "half"
        )
        mended([f"evaluation/{row}/manifest.json" for row in rows], "bit in the middle")
        assert "before.json is damaged" not in caplog.text
        mended(UNSEALED, "missing")
    assert "before.json is damaged, and is measured again" in mended(["before.json"], "zeroed")
    reward = whole["evaluation/after/responses.jsonl"].index(b'"rewards": {') + 40
    for kind, damaged in (
        ("a digit", ["evaluation/after/responses.jsonl"]),
        ("half", ["evaluation/after/cases.jsonl", "evaluation/frozen_probe/evaluation.json"]),
    ):
        if kind == "a digit":
            content = bytearray(whole[damaged[0]])
            content[reward] = ord("3") if content[reward] != ord("3") else ord("4")
            (run / damaged[0]).write_bytes(content)
        said = mended([] if kind == "a digit" else damaged, kind)
        assert "is damaged, and is asked anew" in said


@pytest.mark.slow
def test_a_damaged_manifest_of_a_run(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It is written anew where checkpoints say that the run is this one, and else not."""
    caplog.set_level("INFO", logger="medrm")
    options = {"train_data": phantom, "stages": "train", "controls": "none", "max_steps": 2}
    assert recipe(**options) == 0
    left = "before,after,compare"
    assert f"still to do: {left}. The same command with --stages {left} does it" in caplog.text
    path = tmp_path / "run" / "run.json"
    manifest = read_json(path)
    for kind in ("half", "zeroed", "empty"):
        KINDS[kind](path)
        assert recipe(**options) == 0
        assert "run.json is damaged" in caplog.text
        assert read_json(path) == manifest
    KINDS["half"](path)
    damaged = path.read_bytes()
    for change in ({"seed": 7}, {}):
        if not change:
            shutil.rmtree(path.parent / "checkpoint-2")
        assert recipe(**options, **change) == 2
        message = capsys.readouterr().err
        assert "nothing else says which run lies there" in message
        assert "Restore it from a copy and start the same command again" in message
        assert path.read_bytes() == damaged


@pytest.mark.slow
def test_what_was_copied_in_from_another_run_is_refused(
    recipe: Recipe, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"train_data": phantom, "stages": "train", "controls": "none", "max_steps": 2}
    run, other = tmp_path / "run", tmp_path / "other"
    assert recipe(**options) == 0
    assert recipe(**options, seed=7, output_dir=other) == 0
    straight = (run / "adapter" / WEIGHTS).read_bytes()
    shutil.copytree(run / "adapter", tmp_path / "kept")
    shutil.rmtree(run / "adapter")
    shutil.copytree(other / "adapter", run / "adapter")
    assert recipe(**options) == 2
    assert "adapter is not the one that this run has trained" in capsys.readouterr().err
    shutil.rmtree(run / "adapter")
    shutil.copytree(other / "checkpoint-2", run / "checkpoint-9")
    assert recipe(**options) == 2
    message = capsys.readouterr().err
    assert "checkpoint-9 in " in message
    assert "is of another run than run.json says" in message
    shutil.rmtree(run / "checkpoint-9")
    assert recipe(**options) == 0
    assert (run / "adapter" / WEIGHTS).read_bytes() == straight
    # A folder of an earlier version says nothing of where its checkpoints come from.
    (run / "trained.json").unlink()
    for checkpoint in run.glob("checkpoint-*"):
        (checkpoint / "run_identity.json").unlink()
        (checkpoint / "manifest.json").unlink()
    manifest = read_json(run / "run.json")
    write_json(run / "run.json", {k: v for k, v in manifest.items() if k != "identity"})
    shutil.rmtree(run / "adapter")
    assert recipe(**options) == 0
    assert (run / "adapter" / WEIGHTS).read_bytes() == straight

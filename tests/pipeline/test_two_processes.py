"""A whole run on two processes leaves what one process leaves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml


def launch(root: Path, folder: Path, name: str, arguments: list[str]) -> Path:
    """Runs train_rm.py by a shipped launch file on the CPU, in two processes where it has more."""
    # accelerate parts models over GPUs alone.
    script = "tests/pipeline/as_with_gpus.py" if name == "fsdp2" else "recipes/train_rm.py"
    done = started(root, folder, name, [script, *arguments])
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / name


def started(
    root: Path, folder: Path, name: str, command: list[str]
) -> subprocess.CompletedProcess[str]:
    """Runs a script by a launch file to its end, whichever it is."""
    config = yaml.safe_load((root / "accelerate_configs" / f"{name}.yaml").read_text("utf-8"))
    config["use_cpu"] = True  # the flag --cpu would start one process and say nothing
    if config["num_processes"] > 1:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            config |= {"num_processes": 2, "main_process_port": probe.getsockname()[1]}
    written = folder / f"{name}.yaml"
    written.write_text(yaml.safe_dump(config), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(written),
         *command, "--output_dir", str(folder / name)],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def scores(run: Path, name: str) -> dict[tuple[str, str], tuple[float, float]]:
    rows = (run / "evaluation" / name / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    verdicts = [json.loads(row) for row in rows]
    return {(r["case_id"], r["dimension"]): (r["score_a"], r["score_b"]) for r in verdicts}


def words(options: dict[str, object]) -> list[str]:
    return [word for key, value in options.items() for word in (f"--{key}", str(value))]


@pytest.fixture(scope="module")
def reward_options(base: Path, phantom: Path) -> list[str]:
    options = {
        "model_name_or_path": base, "train_data": phantom, "max_steps": 3, "global_batch_cases": 8,
        "bf16": "false", "report_to": "none", "controls": "zero_shot_likelihood,frozen_probe",
    }  # fmt: skip
    return words(options)


@pytest.fixture(scope="module")
def single(root: Path, reward_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    return launch(root, tmp_path_factory.mktemp("single"), "cpu", reward_options)


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["ddp", "zero3", "fsdp2"])
def test_two_processes_do_the_whole_job(
    name: str, root: Path, reward_options: list[str], single: Path, tmp_path: Path
) -> None:
    if name == "zero3":
        pytest.importorskip("deepspeed", reason="deepspeed is a dependency on Linux only")
    both = launch(root, tmp_path, name, reward_options)
    assert [read(run / "run.json")["processes"] for run in (single, both)] == [1, 2]
    for row in ("zero_shot_likelihood", "frozen_probe", "after"):
        ours, theirs = scores(single, row), scores(both, row)
        assert ours.keys() == theirs.keys()
        # Three optimiser steps apart only by the order of sums.
        np.testing.assert_allclose(
            [theirs[key] for key in ours], list(ours.values()), atol=2e-3, rtol=0
        )
    assert (both / "report.html").is_file()
    for file in ("responses.jsonl", "verdicts.jsonl", "report.json"):  # the base is the same
        wanted, written = (run / "evaluation" / "before" / file for run in (single, both))
        assert written.read_bytes() == wanted.read_bytes()


@pytest.mark.distributed
def test_two_processes_cross_fit(root: Path, base: Path, other: Path, tmp_path: Path) -> None:
    options = {
        "model_name_or_path": base, "train_data": other, "max_steps": 2, "global_batch_cases": 4,
        "bf16": "false", "report_to": "none", "controls": "zero_shot_likelihood", "crossfit": 2,
    }  # fmt: skip
    arguments = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    single, both = (
        launch(root, tmp_path, "cpu", arguments),
        launch(root, tmp_path, "ddp", arguments),
    )
    for row in ("zero_shot_likelihood", "after"):
        ours, theirs = scores(single, row), scores(both, row)
        assert ours.keys() == theirs.keys()
        np.testing.assert_allclose(
            [theirs[key] for key in ours], list(ours.values()), atol=2e-3, rtol=0
        )
    assert read(single / "run.json")["data"] == read(both / "run.json")["data"]
    assert (both / "report.html").is_file()


def replies(run: Path, name: str) -> dict[tuple[str, str], Any]:
    lines = (run / "evaluation" / name / "responses.jsonl").read_text("utf-8").splitlines()
    responses = [json.loads(line) for line in lines]
    assert len({(r["case_id"], r["order"]) for r in responses}) == len(responses)
    return {(r["case_id"], r["order"]): r["text"] or r["probabilities"] for r in responses}


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["ddp", "zero3"])
def test_two_processes_do_the_whole_job_of_a_judge(
    name: str, root: Path, base: Path, phantom: Path, tmp_path: Path
) -> None:
    if name == "zero3":
        pytest.importorskip("deepspeed", reason="deepspeed is a dependency on Linux only")
    options = {
        "model_name_or_path": base, "train_data": phantom, "max_steps": 2, "bf16": "false",
        "objective": "judge_sft", "max_new_tokens": 8, "report_to": "none",
        "per_device_train_batch_size": 2, "controls": "base_skeleton,skeleton",
    }  # fmt: skip
    arguments = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    twice = [*arguments, "--gradient_accumulation_steps", "2"]
    single, both = launch(root, tmp_path, "cpu", twice), launch(root, tmp_path, name, arguments)
    assert replies(single, "before") == replies(both, "before")
    wanted, replied = (replies(run, "skeleton") for run in (single, both))
    assert wanted.keys() == replied.keys()
    for key, shares in wanted.items():
        for dimension, chances in shares.items():
            np.testing.assert_allclose(replied[key][dimension], chances, atol=2e-3)
    assert set(read(both / "comparison.json")["controls"]) == {"base_skeleton", "skeleton"}
    base_shares = replies(both, "base_skeleton")
    assert any(base_shares[key] != replied[key] for key in replied)


@pytest.mark.distributed
def test_two_processes_go_on_alike(root: Path, base: Path, phantom: Path, tmp_path: Path) -> None:
    options = {
        "model_name_or_path": base, "train_data": phantom, "max_steps": 3, "global_batch_cases": 8,
        "bf16": "false", "report_to": "none", "controls": "none",
    }  # fmt: skip
    arguments = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    launch(root, tmp_path, "ddp", [*arguments, "--stages", "before,train"])
    weights = tmp_path / "ddp" / "adapter" / "adapter_model.safetensors"
    trained = weights.stat().st_mtime_ns
    added = [*arguments, "--controls", "zero_shot_verdict,untrained_head,blank_images"]
    run = launch(root, tmp_path, "ddp", added)
    assert weights.stat().st_mtime_ns == trained
    assert set(read(run / "comparison.json")["controls"]) == set(added[-1].split(","))
    finished = (run / "report.html").stat().st_mtime_ns
    launch(root, tmp_path, "ddp", added)
    assert (run / "report.html").stat().st_mtime_ns == finished


@pytest.mark.distributed
def test_two_processes_train_several_seeds(
    root: Path, base: Path, other: Path, tmp_path: Path
) -> None:
    """Each seed is the run by itself, and the comparison over seeds is written once."""
    options = {
        "model_name_or_path": base, "train_data": other, "max_steps": 2, "global_batch_cases": 4,
        "bf16": "false", "report_to": "none", "controls": "none",
    }  # fmt: skip
    both = launch(root, tmp_path, "ddp", words({**options, "seeds": "3,4"}))
    assert read(both / "seeds.json")["seeds"] == [3, 4]
    assert (both / "report.html").is_file()
    (tmp_path / "alone").mkdir()
    alone = launch(root, tmp_path / "alone", "ddp", words({**options, "seed": 4}))
    for name in ("adapter/adapter_model.safetensors", "metrics.jsonl", "comparison.json"):
        assert (both / "seed-4" / name).read_bytes() == (alone / name).read_bytes(), name
    weights = [(both / f"seed-{n}/adapter/adapter_model.safetensors").read_bytes() for n in (3, 4)]
    assert weights[0] != weights[1]

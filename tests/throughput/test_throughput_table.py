"""The table of `medrm throughput` in Markdown, and the script that measures the 7B shape."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from medrm import cli
from medrm import throughput as throughput_module
from medrm.files import asset


def test_the_table_is_written_in_markdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput_module, "resident_bytes_of_step", lambda *_: 2**20)
    path = tmp_path / "throughput.md"
    words = (
        "throughput --shape tiny --image_tokens 12 --question_tokens 22 --answer_tokens 10 "
        "--tasks train --answers 2 --gradient_checkpointing --output"
    )
    assert cli.main([*words.split(), str(path)]) == 0
    caption, _, head, _, *rows = path.read_text().splitlines()
    assert caption.startswith("tiny: decoder of 0.1 M")
    assert caption.endswith("activations computed twice.")
    assert head.startswith("| task | K | variant | cases/s | ratio |")
    assert [row.split(" | ")[2] for row in rows] == ["separate", r"shared\_prefix"]


def test_the_script_of_the_7b_recipe_asks_for_the_true_shape_and_every_row_of_its_table(
    tmp_path: Path,
) -> None:
    called = tmp_path / "medrm"
    called.write_text('#!/bin/sh\necho "$@" >> "$LOG"\n')
    called.chmod(0o755)
    log, folder = tmp_path / "log", tmp_path / "out"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
    script = asset("recipes/qwen2_5_vl_7b/throughput.sh")
    subprocess.run(["bash", script, folder, "--rounds", "1"], env=environment, check=False)
    parts = [cli.build_parser().parse_args(line.split()) for line in log.read_text().splitlines()]
    assert {(part.shape, part.dtype, part.rounds) for part in parts} == {
        ("qwen2_5_vl_7b", "bfloat16", 1)
    }
    rows = [
        (task, answers, part.gradient_checkpointing)
        for part in parts
        for task in part.tasks
        for answers in part.answers
    ]
    assert rows == [
        ("train", 2, False),
        ("train", 2, True),
        *(("score", answers, False) for answers in (2, 4, 8)),
    ]
    readme = script.with_name("README.md").read_text()
    for task, answers, checkpointing in rows:
        assert f"| {task} | {answers} | {'on' if checkpointing else 'off'} |" in readme

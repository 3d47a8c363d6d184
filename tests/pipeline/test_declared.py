"""What a run says of declared differences: misspelt ones stop it early, missing ones are named."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from pipeline.entry import Recipe


def test_an_unknown_declared_difference_stops_before_training(
    recipe: Recipe, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(train_data=phantom, allowed_differences="readuot") == 2
    error = capsys.readouterr().err
    assert "'readuot' is not compared. Did you mean 'readout'" in error
    assert not list((tmp_path / "run").glob("checkpoint-*"))
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_missing_declaration_is_named_before_training_and_in_the_headline(
    recipe: Recipe, phantom: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = "allowed_differences: [readout]"
    with caplog.at_level(logging.WARNING, logger="medrm"):
        assert recipe(train_data=phantom, allowed_differences="null", max_steps=2) == 0
    assert sum(line in record.getMessage() for record in caplog.records) == 1
    comparison = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert not comparison["comparable"]
    assert line in comparison["headline"]
    assert line in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

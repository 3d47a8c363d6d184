"""Files that versions after 0.1.0 wrote (`golden/make.py`): loaded, scored and compared as then."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_golden import GOLDEN, evaluate, lines, same

from medrm.cli import main
from medrm.integrity import damage
from medrm.version import __version__

VERSIONS = ("0.3",)

NAMED = {"0.3": "0.1.0"}
"""What files name that were written by another version than they say; `golden/make.py` has why."""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["base_likelihood", "reward", "judge"])
def test_models_score_as_then(version: str, name: str, tmp_path: Path) -> None:
    is_base = name == "base_likelihood"
    model = "phantom-base" if is_base else str(GOLDEN / version / f"{name}_adapter")
    evaluate(model, tmp_path, *(("--readout", "likelihood") if is_base else ()))
    golden = GOLDEN / version / "evaluations" / name
    for file in ("responses.jsonl", "verdicts.jsonl"):
        assert lines(golden / file)
        same(lines(tmp_path / file), lines(golden / file))


@pytest.mark.parametrize("version", VERSIONS)
def test_adapters_are_whole(version: str) -> None:
    for name in ("reward_adapter", "judge_adapter"):
        folder = GOLDEN / version / name
        assert damage(folder) == []
        contract = json.loads((folder / "medrm.json").read_text("utf-8"))
        assert contract["versions"]["medrm"] == NAMED.get(version, version)


def test_the_next_golden_files_are_of_the_version_they_say(root: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(root / "tests" / "golden" / "make.py"), str(tmp_path / "0.0")]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"This is version {__version__}" in done.stderr
    assert not (tmp_path / "0.0").exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_evaluations_compare_as_then(version: str, tmp_path: Path) -> None:
    folder = GOLDEN / version / "evaluations"
    pair = [str(folder / name) for name in ("base_likelihood", "reward")]
    declared = ["--allowed_differences", "readout", "--output_dir", str(tmp_path)]
    assert main(["compare", *pair, *declared]) == 0
    golden = json.loads((GOLDEN / version / "comparison" / "comparison.json").read_text("utf-8"))
    assert golden["comparable"]
    same(json.loads((tmp_path / "comparison.json").read_text("utf-8")), golden)

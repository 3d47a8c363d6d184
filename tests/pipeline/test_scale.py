"""The cost of a set: linear to read, once; none at the next start; memory does not grow with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline import large_set
from pipeline.large_set import start, write_votes

from medrm.data.store.indexed_cases import CaseIndex


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_a_known_set_starts_without_a_pass_over_its_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_set, "IMAGES", 40)
    monkeypatch.setattr(CaseIndex, "case_json", CaseIndex.case_json)  # restored after each count
    votes = write_votes(tmp_path / "set", 2000)
    first, again = (start(votes, tmp_path / "run", steps=1) for _ in range(2))
    assert first["cases"] == again["cases"] == 2000
    # Each case once for its tokens, and one for each image.
    assert 2000 <= first["decoded"] <= 2100
    assert again["decoded"] == 0


@pytest.mark.slow
def test_cost_is_linear_and_memory_flat(tmp_path: Path) -> None:
    """Ten times the cases: ten times the reading, no more memory, and no later start."""
    costs = {
        cases: [_measured(write_votes(tmp_path / "set", cases), tmp_path) for _ in range(2)]
        for cases in (1_000, 10_000)
    }
    read = {cases: first["data_s"] + first["lengths_s"] for cases, (first, _) in costs.items()}
    assert read[10_000] < 15 * read[1_000]
    (_, small), (first, again) = costs[1_000], costs[10_000]
    assert again["data_s"] + again["lengths_s"] < 1
    assert again["data_s"] + again["lengths_s"] < read[10_000] / 5
    assert again["training_s"] < 2 * small["training_s"] + 2
    assert max(first["peak_mib"], again["peak_mib"]) < small["peak_mib"] + 60


def _measured(votes: Path, folder: Path) -> dict[str, float]:
    """Returns what a start takes in a process of its own."""
    done = subprocess.run(
        [sys.executable, large_set.__file__, str(votes), str(folder / "run"), "2"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured

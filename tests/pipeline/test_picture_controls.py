"""Picture controls of runs whose benchmark does not allow all of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pipeline.entry import Recipe

PICTURES = ["blank_images", "shuffled_images", "text_only"]


def rewritten(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a votes set with other values in every line."""
    shutil.copytree(source / "images", folder / "images")
    rows = [json.loads(line) for line in (source / "votes.jsonl").read_text().splitlines()]
    rows = [{key: value for key, value in row.items() if key != "image"} | {
        "images": [row["image"]], **changes
    } for row in rows]  # fmt: skip
    (folder / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "measured"),
    [({"patient": "one"}, ["blank_images", "text_only"]), ({"images": []}, [])],
)
def test_controls_that_the_cases_do_not_allow_are_left_out(
    recipe: Recipe,
    phantom: Path,
    other: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    measured: list[str],
) -> None:
    caplog.set_level("INFO")
    benchmark = rewritten(other, tmp_path / "set", **changes)
    options = {"train_data": phantom / "votes.jsonl", "benchmark": "phantom"}
    options |= {"data_root": benchmark, "max_steps": 1, "save_steps": 1, "eval_steps": 1}
    controls = ",".join(["zero_shot_likelihood", *PICTURES])
    assert recipe(**options, development_share=0.25, controls=controls) == 0
    comparison = json.loads((tmp_path / "run" / "comparison.json").read_text(encoding="utf-8"))
    assert set(comparison["controls"]) == {"zero_shot_likelihood", *measured}
    left_out = "shuffled_images is left out: The pictures of all cases belong to one patient"
    assert (left_out in caplog.text) == bool(measured)

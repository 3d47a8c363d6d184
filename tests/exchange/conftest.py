"""The set that is exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exported_set import FORMULA, HARD, LONG, ODD, line, png


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of pairs and of three answers, with all that a form may stumble over."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "scan.png").write_bytes(png(100))
    (folder / "deep.tif").write_bytes(png(40, "F"))
    three = {"answers": ["one", "two", "three"], "images": []}
    hard = {"answers": [HARD, LONG], "question": FORMULA, "images": ["scan.png", "deep.tif"]}
    turns = [{"role": "system", "content": "Be brief."}]
    rows = [
        line(
            "007",
            "anna",
            votes={"overall": "strongly_a", ODD: "tie"},
            seconds=12.5,
            reason='{"a": 1}',
        ),
        line("007", "ben", votes={"overall": "B", ODD: "neither"}, confidence={ODD: "low"}),
        line("=1+1", "anna", votes={"overall": "slightly_b", ODD: "B"}, **hard),
        line("=1+1", "ben", votes={"overall": "B", ODD: "B"}, reason="@sure", **hard),
        line("turns", "anna", context=turns, comment="- none"),
        line("three", "anna", votes={"overall": [[2], [0, 1]]}, confidence=0, **three),
        line("three", "ben", votes={"overall": [[2], [0], [1]]}, **three),
        line("lost", "anna", images=["lost.png"]),
    ]
    turn = line("turns", "ben", votes={"overall": "tie"}, context=turns)
    path = folder / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, turn]), encoding="utf-8")
    return path

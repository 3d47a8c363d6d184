"""Fixtures that write small data files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from files import label, picture, png, row, vote, write_lines, write_parquet


@pytest.fixture
def votes_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes `votes.jsonl` with three images beside it."""

    def write(*rows: dict[str, Any]) -> Path:
        (tmp_path / "images").mkdir(exist_ok=True)
        for number in (1, 2, 3):
            (tmp_path / "images" / f"{number}.png").write_bytes(png(picture(number)))
        return write_lines(tmp_path / "votes.jsonl", list(rows))

    return write


@pytest.fixture
def layout(tmp_path: Path) -> Callable[..., Path]:
    """Writes the released layout; arguments change the labels or inputs of an organ."""

    def write(
        labels: dict[str, list[dict[str, Any]]] | None = None,
        inputs: dict[str, list[dict[str, Any]]] | None = None,
    ) -> Path:
        base_labels = {
            "brain": [label("q1", accuracy="A"), label("q2", accuracy="B", overall="A")],
            "GI_tract": [label("q3", overall="B")],
        }
        base_inputs = {"brain": [row("q1", 1), row("q2", 2)], "GI_tract": [row("q3", 3)]}
        for organ, rows in (base_labels | (labels or {})).items():
            write_lines(tmp_path / "pair_gt_all" / f"{organ}.jsonl", rows)
        for organ, rows in (base_inputs | (inputs or {})).items():
            write_parquet(tmp_path / "pair_gt_all" / "parquet" / f"{organ}.parquet", rows, "image")
        return tmp_path

    return write


@pytest.fixture
def mixed(votes_file: Any) -> Path:
    """Pairs, a ranking, text-only cases, an image that is missing and one that is damaged."""
    several = {"answer_a": ..., "answer_b": ..., "answers": ["x", "y", "z"]}
    path = votes_file(
        vote("c1", "a1", patient="p", votes={"accuracy": "A", "overall": "tie"}, organ="brain"),
        vote("c2", "a1", image="images/2.png"),
        vote("c1", "a2", patient="p", votes={"accuracy": "B", "overall": None}, organ="brain"),
        vote("c3", "a1", image=..., images=["images/1.png", "images/3.png"], votes={}),
        vote("c4", "a1", image=..., images=[], question="Só?", votes={"own": "tie"}),
        vote("c5", "a1", **several, votes={"overall": [[0, 2], 1]}),
        vote("c6", "a1", image="images/none.png"),
        vote("c7", "a1", image="images/damaged.png", answer_a=" Nothing. ", votes={"own": "B"}),
    )
    (path.parent / "images" / "damaged.png").write_bytes(b"no image")
    return path

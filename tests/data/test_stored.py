from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from files import label, row, vote, write_lines

from medrm.data.case_set import read_set
from medrm.data.lint import KINDS, stored_findings
from medrm.errors import DataError

Layout = Callable[..., Path]

SOUND = {
    "brain": [row("q1", 1), row("q2", 2)],
    "GI_tract": [row("q3", 3, modality_type="GI_tract")],
}


def found(kind: str, root: Path) -> list[str]:
    """The findings of one kind, and none of another."""
    findings = stored_findings(str(root))
    assert set(findings) == set(KINDS)
    assert {name for name, sentences in findings.items() if sentences} <= {kind}
    return findings[kind]


def test_a_sound_layout_has_no_findings(layout: Layout) -> None:
    assert found("labels", layout(inputs=SOUND)) == []


def test_labels_that_the_released_scorer_never_matches(layout: Layout) -> None:
    labels = {"brain": [label("q1", accuracy="tie"), label("q2", accuracy="b", overall="A")]}
    root = layout(labels, SOUND)
    assert found("labels", root) == [
        "brain.jsonl: accuracy is 'tie' in 1 case, such as 'q1'",
        "brain.jsonl: accuracy is 'b' in 1 case, such as 'q2'",
    ]
    with pytest.raises(DataError, match="'accuracy' is 'b'"):
        read_set(str(root))


def test_ids_of_two_types(layout: Layout) -> None:
    root = layout({"brain": [label(1, overall="A"), label("q2", overall="A")]}, SOUND)
    (sentence,) = found("id_types", root)
    assert sentence.startswith("brain.jsonl: ids of type int, str; brain.parquet: ids of type str")
    numbers = {"brain": [row(1, 1), row(2, 2)]}  # type: ignore[arg-type]
    texts = {"brain": [label("1", overall="A"), label("2", overall="A")]}
    (sentence,) = found("id_types", layout(texts, SOUND | numbers))
    assert "brain.jsonl: ids of type str; brain.parquet: ids of type int" in sentence


def test_ids_that_occur_twice(layout: Layout) -> None:
    labels = {"brain": [label("q1", overall="A"), label("q2", overall="A")] * 2}
    inputs = {"GI_tract": [row("q3", 3, modality_type="GI_tract"), row("q1", 4)]}
    inputs["GI_tract"][1]["modality_type"] = "GI_tract"
    assert found("duplicate_ids", layout(labels, SOUND | inputs)) == [
        "brain.jsonl: question_id 'q1' occurs 2 times",
        "brain.jsonl: question_id 'q2' occurs 2 times",
        "question_id 'q1' occurs in GI_tract and in brain",
    ]
    strange = {"brain": [label("q1", overall="A"), label("q3", overall="A")]}
    assert found("duplicate_ids", layout(strange, SOUND)) == [
        "question_id 'q3' occurs in GI_tract and in brain"
    ]


def test_a_modality_type_that_is_not_the_name_of_its_file(layout: Layout) -> None:
    inputs: dict[str, list[dict[str, Any]]] = {
        "brain": [row("q1", 1, modality_type="CT"), row("q2", 2)],
        "GI_tract": [{k: v for k, v in row("q3", 3).items() if k != "modality_type"}],
    }
    assert found("modality_type", layout(inputs=inputs)) == [
        "GI_tract.parquet: no column modality_type",
        "brain.parquet: modality_type is 'CT' in 1 of 2 rows",
    ]


def test_votes(votes_file: Callable[..., Path], tmp_path: Path) -> None:
    path = votes_file(
        vote(votes={"accuracy": "A", "overall": None}), vote("c2", votes={"x": "tie"})
    )
    assert found("labels", path) == found("labels", tmp_path) == []
    path = votes_file(vote(votes={"accuracy": "a"}), vote("c2", votes={"accuracy": "a"}))
    assert found("labels", path) == ["accuracy is 'a' in 2 cases, such as 'c1'"]
    ranked = vote(answer_a=..., answer_b=..., answers=["a", "b", "c"], votes={"x": [0, 1]})
    assert found("labels", votes_file(ranked)) == ["x is [0, 1] in 1 case, such as 'c1'"]
    (sentence,) = found("id_types", votes_file(vote(1), vote("2")))  # type: ignore[arg-type]
    assert "votes.jsonl: ids of type int, str" in sentence
    assert found("duplicate_ids", votes_file(vote(), vote())) == [
        "annotator 'a1' votes 2 times on accuracy of case 'c1'"
    ]


def test_other_forms_have_nothing_of_the_kind(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", [{"chosen": "a", "rejected": "b", "prompt": "q"}])
    assert not any(stored_findings(str(path)).values())

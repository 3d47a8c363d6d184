"""Public sets that are no benchmarks of their own, in rows of their published columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pyarrow.parquet as pq
import pytest
from files import picture, png, write_lines
from released_samples import (
    TEXT,
    as_snapshot,
    multimodal_rewardbench_2,
    real_pocqi,
    write_parquet,
)

from medrm.data.case_set import read_set
from medrm.data.labels import LabelRules
from medrm.data.mixture import read_training_set
from medrm.data.store.vote_records import votes_on
from medrm.errors import DataError
from medrm.evaluation.benchmark_loading import load_benchmark
from medrm.schema import PairLabel, RankingLabel


def test_real_pocqi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Votes are turned to the stored order, with their strength; each question is a cluster."""
    folder = real_pocqi(tmp_path / "here")
    found = read_set(str(folder))
    assert found.dimensions == ("accuracy", "completeness")
    first, second = found.cases
    assert {*first.answers} == {"openevidence on q1", "gpt-5.5 on q1"}
    assert first.groups == {
        "department": "Cardiology",
        "render_mode": "qa_text_only",
        "systems": "gpt-5.5 | openevidence",
    }
    assert (second.groups["render_mode"], second.question) == ("qa_text_citations", "What of q2?")
    votes = dict(votes_on(found.cases))
    own = [answer.startswith("openevidence") for answer in first.answers].index(True)
    assert [(vote.value, vote.strength) for vote in votes[0]["accuracy"]] == [
        (own, "strongly"),
        (1 - own, "slightly"),
    ]
    assert [vote.value for vote in votes[0]["completeness"]] == ["tie", "tie"]
    (cast,) = votes[1]["accuracy"]
    assert (second.answers[int(str(cast.value))], cast.strength) == ("gpt-5.5 on q2", "slightly")
    label = read_set(str(folder), LabelRules(strength="weight")).cases[0].labels["accuracy"]
    assert isinstance(label, PairLabel)
    assert label.shares[2 * own] == 0.75, "one and a half votes to a half"
    assert load_benchmark(str(folder)).source.digest == found.digest
    snapshot = as_snapshot(real_pocqi(tmp_path / "hub"), tmp_path / "repo", "a" * 40)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(snapshot))
    hub = read_set("real_pocqi")
    assert (hub.digest, hub.revision, hub.hub_id) == (
        found.digest,
        "a" * 40,
        "jjfenglab/Real-POCQi",
    )


def test_ids_of_prompts_mean_nothing_in_another_set(tmp_path: Path) -> None:
    """Cases of one question are one cluster in their own set alone."""
    first, second = real_pocqi(tmp_path / "a"), real_pocqi(tmp_path / "b")
    path = second / "questions.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["question_text"] = "And what of that?"
    write_parquet(path, rows, dict.fromkeys(rows[0], TEXT))
    mixture = read_training_set(f"{first},{second}")
    clusters = [case.cluster for case in mixture.cases]
    assert [part.drawn for part in mixture.mixed] == [2, 1], "the other case is a repetition"
    assert len({*clusters}) == 3


@pytest.mark.parametrize(
    ("table", "changes", "problem"),
    [
        ("ratings", {"choice": "a_little"}, "ratings row 1: accepted are 'A', 'B', 'tie'"),
        ("ratings", {"slot_b_provider": "openevidence"}, "does not name two systems"),
        ("ratings", {"slot_b_provider": "other"}, "the answer of .* is missing"),
        ("questions", {"question_id": "q2"}, "questions row 2: 'q2' occurs twice"),
        ("answers", {"answer_markdown": None}, "the answer of .* is missing"),
        ("answers", None, "answers: column 'provider_key' is missing"),
    ],
)
def test_wrong_rows_of_real_pocqi(
    table: str, changes: dict[str, Any] | None, problem: str, tmp_path: Path
) -> None:
    path = real_pocqi(tmp_path) / f"{table}.parquet"
    rows = pq.read_table(path).to_pylist()
    rows = [{"x": "y"}] if changes is None else [rows[0] | changes, *rows[1:]]
    write_parquet(path, rows, dict.fromkeys(rows[0], TEXT))
    with pytest.raises(DataError, match=problem):
        read_set(str(tmp_path))
    (tmp_path / "answers.parquet").unlink()
    with pytest.raises(DataError, match="holds 0 tables of answers"):
        read_set(str(tmp_path))


def test_the_reasoning_task_of_multimodal_rewardbench_2(tmp_path: Path) -> None:
    """Marks of images, letters of the better answer, and an answer that shows an image."""
    folder = multimodal_rewardbench_2(tmp_path)
    name = "multimodal_rewardbench_2"
    cases = read_set(str(folder), described=name).cases
    assert [case.question for case in cases] == [
        *("Which is larger?", "What is this?", "(image 1) Or (image 2)?", "Why?")
    ]
    assert [len(case.images) for case in cases] == [0, 1, 2, 1]
    choices = [label.choice for case in cases for label in case.labels.values()]  # type: ignore[union-attr]
    assert choices == [0, 1, 0, 1]
    path = folder / "reasoning" / "test-00000-of-00001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[1]["response_b_images"] = [{"bytes": png(picture(1)), "path": None}]
    features = dict.fromkeys(rows[0], TEXT)
    write_parquet(path, rows, features)
    case = read_set(str(folder), described=name).cases[1]
    assert [image.problem for image in case.images] == [
        *(None, "an answer shows images, which is not supported")
    ]


def test_mm_rlhf_and_mr2bench_are_known_by_their_columns(tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "1.png").write_bytes(png(picture(1)))
    pair = {"prompt": "<image>\nWhat?", "chosen": "good", "rejected": "bad"}
    path = write_lines(
        tmp_path / "dpo_pairs.jsonl",
        [pair | {"image": "short/1.png"}, pair | {"video": "video/1.mp4"}],
    )
    found = read_set(str(path))
    (case,) = [case for case in found.cases if not any(image.problem for image in case.images)]
    label = case.labels["overall"]
    assert isinstance(label, PairLabel)
    assert (case.question, case.answers[int(str(label.choice))]) == ("What?", "good")
    videos = [row.reason for row in found.excluded]
    videos += [image.problem or "" for case in found.cases for image in case.images]
    assert any("'video'" in reason for reason in videos)
    with pytest.raises(DataError, match=r"data/mm_rlhf/README\.md says"):
        read_set("mm_rlhf")
    row = {"prompt": "Which?", "responses": ["a", "b", "c", "d"], "image": "short/1.png"}
    path = write_lines(tmp_path / "image.jsonl", [row | {"rankings": [3, 1, 1, 4]}])
    (case,) = read_set(str(path)).cases
    label = case.labels["overall"]
    assert isinstance(label, RankingLabel)
    ranked = [[case.answers[index] for index in tied] for tied in label.rankings[0]]
    assert [sorted(tied) for tied in ranked] == [["b", "c"], ["a"], ["d"]]
    assert case.images[0].problem is None

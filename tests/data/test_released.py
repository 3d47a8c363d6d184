"""Benchmarks as their authors released them, from a folder, a file and the hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from released_samples import SAMPLES, as_snapshot, multimodal_rewardbench, png

from medrm.data.case_set import CaseSet, read_set
from medrm.data.readers.benchmarks import MET, NOT_MET
from medrm.errors import DataError
from medrm.schema import Case, PairLabel, RankingLabel

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], CaseSet]:
    """Writes a benchmark's sample and reads it as its user brings it."""
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))

    def read(name: str) -> CaseSet:
        return read_set(str(SAMPLES[name](tmp_path / name)), described=name)

    return read


def better(case: Case) -> str:
    (label,) = case.labels.values()
    assert isinstance(label, PairLabel)
    assert isinstance(label.choice, int)
    return case.answers[label.choice]


def subsets(found: CaseSet) -> list[str]:
    return [case.groups["subset"] for case in found.cases]


def test_vl_rewardbench(brought: Callable[[str], CaseSet]) -> None:
    found = brought("vl_rewardbench")
    assert (found.name, found.revision, found.dimensions) == (
        "vl_rewardbench",
        "local",
        ("overall",),
    )
    ids = [case.case_id for case in found.cases]
    assert ids[3:] == ["mathverse_9", "mmmu_pro_test_Art_1", "wildvision-battle-4", "mathverse_9#2"]
    hallucination = ["hallucination"] * 3
    assert subsets(found) == [*hallucination, "reasoning", "reasoning", "general", "reasoning"]
    first, second = found.cases[0], found.cases[1]
    assert (first.question, first.answers) == ("What is number 0?", ("first 0", "the second 0"))
    assert [better(case).split()[0] for case in found.cases] == [
        *("first", "the", "the", "first", "the", "first", "the")
    ]
    assert first.images[0].read() == png(0)
    assert found.cases[3].cluster == found.cases[6].cluster != second.cluster


def test_multimodal_rewardbench(brought: Callable[[str], CaseSet]) -> None:
    found = brought("multimodal_rewardbench")
    assert subsets(found) == [
        "safety/bias",
        "safety/toxicity",
        "reasoning/math",
        "reasoning/coding",
        "general",
    ]
    assert [case.groups["category"] for case in found.cases][1:4] == ["safety", *["reasoning"] * 2]
    assert [better(case) for case in found.cases] == ["two 0", "one 1", "one 2", "two 3", "two 4"]
    assert [case.answers[0] for case in found.cases] == [f"one {number}" for number in range(5)]
    assert found.cases[2].images[0].read() == png(2)


@pytest.mark.parametrize(
    ("text", "images", "problem"),
    [("", True, "Text is ''; give text"), ("What?", False, r"no 'images/set/0\.png'")],
)
def test_what_the_authors_script_has_not_filled_in_is_named(
    tmp_path: Path, text: str, images: bool, problem: str
) -> None:
    root = multimodal_rewardbench(tmp_path, text, images)
    with pytest.raises(DataError, match=problem) as caught:
        read_set(str(root), described="multimodal_rewardbench")
    message = str(caught.value)
    assert "5 problems" in message
    assert "data/multimodal_rewardbench/README.md says how it is had" in message


def test_multimodal_rewardbench_is_on_no_hub() -> None:
    with pytest.raises(DataError, match=r"data/multimodal_rewardbench/README\.md says"):
        read_set("multimodal_rewardbench")


def test_mm_rlhf_rewardbench(brought: Callable[[str], CaseSet]) -> None:
    found = brought("mm_rlhf_rewardbench")
    assert [case.case_id for case in found.cases] == ["1_2", "1_2#2", "3_4", "clip_5", "clip_5#2"]
    assert [case.groups["prompt"] for case in found.cases] == [
        *("1_2", "1_2", "3_4", "clip_5", "clip_5")
    ]
    assert subsets(found) == ["mcq", "mcq", "safety", "video", "video"]
    assert [better(case) for case in found.cases] == [f"good {number}" for number in range(5)]
    assert {case.answers[0].startswith("good") for case in found.cases} == {True, False}
    assert found.cases[0].images[0].read() == png(1)
    frames = [image.read() for image in found.cases[3].images]
    assert len(frames) == 32
    assert (frames[0], frames[1], frames[-1]) == (png(100), png(101), png(139))
    assert len({case.cluster for case in found.cases}) == 3


def test_rewardbench_2(brought: Callable[[str], CaseSet]) -> None:
    found = brought("rewardbench_2")
    assert subsets(found) == ["Factuality", "Factuality", "Math", *["Ties"] * 5]
    for case in found.cases:
        label = case.labels["overall"]
        assert isinstance(label, RankingLabel)
        ((best, rest),) = label.rankings
        assert sorted(best + rest) == list(range(len(case.answers)))
        assert all(case.answers[index].startswith("right") for index in best)
        assert all(case.answers[index].startswith("the wrong") for index in rest)
    by_id = {case.case_id: case for case in found.cases}
    assert [len(by_id[name].answers) for name in ("0", "tied:0", "tied:2")] == [4, 5, 3]
    firsts = {case.answers[0].split()[0] for case in found.cases}
    assert firsts == {"right", "the"}, "the place tells nothing"
    assert by_id["ref:0"].cluster == by_id["tied:0"].cluster != by_id["ref:1"].cluster
    assert by_id["0"].cluster != by_id["ref:0"].cluster


def test_healthbench_meta(brought: Callable[[str], CaseSet]) -> None:
    found = brought("healthbench_meta")
    assert found.dimensions == ("accuracy",)
    assert {case.answers for case in found.cases} == {(MET, NOT_MET)}
    shares = [case.labels["accuracy"] for case in found.cases]
    assert shares[:4] == [
        PairLabel((1.0, 0.0, 0.0), 2),
        PairLabel((0.0, 0.0, 1.0), 2),
        PairLabel((2 / 3, 0.0, 1 / 3), 3),
        PairLabel((0.5, 0.0, 0.5), 2),
    ]
    first = found.cases[0]
    assert first.case_id == "p1:r1:cluster:hedging_any-a"
    assert first.question.startswith(
        "Conversation:\n\nuser: I feel dizzy.\n\nassistant: Since when?\n\n"
        "user: Since today, p1.\n\n"
        "assistant: Please rest, r1.\n\nCriterion: Asks for more, hedging_any-a.\n\nDoes the last"
    )
    assert (first.images, first.groups["category"]) == ((), "cluster:hedging_any-a")
    assert subsets(found)[2:4] == ["hedging", "global health"]
    assert len({case.cluster for case in found.cases}) == 2, "one cluster a conversation"
    assert found.agreement["accuracy"].annotators == 3


@pytest.mark.parametrize("name", [name for name in SAMPLES if name != "multimodal_rewardbench"])
def test_the_hub_gives_the_same_cases(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brought: Callable[[str], CaseSet]
) -> None:
    local = brought(name)
    snapshot = as_snapshot(tmp_path / name, tmp_path / "repo", COMMIT)
    asked = {}

    def snapshot_download(source: str, **options: object) -> str:
        asked.update(options, source=source)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = read_set(name)
    assert (found.name, found.revision, found.digest) == (name, COMMIT, local.digest)
    assert (asked["revision"], asked["repo_type"]) == ("main", "dataset")
    assert isinstance(asked["allow_patterns"], list)
    assert all(image.read() for case in found.cases for image in case.images)


def test_a_file_is_accepted_where_its_columns_fit(tmp_path: Path) -> None:
    root = SAMPLES["healthbench_meta"](tmp_path / "here")
    (file,) = root.iterdir()
    assert read_set(str(file), described="healthbench_meta").name == "healthbench_meta"
    votes = tmp_path / "votes.jsonl"
    votes.write_text(
        json.dumps(
            {
                "case_id": "c",
                "images": [],
                "question": "q",
                "answer_a": "a",
                "answer_b": "b",
                "annotator": "one",
                "votes": {"overall": "A"},
            }
        )
    )
    assert read_set(str(votes), described="healthbench_meta").name == "votes"


@pytest.mark.parametrize(
    ("name", "file", "change", "problem"),
    [
        (
            "healthbench_meta",
            "2025-05-07-06-14-12_oss_meta_eval.jsonl",
            ("true", "1"),
            "true or false",
        ),
        (
            "mm_rlhf_rewardbench",
            "mm_reward_bench.jsonl",
            ("video/clip", "video/none"),
            "video/none",
        ),
        ("mm_rlhf_rewardbench", "mm_reward_bench.jsonl", ("video/clip", "A" * 5000), "no 'A{200}'"),
        ("mm_rlhf_rewardbench", "mm_reward_bench.jsonl", ('"good 0"', "0"), "chosen is 0"),
        (
            "mm_rlhf_rewardbench",
            "mm_reward_bench.jsonl",
            ('"image": "mcq', '"picture": "mcq'),
            "hold n",
        ),
        (
            "multimodal_rewardbench",
            "data/all_data.json",
            (': "Output2"', ': "B"'),
            "accepted: Output1",
        ),
        ("multimodal_rewardbench", "data/all_data.json", ("images/set/0", "../../x"), "no '../"),
    ],
)
def test_wrong_rows_are_named(
    tmp_path: Path, name: str, file: str, change: tuple[str, str], problem: str
) -> None:
    path = SAMPLES[name](tmp_path) / file
    content = path.read_text(encoding="utf-8").replace(*change)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=problem.replace(".", r"\.")):
        read_set(str(tmp_path), described=name)


def test_a_folder_that_holds_nothing_of_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no data/test-\*\.parquet") as caught:
        read_set(str(tmp_path), described="rewardbench_2")
    assert "neither pair_gt_all/ nor votes.jsonl" in str(caught.value)

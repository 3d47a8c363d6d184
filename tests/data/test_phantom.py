"""The phantom set: layouts, determinism, experts, and that no text tells the right answer."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medrm.data.phantom.phantom_set import (
    EXPERTS,
    PhantomCase,
    ceiling,
    draw_case,
    draw_picture,
    draw_votes,
    majority,
    owner,
    truth,
    write_phantom,
)
from medrm.data.phantom.pictures import FOCI, ORGANS, contradict, draw_facts, render
from medrm.errors import ConfigError
from medrm.schema import DIMENSIONS

CASES = 120


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("phantom")
    write_phantom(output, CASES, seed=3)
    return output


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_images(phantom, tmp_path):
    write_phantom(tmp_path / "again", CASES, seed=3)
    write_phantom(tmp_path / "other", CASES, seed=4)
    assert _digests(tmp_path / "again") == _digests(phantom)
    images = {
        seed: set(_digests(root / "images").values())
        for seed, root in {3: phantom, 4: tmp_path / "other"}.items()
    }
    assert not images[3] & images[4]


def test_a_smaller_set_is_the_beginning_of_a_larger_one(phantom, tmp_path):
    write_phantom(tmp_path, 7, seed=3)
    assert _lines(tmp_path / "votes.jsonl") == _lines(phantom / "votes.jsonl")[: 7 * len(EXPERTS)]


def test_an_empty_set_has_no_ceiling(tmp_path):
    assert write_phantom(tmp_path, 0, seed=0) == {}


def test_both_layouts_hold_the_same_cases(phantom):
    from datasets import load_dataset

    votes = {line["case_id"]: line for line in _lines(phantom / "votes.jsonl")}
    assert len(votes) == CASES
    labels = {}
    for path in sorted((phantom / "pair_gt_all").glob("*.jsonl")):
        assert path.stem in ORGANS
        labels |= {line["question_id"]: line["human_answer"] for line in _lines(path)}
        rows = load_dataset(
            "parquet",
            data_files=str(phantom / "pair_gt_all" / "parquet" / f"{path.stem}.parquet"),
            split="train",
            cache_dir=str(phantom.parent / "cache"),
        )
        for row in rows:
            line = votes[row["question_id"]]
            assert line["organ"] == row["body_part"] == path.stem
            assert (line["question"], line["answer_a"], line["answer_b"]) == (
                row["question"],
                row["answer1_text"],
                row["answer2_text"],
            )
            assert row["modality_type"] == path.stem
            assert line["modality"] == row["modality"]
            with Image.open(phantom / line["image"]) as image:
                assert image.size == (112, 112)
                assert np.array_equal(np.asarray(row["image"]), np.asarray(image))
    assert labels.keys() == votes.keys()


def test_labels_are_strict_majorities_of_the_votes(phantom):
    votes: dict[str, list[dict]] = {}
    for line in _lines(phantom / "votes.jsonl"):
        votes.setdefault(line["case_id"], []).append(line["votes"])
    for path in (phantom / "pair_gt_all").glob("*.jsonl"):
        for line in _lines(path):
            for dimension in DIMENSIONS:
                given = [vote[dimension] for vote in votes[line["question_id"]]]
                wanted = {side for side in "AB" if given.count(side) > 1.5}
                assert {line["human_answer"].get(dimension)} - {None} == wanted


def test_some_patients_have_two_cases_on_one_image(phantom):
    images: dict[str, set[str]] = {}
    for line in _lines(phantom / "votes.jsonl"):
        assert line["department"]
        assert line["source"] == "phantom"
        images.setdefault(line["patient"], set()).add(line["image"])
    assert len(images) == CASES - CASES // 20
    assert all(len(shown) == 1 for shown in images.values())


def test_dataset_json_states_what_the_set_is(phantom):
    about = json.loads((phantom / "dataset.json").read_text())
    assert (about["name"], about["seed"], about["cases"]) == ("phantom", 3, CASES)
    assert about["synthetic"] is True
    assert set(about["ceiling"]) == set(DIMENSIONS)


def _draw(seed: int, cases: int) -> list[PhantomCase]:
    drawn, readings = [], None
    for index in range(cases):
        if owner(index) == index:
            readings, _ = draw_picture(seed, index)
        drawn.append(draw_case(seed, index, readings))
    return drawn


@pytest.fixture(scope="module")
def many() -> list[PhantomCase]:
    return _draw(seed=11, cases=4000)


def test_the_ceiling_lies_where_three_experts_put_it(many):
    """Two of three experts with errors .08, .12, .16 are wrong together in .0353 of the pairs."""
    reachable = ceiling([case.truth for case in many], [majority(case.votes) for case in many])
    assert set(reachable) == set(DIMENSIONS)
    assert all(0.955 < value < 0.975 for value in reachable.values()), reachable


def test_experts_err_as_often_as_they_should():
    rng = np.random.default_rng(0)
    clear = truth(dict.fromkeys(DIMENSIONS, 1.0), dict.fromkeys(DIMENSIONS, 0.0))
    assert set(clear.values()) == {"A"}
    votes = [draw_votes(clear, rng) for _ in range(3000)]
    for expert, error in EXPERTS.items():
        given = [vote for drawn in votes for vote in drawn[expert].values()]
        assert abs(1 - given.count("A") / len(given) - error) < 0.01
        assert "tie" in given


def test_a_dimension_without_strict_majority_has_no_label():
    votes = {
        "expert-1": dict.fromkeys(DIMENSIONS, "A"),
        "expert-2": dict.fromkeys(DIMENSIONS, "tie"),
        "expert-3": dict.fromkeys(DIMENSIONS, "B") | {"overall": "A"},
    }
    assert majority(votes) == {"overall": "A"}


@pytest.mark.parametrize("focus", FOCI)
def test_a_contradiction_changes_exactly_one_fact(focus):
    rng = np.random.default_rng(1)
    facts = draw_facts(rng)
    other = contradict(facts, focus, rng)
    changed = [
        name
        for name, before, after in [
            ("modality", facts.modality, other.modality),
            ("count", facts.count, other.count),
            ("side", facts.side, other.side),
            ("size", facts.size, other.size),
            ("shade", facts.shade, other.shade),
        ]
        if before != after
    ]
    assert changed == [focus]
    assert facts.organ == other.organ


def test_lesions_lie_on_the_side_the_facts_name():
    rng = np.random.default_rng(2)
    for _ in range(60):
        facts = draw_facts(rng)
        picture = render(facts, rng)
        assert len(picture.lesions) == facts.count
        left, right = picture.lesions[:, :, :56].sum(), picture.lesions[:, :, 56:].sum()
        if facts.count:
            assert (left > right) == (facts.side == "left")
        assert picture.pixels.std() > 20


def _text_features(cases: list[PhantomCase]) -> np.ndarray:
    """Words, neighbouring words, words crossed with the question, and lengths: A minus B."""
    words: dict[str, int] = {}
    rows = []
    for case in cases:
        row: dict[int, float] = {}
        for sign, answer in zip((1.0, -1.0), case.answers, strict=True):
            tokens = answer.replace(".", " .").split()
            keys = [*tokens, *(f"{a} {b}" for a, b in itertools.pairwise(tokens))]
            keys += [f"{case.question_type}: {token}" for token in tokens]
            for key in set(keys):
                row[words.setdefault(key, len(words))] = (
                    row.get(words.setdefault(key, len(words)), 0.0) + sign
                )
            length = words.setdefault("(length)", len(words))
            row[length] = row.get(length, 0.0) + sign * len(answer) / 40
        rows.append(row)
    features = np.zeros((len(rows), len(words)))
    for number, row in enumerate(rows):
        features[number, list(row)] = list(row.values())
    return features


def _fit(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Logistic regression by gradient descent with a ridge of 1e-3."""
    weights = np.zeros(features.shape[1])
    for _ in range(300):
        chances = 1 / (1 + np.exp(-features @ weights))
        weights -= 0.5 * (features.T @ (chances - labels) / len(labels) + 1e-3 * weights)
    return weights


def _held_out(cases: list[PhantomCase], dimension: str) -> float:
    labelled = [case for case in cases if dimension in majority(case.votes)]
    features = _text_features(labelled)
    labels = np.array([majority(case.votes)[dimension] == "A" for case in labelled], float)
    half = len(labels) // 2
    weights = _fit(features[:half], labels[:half])
    return float(((features[half:] @ weights > 0) == labels[half:]).mean())


def test_no_wording_length_or_question_tells_the_right_answer(many):
    assert abs(_held_out(many, "accuracy") - 0.5) < 0.04


def test_the_same_reader_finds_what_is_in_the_text(many):
    """Guards the test above: the text dimensions are learnt by the same regression."""
    assert _held_out(many[:1500], "comprehensiveness") > 0.9


@pytest.mark.parametrize("rule", ["first", "longer", "more often a lesion"])
def test_simple_rules_do_not_find_the_right_answer(many, rule):
    hits = []
    for case in many:
        label = majority(case.votes).get("accuracy")
        scores = {
            "first": (1, 0),
            "longer": tuple(len(answer) for answer in case.answers),
            "more often a lesion": tuple("no lesion" not in answer for answer in case.answers),
        }[rule]
        if label and scores[0] != scores[1]:
            hits.append((scores[0] > scores[1]) == (label == "A"))
    assert abs(np.mean(hits) - 0.5) < max(0.03, 2 / len(hits) ** 0.5)


def test_texts_do_not_depend_on_which_reading_is_true():
    """The construction itself: the true reading is thrown apart from everything written."""
    from dataclasses import replace

    for index in range(0, 60, 2):
        readings, _ = draw_picture(5, index)
        texts = {
            (case.question, case.answers)
            for true in readings.pair
            for case in [draw_case(5, index, replace(readings, true=true))]
        }
        assert len(texts) == 1


def test_a_folder_in_use_and_a_negative_seed_are_refused(tmp_path: Path) -> None:
    write_phantom(tmp_path / "set", cases=4, seed=1)
    with pytest.raises(ConfigError, match="not empty"):
        write_phantom(tmp_path / "set", cases=4, seed=2)
    with pytest.raises(ConfigError, match="seed is -1"):
        write_phantom(tmp_path / "other", cases=4, seed=-1)

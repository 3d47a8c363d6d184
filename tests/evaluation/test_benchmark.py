"""Benchmarks by name, by folder and as the test part of a set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from released_samples import SAMPLES

from medrm.data.case_set import read_set
from medrm.errors import ConfigError
from medrm.evaluation.benchmark import (
    GROUPS,
    benchmark_from_cases,
    benchmark_names,
    load_benchmark,
    read_settings,
)


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    lines = [
        {
            "case_id": f"text-{number}",
            "images": [],
            "question": f"Question {number}?",
            "answer_a": "yes",
            "answer_b": "no",
            "annotator": "one",
            "votes": {"overall": "A", "accuracy": "B"} if number < 3 else {"accuracy": "A"},
        }
        for number in range(4)
    ]
    path = tmp_path / "votes.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_every_shipped_description_is_complete(root: Path) -> None:
    names = benchmark_names()
    medical = ["med_rewardbench", "phantom", "phantom_1000"]
    assert names == sorted([*medical, *SAMPLES])
    for name in names:
        settings = read_settings(name)
        assert (root / "data" / settings["source"] / "dataset.yaml").is_file()
        assert tuple(settings["groups"]) == GROUPS or name not in medical
        assert "metrics" in settings or name in medical
        for entry in settings.get("published", []):
            assert entry["source"]


def test_the_phantom_benchmark_is_not_the_training_set() -> None:
    settings = read_settings("phantom")
    assert 600 <= settings["cases"] <= 800
    benchmark = load_benchmark("phantom")
    assert benchmark.name == "phantom"
    assert len(benchmark.cases) == settings["cases"] > benchmark.clusters
    assert str(settings["seed"]) in benchmark.source.revision
    assert benchmark.source.synthetic
    assert set(benchmark.source.ceiling) == set(benchmark.dimensions)


def test_a_local_folder_takes_the_place_of_the_source(votes: Path) -> None:
    benchmark = load_benchmark("med_rewardbench", str(votes))
    assert benchmark.dimensions == ("accuracy", "overall")
    assert benchmark.published[0].model == "chance"
    assert benchmark.source.digest == read_set(str(votes)).digest


def test_a_part_of_a_set_has_its_own_digest_and_dimensions(votes: Path) -> None:
    whole = read_set(str(votes))
    part = benchmark_from_cases("votes-test", whole, whole.cases[3:])
    assert (part.name, len(part.cases), part.clusters) == ("votes-test", 1, 1)
    assert part.dimensions == ("accuracy",)
    assert part.source.digest != whole.digest


def test_an_unknown_name_and_an_unknown_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'phantom'"):
        load_benchmark("phanton")
    (tmp_path / "mine.yaml").write_text("sources: x\nseed: 1\n", encoding="utf-8")
    monkeypatch.setattr("medrm.evaluation.benchmark.asset", lambda relative: tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match="3 problems") as caught:
        read_settings("mine")
    assert "Did you mean 'source'?" in str(caught.value)

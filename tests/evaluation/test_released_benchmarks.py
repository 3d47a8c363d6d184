"""`medrm evaluate` on every released benchmark: judges and scalar models, one path."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mock_scorers import rewarded
from released_samples import SAMPLES

from medrm.cli import main
from medrm.errors import ConfigError
from medrm.evaluation.benchmark_loading import load_benchmark, read_settings
from medrm.evaluation.evaluator import evaluate, rescore
from medrm.evaluation.measures.benchmark_metrics import METRICS
from medrm.evaluation.pages.report_page import write_page
from medrm.evaluation.report import benchmark_metrics
from medrm.schema import DIMENSIONS, Case, PairLabel, RankingLabel, Response


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def sample(name: str, root: Path) -> str:
    return str(SAMPLES[name](root / name))


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Makes a sample count as the whole benchmark: by its number of cases."""

    def declare(name: str, path: str) -> None:
        cases = len(load_benchmark(name, path).cases)
        settings = read_settings(name) | {"cases": cases}
        monkeypatch.setattr("medrm.evaluation.benchmark_loading.read_settings", lambda _: settings)

    return declare


class Oracle:
    """Six heads that know the label of the benchmark's dimension; the others know nothing."""

    readout = "reward"
    lookahead = None
    dimensions = DIMENSIONS

    def respond(self, cases: Sequence[Case]) -> Iterator[Response]:
        for case in cases:
            scores = np.zeros((len(case.answers), len(DIMENSIONS)), np.float32)
            for name, label in case.labels.items():
                column = DIMENSIONS.index(name)
                if isinstance(label, RankingLabel):
                    scores[list(label.rankings[0][0]), column] = 1.0
                elif isinstance(label, PairLabel) and isinstance(label.choice, int):
                    scores[label.choice, column] = 1.0
            yield rewarded(case, scores, DIMENSIONS)


def found(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return report


BEST: dict[str, dict[str, Any]] = {
    "vl_rewardbench": {"macro_group": {"overall": 1.0}},
    "multimodal_rewardbench": {"macro_group": {"overall": 1.0}},
    "mm_rlhf_rewardbench": {"acc_plus": {"overall": {"accuracy": 1.0, "acc_plus": 1.0}}},
}


@pytest.mark.parametrize("name", list(SAMPLES))
def test_the_oracle_judges_every_benchmark(
    name: str, root: Path, whole: Callable[[str, str], None]
) -> None:
    folder = root / "out"
    path = sample(name, root)
    whole(name, path)
    arguments = ["evaluate", "--model", "mock:oracle", "--benchmark", name, "--no_images"]
    arguments += ["--data_root", path, "--output_dir", str(folder)]
    assert main(arguments) == 0
    report = found(folder)
    assert report["benchmark"]["name"] == name
    assert "layout" not in report["benchmark"]
    (dimension,) = report["metrics"]
    robust = report["protocols"]["robust"]
    assert robust["dimensions"][dimension]["accuracy"] == 1.0
    assert robust["dimensions"][dimension]["coverage"] == 1.0
    assert list(robust["groups"]) == read_settings(name)["groups"]
    assert report["published"][0]["source"]
    metrics = report["metrics"][dimension]
    assert list(metrics) == read_settings(name)["metrics"]
    for metric, numbers in BEST.get(name, {}).items():
        assert metrics[metric].items() >= numbers.items()
    written = (folder / "report.json").read_bytes()
    rescore(folder)
    assert (folder / "report.json").read_bytes() == written


@pytest.mark.parametrize("name", list(SAMPLES))
def test_a_judge_that_refuses_gains_nothing(name: str, root: Path) -> None:
    benchmark = load_benchmark(name, sample(name, root))
    arguments = ["evaluate", "--model", "mock:refuse", "--benchmark", name, "--no_images"]
    arguments += ["--data_root", str(root / name), "--output_dir", str(root / "out")]
    assert main(arguments) == 0
    report = found(root / "out")
    robust = report["protocols"]["robust"]["dimensions"][benchmark.dimensions[0]]
    assert (robust["accuracy"], robust["coverage"]) == (0.0, 0.0)
    metrics = report["metrics"][benchmark.dimensions[0]]
    if "best_of_n" in metrics:
        assert set(metrics["best_of_n"]["subsets"].values()) == {0.0}
    elif "macro_f1" in metrics:
        assert metrics["macro_f1"]["pooled"] == 0.0
    elif "acc_plus" in metrics:
        assert metrics["acc_plus"]["overall"] == {"accuracy": 0.0, "acc_plus": 0.0}
    else:
        assert metrics["macro_group"]["overall"] == 0.0


@pytest.mark.parametrize("name", list(SAMPLES))
def test_a_head_of_many_is_read_by_the_benchmarks_dimension(name: str, root: Path) -> None:
    benchmark = load_benchmark(name, sample(name, root))
    report = evaluate(Oracle(), benchmark, root / "out", "oracle")
    dimension = "accuracy" if name == "healthbench_meta" else "overall"
    assert benchmark.dimensions == (dimension,)
    assert report["protocols"]["robust"]["dimensions"][dimension]["accuracy"] == (
        pytest.approx(0.625) if name == "rewardbench_2" else 1.0
    ), "a score that the best answers share is a tie, which robust accuracy counts as wrong"
    metrics = report["metrics"][dimension]
    if name == "rewardbench_2":
        assert metrics["best_of_n"]["subsets"] == {
            "Factuality": 1.0,
            "Math": 1.0,
            "Ties": pytest.approx(1.01),
        }
        assert metrics["ties"]["correctness_preferred_hard"] == 1.0
    elif name == "healthbench_meta":
        # Met: 7 said, 7 seen, 6 of both; not met: 4 said, 6 seen, 4 of both. The case that is
        # divided evenly is a tie: nothing is said of its two labels.
        assert metrics["macro_f1"]["pooled"] == pytest.approx(
            (6 / 7 + 2 * 1 * (4 / 6) / (10 / 6)) / 2
        )


def test_the_longer_answer_wins_where_a_benchmark_rewards_length(root: Path) -> None:
    benchmark = load_benchmark("vl_rewardbench", sample("vl_rewardbench", root))
    arguments = ["evaluate", "--model", "mock:longer", "--benchmark", "vl_rewardbench"]
    arguments += ["--data_root", str(root / "vl_rewardbench"), "--output_dir", str(root / "out")]
    assert main(arguments) == 0
    report = found(root / "out")
    longer = report["baselines"]["longer"]["overall"]
    assert report["metrics"]["overall"]["macro_group"]["overall"] == pytest.approx(longer)
    assert longer == pytest.approx(4 / 7)
    assert benchmark.metrics == ("macro_group",)


def test_every_metric_has_a_benchmark_and_a_formula(root: Path) -> None:
    used = {metric for name in SAMPLES for metric in read_settings(name)["metrics"]}
    assert used == set(METRICS)
    benchmark = load_benchmark("rewardbench_2", sample("rewardbench_2", root))
    assert benchmark_metrics([], replace(benchmark, metrics=tuple(METRICS))) == {}


def test_a_metric_that_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("source: x\nmetrics: [acc_plos]\n", encoding="utf-8")
    monkeypatch.setattr(
        "medrm.evaluation.benchmark_loading.asset", lambda relative: tmp_path / "mine.yaml"
    )
    with pytest.raises(ConfigError, match="Did you mean 'acc_plus'"):
        read_settings("mine")


def test_the_printed_lines_name_the_authors_numbers(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--model", "mock:oracle", "--benchmark", "mm_rlhf_rewardbench"]
    arguments += ["--data_root", sample("mm_rlhf_rewardbench", root)]
    assert main([*arguments, "--output_dir", str(root / "out")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Metric acc_plus (overall): overall accuracy 100.0, overall acc_plus 100.0, " in shown
    assert "mcq accuracy 100.0, mcq acc_plus 100.0" in shown


def test_the_page_shows_the_metrics_beside_what_others_reported(
    root: Path, whole: Callable[[str, str], None]
) -> None:
    path = sample("vl_rewardbench", root)
    whole("vl_rewardbench", path)
    arguments = ["evaluate", "--model", "mock:oracle", "--benchmark", "vl_rewardbench"]
    arguments += ["--data_root", path, "--no_images"]
    assert main([*arguments, "--output_dir", str(root / "out")]) == 0
    page = write_page(root / "out", images=False).read_text(encoding="utf-8")
    assert "Metric macro_group (overall): overall 100.0, macro 100.0, general 100.0" in page
    for entry in read_settings("vl_rewardbench")["published"]:
        assert entry["model"] in page
        assert entry["accuracy"] in page

"""Benchmarks by name, by folder and as the test part of a set."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from released_samples import SAMPLES

from medrm.cli import main
from medrm.data.case_set import read_set
from medrm.data.phantom.phantom_set import write_phantom
from medrm.errors import ConfigError, DataError
from medrm.evaluation.benchmark import GROUPS, benchmark_from_cases
from medrm.evaluation.benchmark_loading import (
    BenchmarkRequest,
    benchmark_names,
    load_benchmark,
    read_settings,
)
from medrm.evaluation.exports import benchmark_results, eval_results
from medrm.files import file_digest


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


def test_a_name_stands_for_its_data(votes: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Votes, a layout of few cases, and a folder that has the benchmark's own name."""
    benchmark = load_benchmark("med_rewardbench", str(votes))
    assert (benchmark.name, benchmark.layout) == ("votes", "med_rewardbench")
    assert (benchmark.published, benchmark.dimensions) == ((), ("accuracy", "overall"))
    assert benchmark.source.digest == read_set(str(votes)).digest
    assert "is not in the released layout; it has 4 cases, not 1026; its labels" in caplog.text
    layout = votes.parent / "med_rewardbench"
    write_phantom(layout, cases=12, seed=5)
    small = load_benchmark("med_rewardbench", str(layout))
    digest = small.source.digest
    assert (small.name, small.layout) == (f"med_rewardbench-{digest[:8]}", "med_rewardbench")
    assert small.identity()["layout"] == "med_rewardbench"
    assert str(votes.parent) not in json.dumps(small.identity())
    report = {"benchmark": small.identity(), "protocols": {}}
    assert benchmark_results(report) == []
    assert eval_results(report) == ""


def test_files_that_are_as_the_benchmark_is_described_have_its_name(
    votes: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = votes.parent / "copy"
    write_phantom(folder, cases=12, seed=5)
    read, stated = read_set(str(folder)), read_settings("med_rewardbench")
    settings = stated | {"cases": len(read.cases), "dimensions": list(read.dimensions)}
    monkeypatch.setattr("medrm.evaluation.benchmark_loading.read_settings", lambda _: settings)
    benchmark = load_benchmark("med_rewardbench", str(folder))
    assert (benchmark.name, benchmark.layout) == ("med_rewardbench", None)
    assert benchmark.published[0].model == "chance"
    settings["digest"] = "0" * 64
    assert load_benchmark("med_rewardbench", str(folder)).name == "copy"
    settings["digest"] = read.digest
    assert load_benchmark("med_rewardbench", str(folder)).name == "med_rewardbench"
    assert "layout" not in benchmark.identity()
    (table,) = (folder / "pair_gt_all" / "parquet").glob("chest*.parquet")
    name = table.relative_to(folder).as_posix()
    settings["sha256"] = {name: file_digest(table).upper()}
    assert load_benchmark("med_rewardbench", str(folder)).name == "med_rewardbench"
    settings["sha256"] = {name: "0" * 64, "none.jsonl": "0" * 64}
    other = load_benchmark("med_rewardbench", str(folder))
    assert (other.name, other.layout, other.published) == ("copy", "med_rewardbench", ())
    assert f"the SHA-256 of {name} is " in caplog.text
    assert "it has no file none.jsonl" in caplog.text


def test_a_drawn_benchmark_is_known_by_its_digest(votes: Path) -> None:
    settings = read_settings("phantom")
    write_phantom(votes.parent / "drawn", cases=settings["cases"], seed=settings["seed"])
    assert load_benchmark("phantom", str(votes.parent / "drawn")).layout is None
    assert load_benchmark("phantom", str(votes)).layout == "phantom"


def test_a_set_of_ones_own_is_a_benchmark(votes: Path, tmp_path: Path) -> None:
    benchmark = load_benchmark(str(votes))
    assert (benchmark.name, benchmark.layout) == ("votes", None)
    assert benchmark.source.digest == read_set(str(votes)).digest
    named = load_benchmark(BenchmarkRequest(str(votes), reported="radiology"))
    assert named.name == "radiology"
    write_phantom(tmp_path / "phantom", cases=12, seed=5)
    assert load_benchmark(str(tmp_path / "phantom")).name.startswith("phantom-")
    for asked, problem in {
        BenchmarkRequest(str(votes), reported="phantom"): "stands for its own data",
        BenchmarkRequest("phantom", reported="mine"): "is for a set of your own",
        BenchmarkRequest(str(votes), data_root=str(tmp_path)): "is read from that path",
        BenchmarkRequest(str(votes), image_root=tmp_path / "none"): "is no folder",
    }.items():
        with pytest.raises(ConfigError, match=problem):
            load_benchmark(asked)


def test_images_of_another_folder(votes: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Absolute paths into it, paths relative to it, links into it, and paths out of it."""
    images = tmp_path_factory.mktemp("archive")
    for name in ("1.png", "2.png", "3.png"):
        Image.new("L", (9, 9), int(name[0])).save(images / name)
    (votes.parent / "link.png").symlink_to(images / "3.png")
    Image.new("L", (9, 9), 4).save(votes.parent / "beside.png")
    row = json.loads(votes.read_text(encoding="utf-8").splitlines()[0])
    written = [str(images / "1.png"), "2.png", "link.png", "beside.png"]
    rows = [row | {"case_id": str(n), "images": [path]} for n, path in enumerate(written)]
    votes.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match="--image_root"):
        load_benchmark(str(votes))
    benchmark = load_benchmark(BenchmarkRequest(str(votes), image_root=images))
    names = [case.images[0].name for case in benchmark.cases]
    assert names == ["1.png", "2.png", "link.png", "beside.png"]
    assert all(case.images[0].problem is None for case in benchmark.cases)
    outside = tmp_path_factory.mktemp("outside") / "x.png"
    outside.write_bytes(b"x")
    rows[0]["images"] = [str(outside)]
    votes.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(DataError, match="leads outside"):
        load_benchmark(BenchmarkRequest(str(votes), image_root=images))


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
    for mixture in ("phantom=0.7,real_pocqi=0.3", "phantom, real_pocqi"):
        with pytest.raises(ConfigError, match="--benchmark phantom and --benchmark real_pocqi;"):
            load_benchmark(mixture)
    with pytest.raises(ConfigError, match=r"'lr=a\.jsonl' is unknown"):
        load_benchmark("lr=a.jsonl")
    (tmp_path / "mine.yaml").write_text("sources: x\nseed: 1\n", encoding="utf-8")
    monkeypatch.setattr(
        "medrm.evaluation.benchmark_loading.asset", lambda relative: tmp_path / "mine.yaml"
    )
    with pytest.raises(ConfigError, match="3 problems") as caught:
        read_settings("mine")
    assert "Did you mean 'source'?" in str(caught.value)
    pins = {"a.jsonl": "0" * 63, "../b": "0" * 64, "c": "0" * 64}
    stated = json.dumps({"source": "x", "sha256": pins})
    (tmp_path / "mine.yaml").write_text(stated, encoding="utf-8")
    with pytest.raises(ConfigError, match="2 problems") as caught:
        read_settings("mine")
    assert "sha256 of '../b': give a path inside the data" in str(caught.value)


def test_every_form_of_training_data_is_measured_under_its_own_name(
    votes: Path, tmp_path: Path
) -> None:
    """`--name` names a set without a name, else the model; `--model_name` always the model."""
    rows = [
        {"prompt": f"Question {n}?", "chosen": "yes", "rejected": "no", "images": []}
        for n in range(3)
    ]
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / "lines.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "list.JSON").write_text(json.dumps(rows), encoding="utf-8")
    without_images = [{key: row[key] for key in list(row)[:3]} for row in rows]
    pq.write_table(pa.Table.from_pylist(without_images), tmp_path / "table[1].parquet")
    (tmp_path / "described").mkdir()
    (tmp_path / "described" / "rows.jsonl").write_text(lines, encoding="utf-8")
    described = "name: of-its-own\nfiles: [rows.jsonl]\n"
    (tmp_path / "described" / "dataset.yaml").write_text(described, encoding="utf-8")
    write_phantom(tmp_path / "layout", cases=3, seed=5)
    (tmp_path / "layout" / "votes.jsonl").unlink()
    forms = {
        str(tmp_path): ([], (tmp_path.name, "oracle")),
        "lines.jsonl": (["--name", "radiology"], ("radiology", "oracle")),
        "list.JSON": (["--benchmark_name", "b", "--name", "m"], ("b", "m")),
        "table[1].parquet": (["--model_name", "m"], ("table[1]", "m")),
        "described": (["--name", "n", "--model_name", "m"], ("n", "m")),
        "layout": ([], ("layout", "oracle")),
    }
    for path, (options, names) in forms.items():
        output = tmp_path / "of" / Path(path).name
        asked = ["evaluate", "--model", "mock:oracle", "--benchmark", str(tmp_path / path)]
        assert main([*asked, "--output_dir", str(output), *options]) == 0
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
        model = report["model"].removeprefix("mock:")
        assert (report["benchmark"]["name"], model) == names
        assert report["benchmark"]["digest"] == read_set(str(tmp_path / path)).digest
    asked = ["evaluate", "--model", "mock:oracle", "--benchmark", "phantom", "--name", "m"]
    assert main([*asked, "--output_dir", str(tmp_path / "of" / "phantom"), "--dry_run"]) == 0

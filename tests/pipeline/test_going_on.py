"""A run that is started again goes on where it was stopped, and is never another run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline.entry import Recipe, refuse_models

from medrm.data.phantom.phantom_set import write_phantom
from medrm.evaluation import evaluator, report
from medrm.folder_lock import RUN_LOCK
from medrm.hub.publish import PublishedCommit
from medrm.pipeline import conclusion, manifest, run_folder, stages, zero_shot
from medrm.pipeline import train as training


class Stopped(BaseException):
    """What ends a run as a signal does: no handler of the run takes it for an error."""


def stopping(function: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
    """Returns a function that stops the run instead of, or just after, doing its work."""

    def stopped(*args: Any, **kwargs: Any) -> Any:
        if after:
            function(*args, **kwargs)
        raise Stopped

    return stopped


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def result(run: Path) -> dict[str, Any]:
    """Returns all that a run leaves of numbers: weights, verdicts, reports, comparison."""
    paths = [run / "adapter" / "adapter_model.safetensors"]
    paths += [run / name for name in ("comparison.json", "metrics.jsonl")]
    names = ("verdicts.jsonl", "report.json", "official.csv")
    paths += [path for path in (run / "evaluation").glob("*/*") if path.name in names]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


ALL = {
    "controls": "zero_shot_verdict,zero_shot_averaged,zero_shot_likelihood,untrained_head,"
    "frozen_probe,blank_images"
}


@pytest.mark.slow
def test_a_run_goes_on_wherever_it_was_stopped(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="medrm")
    options = {"train_data": phantom, **ALL}
    assert recipe(**options, output_dir=tmp_path / "straight") == 0
    stops: list[tuple[Any, str, bool]] = [
        (evaluator, "conclude", False),  # the base has judged everything, the report is missing
        (report, "write_json", False),
        (zero_shot, "write_record", False),  # measured on development, not yet chosen
        (zero_shot, "write_record", True),
        (zero_shot, "replace_folder", False),  # while `before` is copied
        (stages, "gathered_head", False),  # the probe is trained
        (stages, "save_adapter", False),
        (stages, "check_load_back", False),
        (stages, "add_statistics", True),
        (stages, "replace_folder", True),
        (conclusion, "compare", False),
        (conclusion, "write_card", False),
        (conclusion, "write_page", True),
    ]
    for module, name, after in stops:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stopping(getattr(module, name), after))
            with pytest.raises(Stopped):
                recipe(**options)
        assert not (tmp_path / "run" / "finished.json").exists(), name
    assert recipe(**options) == 0
    assert "4 of 4 cases are there already" in caplog.text
    assert result(tmp_path / "run") == result(tmp_path / "straight")
    refuse_models(monkeypatch)
    files = [path for path in (tmp_path / "run").rglob("*") if path.name != RUN_LOCK]
    before = {path: path.stat().st_mtime_ns for path in files if path.is_file()}
    caplog.clear()
    assert recipe(**options) == 0
    headline = read(tmp_path / "run" / "comparison.json")["headline"]
    assert f"run is finished: nothing was left to do.\n{headline}\nreport: " in caplog.text
    assert {path: path.stat().st_mtime_ns for path in before} == before


def write_variants(source: Path, folder: Path) -> list[Path]:
    """Writes sets beside a source: labels swapped, the same, cases in reverse order, more cases."""
    text = (source / "votes.jsonl").read_text(encoding="utf-8")
    swapped = text.replace('"A"', '"?"').replace('"B"', '"A"').replace('"?"', '"B"')
    reordered = "".join(reversed(text.splitlines(keepends=True)))
    texts = {"swapped": swapped, "moved": text, "reordered": reordered}
    for name, written in texts.items():
        shutil.copytree(source, folder / name)
        (folder / name / "votes.jsonl").write_text(written, encoding="utf-8")
    write_phantom(folder / "more", cases=60, seed=11)
    return [folder / name / "votes.jsonl" for name in (*texts, "more")]


def test_another_run_is_refused_and_named(
    recipe: Recipe,
    phantom: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(training, "run_stages", lambda context: None)
    swapped, moved, reordered, more = write_variants(phantom, tmp_path)
    shutil.copytree(base, tmp_path / "base")
    options = {
        "train_data": phantom / "votes.jsonl",
        "model_name_or_path": tmp_path / "base",
        "dimensions": "accuracy,overall",
        "stages": "train",
    }
    assert recipe(**options) == 0
    written = (tmp_path / "run" / "run.json").read_bytes()
    for changed, named in (
        ({"seed": 5, "learning_rate": 0.5}, ["seed: 0 then, 5 now", "learning_rate: 0.003 then"]),
        ({"global_batch_cases": 4}, ["global_batch_cases: 8 then, 4 now"]),
        ({"max_steps": 8}, ["max_steps: 4 then, 8 now: a cosine schedule"]),
        ({"max_steps": 2}, ["max_steps: 4 then, 2 now"]),
        ({"dimensions": "overall,accuracy"}, ["dimensions: ", "data, dimensions"]),
        ({"train_data": swapped}, ["data, train digest", "data, benchmark digest"]),
        ({"train_data": more}, ["data, train cases: 28 then, 42 now"]),
        ({"train_data": reordered}, ["data, train sequence"]),
        ({"lora_r": 4, "ties": "none"}, ["lora_r: 16 then, 4 now", "ties: davidson then"]),
        ({"save_steps": 4}, ["save_steps: 2"]),  # the best checkpoint is chosen
        ({"max_length": 4000}, ["max_length: None then, 4000 now"]),
    ):
        assert recipe(**{**options, **changed}) == 2, changed
        message = capsys.readouterr().err
        assert "holds another run" in message
        assert [text for text in named if text not in message] == [], message
    weights = tmp_path / "base" / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert recipe(**options) == 2
    assert "content of base: base sha256:" in capsys.readouterr().err
    weights.write_bytes(kept)
    assert (tmp_path / "run" / "run.json").read_bytes() == written
    free = {
        "train_data": moved,
        "dataloader_num_workers": 1,
        "logging_steps": 3,
        "max_tokens_per_batch": 100000,
        "per_device_train_batch_size": 2,
        "controls": "untrained_head",
        "evaluation_batch_rows": 4,
        "resume_from_checkpoint": "true",
    }
    assert recipe(**{**options, **free}) == 0
    assert read(tmp_path / "run" / "run.json")["config"]["logging_steps"] == 3


def test_a_folder_is_replaced_only_when_that_is_asked(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(training, "run_stages", lambda context: None)
    options = {"train_data": phantom, "stages": "train"}
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    assert recipe(**options) == 2
    assert "holds adapter, but no run.json says of which run" in capsys.readouterr().err
    assert recipe(**options, overwrite_output_dir="true") == 0
    assert not (tmp_path / "run" / "adapter").exists()
    (tmp_path / "run" / "checkpoint-2").mkdir()
    again = {**options, "overwrite_output_dir": "true", "resume_from_checkpoint": "true"}
    assert recipe(**again) == 2
    assert "leave one of them out" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoint-2").is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "sharding", lambda launch: "ZeRO-2")
        assert recipe(**options) == 2
        assert "under way with sharding none, this launch has ZeRO-2" in capsys.readouterr().err
    assert recipe(**options, overwrite_output_dir="true", seed=7) == 0
    assert not (tmp_path / "run" / "checkpoint-2").exists()
    assert recipe(**options, resume_from_checkpoint="somewhere", seed=7) == 2
    assert "no checkpoint there" in capsys.readouterr().err
    assert recipe(**options, resume_from_checkpoint="false", seed=7) == 2
    assert "Leave it out, or give --overwrite_output_dir true" in capsys.readouterr().err


def test_an_own_checkpoint_is_known_however_it_is_spelled(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An overwriting run never removes what it is to begin from."""
    monkeypatch.setattr(training, "run_stages", lambda context: None)
    monkeypatch.chdir(tmp_path)
    options = {"train_data": phantom, "stages": "train", "output_dir": "run"}
    assert recipe(**options) == 0
    states = [Path(folder, "trainer_state.json") for folder in ("run/checkpoint-2", "run/folds/1")]
    for path in states:
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    Path("linked").symlink_to("run")
    Path("latest").symlink_to("run/checkpoint-2")
    own = ["run/checkpoint-2", tmp_path / "run/checkpoint-2", "linked/checkpoint-2", "latest"]
    for point in [*own, "run/folds/1"]:
        asked = {**options, "resume_from_checkpoint": point, "overwrite_output_dir": "true"}
        assert recipe(**asked) == 2, point
        assert "leave one of them out" in capsys.readouterr().err
    assert all(path.is_file() for path in states)
    for point in own:  # it counts as no input of the run
        assert recipe(**options, resume_from_checkpoint=point) == 0, point
    assert read(tmp_path / "run" / "run.json")["inputs"]["checkpoint"] is None


@pytest.mark.slow
def test_a_run_begun_from_another_runs_checkpoint_goes_on_from_its_own(
    recipe: Recipe, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str | None] = []
    fit = stages._fit

    def noted(trainer: Any, checkpoint: str | None) -> None:
        begun.append(checkpoint)
        fit(trainer, checkpoint)

    monkeypatch.setattr(stages, "_fit", noted)
    options = {"train_data": phantom, "stages": "train", "max_steps": 2}
    options |= {"save_steps": 1, "eval_steps": 1}
    assert recipe(**options, output_dir=tmp_path / "first") == 0
    foreign = tmp_path / "first" / "checkpoint-1"
    options["resume_from_checkpoint"] = foreign
    assert recipe(**options) == 0
    shutil.rmtree(tmp_path / "run" / "adapter")
    assert recipe(**options) == 0
    assert begun == [None, str(foreign), str(tmp_path / "run" / "checkpoint-2")]
    # The checkpoint counts by its content.
    foreign.rename(tmp_path / "moved")
    options["resume_from_checkpoint"] = tmp_path / "moved"
    assert recipe(**options) == 0
    (tmp_path / "first" / "checkpoint-2").rename(foreign)
    options["resume_from_checkpoint"] = foreign
    assert recipe(**options) == 2


@pytest.mark.slow
def test_stages_are_done_apart_and_give_the_run(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"train_data": phantom, "controls": "none", "max_steps": 2}
    run = tmp_path / "run"
    for stages_asked, missing in (
        ("after", "train"),
        ("train,compare", "before"),
        ("compare", "after"),
    ):
        assert recipe(**options, stages=stages_asked) == 2
        assert f"needs the stage {missing}" in capsys.readouterr().err
    assert not (run / "run.json").exists()
    assert recipe(**options, stages="train") == 0
    assert not (run / "evaluation").exists()
    assert (run / "adapter" / "medrm.json").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(stages, "build_trainer", stopping(stages.build_trainer))
        assert recipe(**options, stages="after") == 0
        assert {path.name for path in (run / "evaluation").iterdir()} == {"after"}
        assert recipe(**options, stages="before") == 0
    assert not (run / "comparison.json").exists()
    refuse_models(monkeypatch)
    assert recipe(**options, stages="compare") == 0
    apart = result(run)
    assert read(run / "comparison.json")["controls"] == {}
    monkeypatch.undo()
    assert recipe(**options, output_dir=tmp_path / "straight") == 0
    assert result(tmp_path / "straight") == apart
    # A control that is asked for later is measured with what is there; one left out is not shown.
    added = {**options, "controls": "zero_shot_verdict,untrained_head,blank_images"}
    with monkeypatch.context() as patch:
        patch.setattr(stages, "build_trainer", stopping(stages.build_trainer))
        assert recipe(**added) == 0
    comparison = read(run / "comparison.json")
    assert list(comparison["controls"]) == added["controls"].split(",")
    chosen = json.loads(apart["comparison.json"])["before"]
    assert comparison["before"] == chosen
    refuse_models(monkeypatch)
    assert recipe(**options) == 0
    assert read(run / "comparison.json")["controls"] == {}
    assert (run / "evaluation" / "untrained_head" / "report.json").is_file()
    assert (run / "evaluation" / "after" / "images").is_dir()
    assert recipe(**options, no_images="true") == 0
    assert not (run / "evaluation" / "after" / "images").exists()


@pytest.mark.slow
def test_a_run_grows_as_if_it_had_been_so_long(
    recipe: Recipe, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "train_data": phantom, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 1,
        "controls": "frozen_probe,zero_shot_likelihood",
    }  # fmt: skip
    assert recipe(**options, max_steps=6, output_dir=tmp_path / "straight") == 0
    assert recipe(**options, max_steps=4) == 0
    assert recipe(**{**options, "warmup_steps": 0.5}, max_steps=6) == 2
    assert "the warm-up is a share of all steps" in capsys.readouterr().err
    assert recipe(**options, max_steps=6) == 0
    assert result(tmp_path / "run") == result(tmp_path / "straight")
    assert recipe(**options, max_steps=4) == 2
    assert "max_steps: 6 then, 4 now" in capsys.readouterr().err


@pytest.mark.slow
def test_the_log_is_as_dense_as_the_last_start_asks(
    recipe: Recipe, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        **{"train_data": phantom, "stages": "train", "max_steps": 6},
        "load_best_model_at_end": "false",
        "save_total_limit": 3,
    }
    with monkeypatch.context() as patch:
        patch.setattr(stages, "save_adapter", stopping(stages.save_adapter))
        with pytest.raises(Stopped):
            recipe(**options, logging_steps=2)
    for step in (4, 6):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}", ignore_errors=True)
    assert recipe(**options, logging_steps=1) == 0
    text = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    logged = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in logged if "loss" in line] == [2, 3, 4, 5, 6]


@pytest.mark.slow
def test_an_adapter_is_pushed_once(
    recipe: Recipe,
    phantom: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pushed: list[str] = []
    monkeypatch.setattr(
        conclusion,
        "publish",
        lambda _, target: pushed.append(target.repo_id) or PublishedCommit("", "", True, True),
    )
    monkeypatch.setattr(run_folder, "check_push", lambda repo: None)
    options = {"train_data": phantom, "controls": "none", "max_steps": 1}
    assert recipe(**options) == 0
    for repo in ("me/one", "me/one", "me/two"):
        assert recipe(**options, push_to_hub="true", hub_model_id=repo) == 0
    assert recipe(**options) == 0
    assert pushed == ["me/one", "me/two"]
    assert recipe(**options, push_to_hub="true") == 2
    assert "give --hub_model_id ORG/NAME" in capsys.readouterr().err


def test_a_run_of_version_0_2_goes_on(
    recipe: Recipe,
    phantom: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, options = tmp_path / "run", {"train_data": phantom, "max_steps": 2}
    assert recipe(**options) == 0
    manifest = read(run / "run.json")
    for name in ("stages", "seeds"):
        manifest["config"].pop(name)
    manifest.pop("inputs")
    for part in ("train", "development"):
        manifest["data"][part].pop("sequence")
    (run / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
    for name in ("finished.json", "comparison.json"):
        (run / name).unlink()
    refuse_models(monkeypatch)
    assert recipe(**options, model_name_or_path="phantom-base") == 2
    assert "model_name_or_path: " in capsys.readouterr().err
    assert recipe(**options) == 0
    assert (run / "comparison.json").is_file()
    assert read(run / "run.json")["inputs"]["base"].startswith("tiny-base sha256:")

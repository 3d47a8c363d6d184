"""The report of `medrm throughput`, what it counts, and when it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress, TaskID
from transformers import BatchFeature

from medrm import cli
from medrm import throughput as throughput_module
from medrm import throughput_model as model_module
from medrm.errors import ConfigError
from medrm.models.prefix_sharing.batch import SHARED_PREFIX
from medrm.pipeline.requests import ThroughputOptions
from medrm.throughput import (
    SEPARATE,
    SHARED,
    Measurement,
    VariantsDifferError,
    resident_bytes_of_step,
    run_throughput,
)
from medrm.throughput_model import (
    Subject,
    count_flops,
    make_subject,
)

TINY = {"shape": "tiny", "image_tokens": 12, "question_tokens": 22, "answer_tokens": 10}
ROW = {
    "task", "variant", "answers", "cases", "cases_per_s", "unique_tokens_per_s", "padded_share",
    "peak_memory_bytes", "ratio_to_separate", "ideal_ratio", "flops", "share_of_bound",
}  # fmt: skip


def tiny(**changes: Any) -> ThroughputOptions:
    return ThroughputOptions(**{**TINY, **changes})


def command(*options: str) -> list[str]:
    sizes = {
        key: value for key, value in TINY.items() if "--model" not in options or key != "shape"
    }
    arguments = [text for key, value in sizes.items() for text in (f"--{key}", str(value))]
    return ["throughput", *arguments, *options]


def measured(subject: Subject, task: str, answers: int, cases: int = 1) -> Measurement:
    options = dataclasses.replace(subject.options, cases=cases)
    measurement = Measurement(dataclasses.replace(subject, options=options), task, answers)
    list(measurement.prepare())
    return measurement


@pytest.fixture(autouse=True)
def _no_children(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is measured in the tests that are about it."""
    if "memory" not in request.node.name:
        monkeypatch.setattr(throughput_module, "resident_bytes_of_step", lambda *_: 2**20)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_subject(tiny())


def test_the_report_has_its_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "throughput.json"
    options = ["--answers", "2", "3", "--rounds", "3", "--output", str(path)]
    assert cli.main(command(*options)) == 0
    report = json.loads(path.read_text())
    assert {"shape", "device", "dtype", "threads", "versions", "rows"} <= report.keys()
    assert (report["device"], report["dtype"], report["threads"]) == ("cpu", "float32", 1)
    assert report["complete"]
    assert report["rounds"] == 3
    assert report["shape"]["prefix_tokens"] == 12 + 22
    assert report["shape"]["answer_tokens"] == 10
    kinds = [(row["task"], row["answers"], row["variant"]) for row in report["rows"]]
    variants = (SEPARATE, SHARED)
    planned = [("train", 2), ("train", 3), ("score", 2), ("score", 3)]
    assert kinds == [(*task, variant) for task in planned for variant in variants]
    for row in report["rows"]:
        assert row.keys() == ROW
        ratio = row["ratio_to_separate"]
        assert ratio["min"] <= ratio["median"] <= ratio["max"]
        assert row["unique_tokens_per_s"] / row["cases_per_s"] == pytest.approx(
            34 + 10 * row["answers"]
        )
        assert row["padded_share"] == 0
        assert 0 < row["share_of_bound"] < 1.5
    output = capsys.readouterr().out
    assert "tiny: decoder of 0.1 M" in output
    assert max(map(len, output.splitlines())) <= 80
    for name in ("ideal: ", "bound: "):
        assert name in output
    assert "Not all" not in output


def test_quick_is_a_quarter_of_the_tokens_and_two_tasks() -> None:
    full, quick = ThroughputOptions(), ThroughputOptions(quick=True)
    assert full.plan == [(task, answers) for task in ("train", "score") for answers in (2, 4, 8)]
    assert quick.plan == [("train", 2), ("score", 8)]
    assert (full.tokens, quick.tokens) == ((1024, 64, 160), (256, 16, 40))
    assert tiny(quick=True).tokens == (3, 5, 2)
    assert ThroughputOptions(quick=True, tasks=["score"]).plan == [("score", 8)]
    assert tiny(quick=True, question_tokens=3, answer_tokens=1).tokens == (3, 3, 1)
    subject = make_subject(tiny(quick=True, question_tokens=88, answer_tokens=48))
    _, shared = subject.batches(1, 2)
    assert shared[SHARED_PREFIX].prefix_lengths == (3 + 22,)
    assert shared[SHARED_PREFIX].branch_lengths == ((12, 12),)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, VariantsDifferError])
def test_what_was_measured_outlives_a_stop(
    stop: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "throughput.json"
    real = Measurement.round

    def stopped(self: Measurement) -> Any:
        if self.answers == 3:
            first = json.loads(path.read_text())
            assert ([row["answers"] for row in first["rows"]], first["complete"]) == (
                [2] * 2,
                False,
            )
            raise stop
        return real(self)

    monkeypatch.setattr(Measurement, "round", stopped)
    options = tiny(tasks=["score"], answers=[2, 3], rounds=1, output=str(path))
    with pytest.raises(stop):
        run_throughput(options)
    report = json.loads(path.read_text())
    assert [row["answers"] for row in report["rows"]] == [2] * 2
    assert not report["complete"]
    output = capsys.readouterr().out
    assert output.count("shared_prefix") == 1
    assert "Not all was measured" in output


def test_what_does_not_fit_on_the_device_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Measurement.round

    def full(self: Measurement) -> Any:
        if (self.task, self.answers) == ("train", 3):
            raise torch.OutOfMemoryError("full")
        return real(self)

    monkeypatch.setattr(Measurement, "round", full)
    path = tmp_path / "throughput.json"
    theirs = tmp_path / "throughput.json.partial"
    theirs.touch()
    run_throughput(tiny(answers=[2, 3], rounds=1, output=str(path)))
    assert theirs.is_file()
    report = json.loads(path.read_text())
    kinds = [(row["task"], row["answers"]) for row in report["rows"][::2]]
    assert kinds == [("train", 2), ("score", 2), ("score", 3)]
    assert not report["complete"]
    assert "train, 3 answers: does not fit" in capsys.readouterr().err


def test_an_interrupt_ends_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(options: ThroughputOptions) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(throughput_module, "run_throughput", interrupted)
    assert cli.main(["throughput"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


@pytest.mark.parametrize("name", ["", ".", "nowhere/file.json", "a" * 254, "file/below.json"])
def test_a_path_that_cannot_be_written_fails_before_the_model_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    monkeypatch.setattr(throughput_module, "make_subject", lambda options: pytest.fail("made"))
    with pytest.raises(ConfigError, match="existing folder"):
        run_throughput(tiny(output=name))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_row_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[tuple[int, int | None, str]] = []

    class Bar(Progress):
        def update(self, task_id: TaskID, **changes: Any) -> None:
            super().update(task_id, **changes)
            task = self.tasks[0]
            updates.append((int(task.completed), int(task.total or 0), task.description))

    monkeypatch.setattr("medrm.progress_bar.Progress", Bar)
    run_throughput(tiny(tasks=["score"], answers=[2], rounds=2))
    assert [completed for completed, *_ in updates] == list(range(1, 7))
    assert {total for _, total, _ in updates} == {6}
    assert updates[0][2] == "score, 2 answers: warm-up, separate"
    assert updates[-1][2] == "score, 2 answers: round 2, shared_prefix"


def test_a_checkpoint_on_a_gpu_is_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it was saved in: the help says so, and shapes are."""
    arguments: list[Any] = []

    def load(*loaded: Any) -> Any:
        arguments.extend(loaded[1:])
        raise ConfigError("asked")

    monkeypatch.setattr(model_module, "_device", lambda options: torch.device("cuda"))
    monkeypatch.setattr(model_module, "load_base", load)
    with pytest.raises(ConfigError, match="asked"):
        make_subject(ThroughputOptions(model="phantom-base"))
    assert arguments == [torch.device("cuda"), torch.bfloat16]


def test_batches_are_moved_before_the_clock_runs(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    measurement = measured(subject, "score", 2)
    seen: list[str] = []
    real = Measurement.inputs
    monkeypatch.setattr(throughput_module, "synchronise", lambda: seen.append("clock"))
    monkeypatch.setattr(Measurement, "inputs", lambda *a: seen.append("move") or real(*a))
    assert list(measurement.round()) == [SEPARATE, SHARED]
    assert seen == ["move", "clock", "clock"] * 2


def test_cases_of_a_checkpoint_are_equally_long() -> None:
    """So that none of what sharing gains is padding."""
    options = ThroughputOptions(model="phantom-base", image_tokens=4, rounds=1, tasks=["score"])
    measurement = measured(make_subject(options), "score", 3, cases=3)
    list(measurement.round())
    rows = [measurement.row(variant, rate=1.0) for variant in measurement.variants]
    assert [row["padded_share"] for row in rows] == [0, 0]
    texts = {tuple(row) for row in measurement.variants[0].batch["input_ids"].tolist()}
    assert len(texts) == 9


def test_variants_compute_the_same_and_less(subject: Subject) -> None:
    before = [parameter.clone() for parameter in subject.model.parameters()]
    for task in ("train", "score"):
        separate, shared = measured(subject, task, 3, cases=2).variants
        assert separate.flops > shared.flops > 0
        assert separate.tower_flops == 3 * shared.tower_flops > 0
    after = subject.model.parameters()
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_training_counts_its_backward_but_no_gradients_of_frozen_weights(subject: Subject) -> None:
    train = measured(subject, "train", 2).variants[0]
    score = measured(subject, "score", 2).variants[0]
    decoder = score.flops - score.tower_flops
    # Twice the decoder and LoRA's own gradients; three times with gradients of all weights.
    assert 1.8 * decoder < train.flops - train.tower_flops < 2.6 * decoder


def test_checkpointing_computes_more() -> None:
    plain, saving = (make_subject(tiny(gradient_checkpointing=on)) for on in (False, True))
    without, checkpointed = (
        measured(subject, "train", 2, cases=4).variants[1] for subject in (plain, saving)
    )
    assert checkpointed.flops > 1.2 * without.flops


@pytest.mark.slow
def test_memory_is_less_where_a_prefix_is_shared_and_activations_are_computed_twice() -> None:
    """By MiB of activations, beside which what malloc keeps is little."""

    def peak(variant: str, **changes: Any) -> int:
        options = tiny(shape="small", image_tokens=16, question_tokens=144, **changes)
        return resident_bytes_of_step(Measurement(make_subject(options), "train", 4), variant)

    separate, shared = peak(SEPARATE), peak(SHARED)
    assert 2**20 < shared < separate
    assert peak(SEPARATE, gradient_checkpointing=True) < separate


def test_other_rewards_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = Subject.batches

    def other(*args: Any) -> Any:
        separate, shared = real(*args)
        ids = shared["input_ids"].clone()
        ids[0, 20] = (ids[0, 20] + 1) % 100  # one token of the question
        return separate, BatchFeature(
            {**shared, "input_ids": ids, SHARED_PREFIX: shared[SHARED_PREFIX]}
        )

    monkeypatch.setattr(Subject, "batches", other)
    path = tmp_path / "throughput.json"
    with pytest.raises(VariantsDifferError, match="the rewards of shared_prefix differ"):
        cli.main(command("--answers", "2", "--output", str(path)))
    assert not path.exists()


def test_a_checkpoint_with_its_processor(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "phantom-base", "--tasks", "score", "--answers", "2", "--rounds", "1"]
    assert cli.main(command(*options)) == 0
    assert "phantom-base: decoder of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--answers", "1"], "answers is [1]"),
        (["--tasks", "sleep"], "tasks is ['sleep']"),
        (["--rounds", "0"], "rounds is 0"),
        (["--question_tokens", "2"], "question_tokens is 2; give 3 or more"),
        (["--model", "./nowhere"], "There is no folder"),
        (["--output", "/nowhere/at/all.json"], "existing folder"),
        (["--device", "tpu"], "device 'tpu' cannot be used"),
    ],
)
def test_wrong_input_is_named(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(command(*options)) == 2
    assert message in capsys.readouterr().err


def test_a_model_and_a_shape_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["throughput", "--model", "phantom-base", "--shape", "tiny"])
    assert "not allowed with argument --model" in capsys.readouterr().err


def test_models_that_cannot_share_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "sharing_problem", lambda config: "a reason")
    with pytest.raises(ConfigError, match="a reason"):
        make_subject(tiny())


def test_bfloat16_agrees_within_its_rounding() -> None:
    separate, shared = measured(make_subject(tiny(dtype="bfloat16")), "train", 2).variants
    assert shared.flops < separate.flops


@pytest.mark.slow
def test_the_default_shape_pays_in_time_and_memory() -> None:
    small = make_subject(ThroughputOptions())
    assert small.decoder_parameters() >= 20e6
    separate, shared = measured(small, "train", 2).variants
    assert separate.tower_flops < 0.15 * separate.flops
    # Operations do not depend on how busy the machine is.
    assert separate.flops / shared.flops > 1.7
    assert shared.peak_bytes < separate.peak_bytes
    measurement = Measurement(small, "score", 8)
    separate_flops, shared_flops = (
        count_flops(lambda each=each: measurement.step(each.batch), small.vision)[0]  # type: ignore[misc]
        for each in measurement.variants
    )
    assert separate_flops / shared_flops > 3.7

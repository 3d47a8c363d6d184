"""What is said before anything is asked: calls, tokens, cost, and images that would leave."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_openai import LoopbackOpenAI, completion

from medrm.cli import main
from medrm.errors import ConfigError
from medrm.evaluation.benchmark_loading import load_benchmark
from medrm.pipeline import dry_run
from medrm.pipeline.dry_run import CallEstimate, estimate
from medrm.pipeline.requests import EvalRequest, Prices
from medrm.schema import DIMENSIONS

VERDICT = json.dumps(dict.fromkeys(DIMENSIONS, "A"))


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackOpenAI]:
    """A service on the loopback interface, which the environment names."""
    started = LoopbackOpenAI(lambda body, number: completion(VERDICT))
    monkeypatch.setenv("OPENAI_BASE_URL", started.url)
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))
    yield started
    started.close()


def run(model: str, data: Path, *options: str) -> int:
    named = ["--model", model, "--benchmark", "phantom", "--data_root", str(data)]
    return main(["evaluate", *named, *options])


def numbers(text: str) -> dict[str, str]:
    """The lines of a dry run by what they count."""
    return dict(re.findall(r"^(\w[\w ]*): (.*)$", text, re.MULTILINE))


@pytest.mark.parametrize("options", [(), ("--judge_prompt", "json_per_dimension")], ids=str)
def test_tokens_are_those_that_the_engine_then_counts(
    options: tuple[str, ...], other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = ("--max_new_tokens", "1", *options)
    with caplog.at_level("INFO"):
        assert run("phantom-base", other, "--dry_run", *short) == 0
    said = numbers(caplog.text.partition("(dry run)")[2])
    assert run("phantom-base", other, "--output_dir", str(tmp_path / "out"), *short) == 0
    usage = json.loads((tmp_path / "out" / "report.json").read_text())["usage"]
    assert said["calls"] == f"{usage['calls']:,}"
    assert said["prompt tokens"] == f"{usage['prompt_tokens']:,}"
    assert said["reply tokens"] == f"at most {usage['completion_tokens']:,}"
    assert "cost" not in said


def request(model: str, **options: Any) -> EvalRequest:
    return EvalRequest(model, "phantom", dry_run=True, **options)


@pytest.mark.parametrize(
    ("readout", "calls", "replies"),
    [
        ("verdict_probability", 2 * len(DIMENSIONS), 0),
        ("skeleton", 2, 0),
        ("likelihood", 1, 0),
        ("generate", 2, 512),
    ],
)
def test_calls_of_each_readout(readout: str, calls: int, replies: int, other: Path) -> None:
    benchmark = load_benchmark("phantom", str(other))
    count = len(benchmark.cases)
    asked = estimate(request("phantom-base", readout=readout), benchmark)
    if readout == "verdict_probability":
        calls = 2 * len(benchmark.dimensions)
    assert (asked.calls, asked.reply_tokens) == (calls * count, calls * count * replies)
    assert asked.exact
    assert asked.prompt_tokens > 30 * asked.calls


def test_a_model_that_is_not_here_is_estimated_and_nothing_is_fetched(
    other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr("medrm.models.adapter_files.hf_hub_download", never)
    monkeypatch.setattr("medrm.models.adapter_files.snapshot_download", never)
    monkeypatch.setattr(dry_run, "load_processor", never)
    benchmark = load_benchmark("phantom", str(other))
    for model, engine in (("nobody/nothing", "transformers"), ("a-model", "openai")):
        asked = estimate(request(model, engine=engine), benchmark)
        assert not asked.exact
        assert asked.uncounted_images == asked.calls == 2 * len(benchmark.cases)
        assert asked.prompt_tokens > 100 * asked.calls


def test_why_a_processor_does_not_count_is_said(
    other: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, trust_remote_code: bool = False, **__: object) -> None:
        raise ConfigError(f"no such class (trusted: {trust_remote_code})")

    monkeypatch.setattr(dry_run, "load_processor", refuse)
    benchmark = load_benchmark("phantom", str(other))
    asked = request("phantom-base", trust_remote_code=True)
    assert not estimate(asked, benchmark).exact
    assert "counted by their characters: no such class (trusted: True)" in caplog.text


def test_the_model_of_like_is_not_fetched(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "medrm.models.adapter_files.snapshot_download", lambda *_, **__: pytest.fail("asked")
    )
    asked = request("phantom-base", readout="likelihood", like="nobody/saved")
    with pytest.raises(ConfigError, match="--like nobody/saved is not on this machine"):
        estimate(asked, load_benchmark("phantom", str(other)))


def test_cost_is_that_of_the_prices_given() -> None:
    asked = CallEstimate(10, 2_000_000, 500_000, exact=False, uncounted_images=7)
    assert asked.cost(Prices(None, None)) is None
    assert asked.cost(Prices(2.5, None)) == 5.0
    assert asked.cost(Prices(2.5, 10.0)) == 10.0
    assert asked.lines(Prices(2.5, 10.0)) == [
        "calls: 10",
        "prompt tokens: 2,000,000 (about, at 4 characters a token; 7 images are not counted)",
        "reply tokens: at most 500,000",
        "cost: about 10.00 at the prices given, without the images",
    ]


@pytest.mark.parametrize("price", ["-1", "nan", "inf"])
def test_a_price_is_a_number_that_can_be_paid(
    price: str, other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = f"--price_per_million_prompt_tokens={price}"
    assert run("mock:oracle", other, "--dry_run", option) == 2
    assert "give 0 or more" in capsys.readouterr().err


def test_nothing_is_loaded_asked_or_written(
    service: LoopbackOpenAI, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("medrm.pipeline.evaluate.open_scorer", never)
    folder = tmp_path / "out"
    for model, engine in (("phantom-base", "transformers"), ("a-model", "openai")):
        options = ("--engine", engine, "--dry_run", "--output_dir", str(folder))
        assert run(model, other, *options) == 0
    assert not folder.exists()
    assert service.bodies == []


def test_a_folder_is_needed_but_for_a_dry_run(
    other: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("mock:oracle", other) == 2
    assert "--output_dir is missing" in capsys.readouterr().err
    assert run("mock:oracle", other, "--dry_run") == 0


def test_images_that_leave_are_said_before_the_first_call(
    service: LoopbackOpenAI, other: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls_before: list[int] = []

    def emitted(record: Any) -> bool:
        if "images of" in record.getMessage():
            calls_before.append(len(service.bodies))
        return True

    caplog.handler.addFilter(emitted)
    cases = len(load_benchmark("phantom", str(other)).cases)
    options = ("--engine", "openai", "--output_dir", str(tmp_path / "out"))
    with caplog.at_level("INFO"):
        assert run("a-model", other, *options) == 0
    line = f"{cases} images of {cases} cases are sent to a-model at 127.0.0.1."
    assert caplog.text.count(line) == 1
    assert calls_before == [0]
    assert len(service.bodies) == 2 * cases


def test_images_that_may_not_leave_do_not(
    service: LoopbackOpenAI,
    other: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "out"
    options = ("--output_dir", str(folder), "--no_remote_images")
    assert run("a-model", other, "--engine", "openai", *options) == 2
    message = capsys.readouterr().err
    assert "would be sent to a-model at 127.0.0.1" in message
    assert "--no_remote_images" in message
    assert service.bodies == []
    assert not folder.exists()
    assert run("mock:oracle", other, "--engine", "openai", *options) == 0  # no service is asked

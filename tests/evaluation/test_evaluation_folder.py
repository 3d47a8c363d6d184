"""An evaluation folder: what is not replaced unasked, and what may be damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from mock_scorers import DIMENSIONS as TWO
from mock_scorers import Rewards, Writer, make_benchmark, make_cases, oracle

from medrm.chat import PROMPTS
from medrm.cli import main
from medrm.errors import ConfigError, DataError
from medrm.evaluation.evaluator import NamedModel, evaluate, rescore
from medrm.evaluation.report import read_report
from medrm.guard import guarded
from medrm.schema import DIMENSIONS, Case, Response

CASES = 8
BENCHMARK = make_benchmark(make_cases("ABBABAAB"))


class Stopped(Exception):
    """Stands for the end of the process."""


class Stopping(Writer):
    """A judge that says A, of the first cases at most; `window` as of a judge in batches."""

    def __init__(self, window: int | None = None, stop: int | None = None) -> None:
        super().__init__(lambda *_: PROMPTS["json"].verdict(dict.fromkeys(DIMENSIONS, "A")).text)
        self.lookahead, self.stop = window, stop

    def respond(self, cases: Sequence[Case]) -> Iterator[Response]:
        for number, response in enumerate(super().respond(cases)):
            if number // 2 == self.stop:
                raise Stopped
            yield response


def run(folder: Path, scorer: object = None, weights: str | None = "w", **changes: Any) -> None:
    asked = {"settings": {"t": 0.1}, "benchmark": BENCHMARK, **changes}
    evaluate(
        scorer or Stopping(), asked.pop("benchmark"), folder, NamedModel("m", weights), **asked
    )


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


OTHERS = {
    "weights: w there, others asked": {"weights": "others"},
    "setting t: 0.1 there, 0.2 asked": {"settings": {"t": 0.2}},
    "setting u: None there, 1 asked": {"settings": {"t": 0.1, "u": 1}},
    "cases: others": {"benchmark": make_benchmark(BENCHMARK.cases[1:])},
    "window: None there, 4 asked": {"scorer": Stopping(4)},
    "readout: generate there, reward asked": {"scorer": Rewards(oracle)},
    "weights: nothing says whether": {"weights": None},
}


@pytest.mark.parametrize("said", list(OTHERS))
@pytest.mark.parametrize("stop", [None, 5])
def test_another_evaluation_is_replaced_only_on_request(
    tmp_path: Path, said: str, stop: int | None
) -> None:
    folder, fresh = tmp_path / "one", tmp_path / "fresh"
    with nullcontext() if stop is None else pytest.raises(Stopped):
        run(folder, Stopping(stop=stop))
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"'m' on 'hand-made'.*--overwrite_output_dir") as refused:
        run(folder, **OTHERS[said])
    assert said in str(refused.value)
    assert contents(folder) == before
    run(folder, **OTHERS[said], overwrite=True)
    run(fresh, **OTHERS[said])
    assert contents(folder) == contents(fresh) != before


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_files_of_unknown_origin_are_not_replaced(tmp_path: Path, content: str | None) -> None:
    """Such as cases of the user's own, or an evaluation whose first file is damaged."""
    names = ["cases.jsonl"] if content is None else ["cases.jsonl", "evaluation.json"]
    for name in names:
        (tmp_path / name).write_text(content or "own")
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=f"{', '.join(names)}, and nothing says") as refused:
        run(tmp_path)
    assert "--overwrite_output_dir" in str(refused.value)
    assert contents(tmp_path) == before
    run(tmp_path, overwrite=True)


@pytest.mark.parametrize("line", ["[]", '{"case_id": 5}', "\ufffd"])
@pytest.mark.parametrize("kind", ["judge", "apart", "scores"])
def test_the_same_command_mends_a_damaged_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, line: str
) -> None:
    """As `medrm rescore` and `medrm compare` advise, which name the line."""
    both = make_benchmark(make_cases("ABAB", "AABB"), TWO)
    scorer: Any = {
        "judge": Stopping(),
        "apart": Writer(lambda *_: '{"accuracy": "A", "overall": "B"}', TWO, per_dimension=True),
        "scores": Rewards(oracle, TWO),
    }[kind]
    run(tmp_path, scorer, benchmark=both)
    whole = contents(tmp_path)
    path = tmp_path / "responses.jsonl"
    lines = path.read_text("utf-8").splitlines()
    damaged = {"judge": (1, 2), "apart": (2, 4), "scores": (1,)}[kind]
    for number in damaged:  # all that says anything of one case on one dimension
        lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n", "utf-8")
    with pytest.raises(DataError, match=f"line {damaged[0]}, is not a .*Start the same"):
        rescore(tmp_path)
    asked: list[str] = []
    scorer.respond = lambda cases, respond=scorer.respond: respond(noted(cases, asked))
    run(tmp_path, scorer, benchmark=both)
    assert asked == ["case-000"]
    assert all(f"line {number}, is damaged" in caplog.text for number in damaged)
    assert contents(tmp_path) == whole


def noted(cases: Sequence[Case], asked: list[str]) -> Sequence[Case]:
    asked += [case.case_id for case in cases]
    return cases


def test_a_dimension_of_which_nothing_is_left_is_missed(tmp_path: Path) -> None:
    run(tmp_path, Rewards(oracle, TWO), benchmark=make_benchmark(make_cases("AB", "AB"), TWO))
    path = tmp_path / "responses.jsonl"
    first, second = map(json.loads, path.read_text("utf-8").splitlines())
    del first["rewards"]["overall"]
    path.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n", "utf-8")
    with pytest.raises(DataError, match="case-000: scores are missing"):
        rescore(tmp_path)


def test_a_start_that_was_killed_at_once_goes_on(tmp_path: Path) -> None:
    run(tmp_path)
    whole = contents(tmp_path)
    for path in tmp_path.iterdir():
        if path.name != "evaluation.json":
            path.unlink()
    run(tmp_path)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("scorer", [Stopping(), Rewards(oracle)], ids=["judge", "scores"])
@pytest.mark.parametrize("share", [0.03, 0.4, 0.9])
def test_a_full_disk_stops_an_evaluation_that_goes_on(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    limited: Callable[[int], None],
    scorer: Any,
    share: float,
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "full"
    run(whole, scorer)
    largest = max(path.stat().st_size for path in whole.iterdir())

    def evaluated() -> int:
        return guarded(lambda: run(folder, scorer))

    limited(int(share * largest))
    assert evaluated() == 1
    limited(2**30)
    message = capsys.readouterr().err
    assert message.startswith(f"Error: {folder}/")
    assert ".jsonl could not be written: File too large. Make room" in message or share == 0.03
    assert "goes on where it was stopped" in message
    assert "Traceback" not in message
    assert not list(folder.glob("*.partial"))
    assert evaluated() == 0
    assert contents(folder) == contents(whole)


def test_other_errors_of_the_system_keep_their_traceback() -> None:
    with pytest.raises(FileNotFoundError):
        guarded(lambda: Path("missing").unlink())


@pytest.mark.slow
def test_the_command_refuses_another_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(model: str, *options: str) -> int:
        folder = str(tmp_path)
        words = ["--model", model, "--benchmark", "phantom", "--output_dir", folder, "--no_images"]
        return main(["evaluate", *words, *options])

    assert command("mock:longer") == command("mock:longer") == 0
    capsys.readouterr()
    assert command("mock:oracle") == 2
    message = capsys.readouterr().err
    assert "holds another evaluation, of 'mock:longer' on 'phantom'; asked for is" in message
    assert "- weights: mock:longer there, mock:oracle asked" in message
    assert read_report(tmp_path)["model"] == "mock:longer"
    assert command("mock:oracle", "--overwrite_output_dir") == 0
    assert read_report(tmp_path)["model"] == "mock:oracle"

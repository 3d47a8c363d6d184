"""An evaluation that was stopped goes on: no number changes, nothing is asked twice."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from loopback_openai import LoopbackOpenAI, completion
from mock_scorers import (
    Answered,
    Rewards,
    Writer,
    make_benchmark,
    make_cases,
    oracle,
    rewarded,
)
from resumable_worker import CASES

from medrm.chat import PROMPTS
from medrm.errors import ConfigError
from medrm.evaluation.evaluator import NamedModel, evaluate
from medrm.evaluation.folder import locked
from medrm.evaluation.records.jsonl import Journal
from medrm.schema import DIMENSIONS, Case, Response

WORKER = Path(__file__).parent / "resumable_worker.py"
BENCHMARK = make_benchmark(make_cases("ABBABAAB" * 2))


class Stopped(Exception):
    """Stands for the end of the process."""


class Counting:
    """A scorer that notes the windows it computes, and stops after some cases."""

    def __init__(
        self, scorer: Rewards | Writer, window: int | None = None, stop: int | None = None
    ) -> None:
        self.scorer, self.stop, self.lookahead = scorer, stop, window
        self.readout, self.dimensions = scorer.readout, scorer.dimensions
        self.windows: list[list[str]] = []

    @property
    def asked(self) -> list[str]:
        return [case_id for window in self.windows for case_id in window]

    def respond(self, cases: Sequence[Case]) -> Iterator[Response]:
        self.windows.append([])
        for response in self.scorer.respond(cases):
            if response.case_id not in self.windows[-1]:
                if len(self.asked) == self.stop:
                    raise Stopped
                self.windows[-1].append(response.case_id)
            yield response


def write(case: Case, order: str, name: str | None, vote: int) -> str:
    letter = "AB"[(int(case.case_id[-3:]) + vote + (order == "reversed")) % 2]
    return PROMPTS["json"].verdict(dict.fromkeys(DIMENSIONS, letter)).text + " ü\n"


SCORERS = {"votes": Writer(write, DIMENSIONS, votes=2), "scores": Rewards(oracle)}


def run(folder: Path, scorer: Counting, weights: str | None = "w", **changes: object) -> None:
    asked = {"settings": {"t": 0.1}, "benchmark": BENCHMARK, **changes}
    evaluate(scorer, asked.pop("benchmark"), folder, NamedModel("m", weights), **asked)


def contents(folder: Path, whole: bool = True) -> dict[str, str]:
    """Digests: an assertion that fails should not print the files; `whole`: processes as well."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if whole or path.name != "evaluation.json"
    }


@pytest.mark.parametrize("name", list(SCORERS))
@pytest.mark.parametrize("window", [None, 5])
def test_it_goes_on_where_it_was_stopped(tmp_path: Path, name: str, window: int | None) -> None:
    run(tmp_path / "whole", Counting(SCORERS[name], window))
    for stop in (0, 1, 7, 15):
        folder = tmp_path / f"stopped-{stop}"
        with pytest.raises(Stopped):
            run(folder, Counting(SCORERS[name], window, stop))
        assert not (folder / "report.json").exists()
        scorer = Counting(SCORERS[name], window)
        run(folder, scorer)
        kept = stop if window is None else stop // window * window
        assert scorer.asked == [case.case_id for case in BENCHMARK.cases[kept:]]
        assert all(len(computed) in (window, 1, 16 - kept) for computed in scorer.windows)
        assert contents(folder) == contents(tmp_path / "whole")
    scorer = Counting(SCORERS[name], window)
    run(tmp_path / "whole", scorer)
    assert scorer.asked == []
    assert contents(folder) == contents(tmp_path / "whole")


@pytest.mark.parametrize("window", [None, 3])
def test_a_file_may_be_torn_anywhere(tmp_path: Path, window: int | None) -> None:
    benchmark = make_benchmark(make_cases("ABBABA"))
    run(tmp_path, Counting(SCORERS["votes"], window), benchmark=benchmark)
    path = tmp_path / "responses.jsonl"
    whole, content = contents(tmp_path), path.read_bytes()
    lines = content.splitlines(keepends=True)
    ends = [sum(map(len, lines[: number + 1])) for number in range(len(lines))]
    for size in {*range(0, len(content), 97), *ends, *(end - 1 for end in ends)}:
        path.write_bytes(content[:size])
        scorer = Counting(SCORERS["votes"], window)
        run(tmp_path, scorer, benchmark=benchmark)
        kept = sum(end <= size for end in ends) // 4
        kept -= kept % window if window else 0
        assert len(scorer.asked) == 6 - kept
        assert contents(tmp_path) == whole


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b'{"vote": NaN}', b"\xff", b"first"])
def test_a_damaged_line_costs_its_own_case(tmp_path: Path, line: bytes) -> None:
    benchmark = make_benchmark(make_cases("ABBABA"))
    run(tmp_path, Counting(SCORERS["votes"]), benchmark=benchmark)
    path = tmp_path / "responses.jsonl"
    whole, lines = contents(tmp_path), path.read_bytes().splitlines()
    lines[5] = lines[4] if line == b"first" else line
    path.write_bytes(b"\n".join(lines) + b"\n")
    scorer = Counting(SCORERS["votes"])
    run(tmp_path, scorer, benchmark=benchmark)
    assert scorer.asked == ["case-001"]
    assert contents(tmp_path) == whole


def test_two_evaluations_do_not_share_a_folder(tmp_path: Path) -> None:
    run(tmp_path, Counting(SCORERS["scores"]))
    before = contents(tmp_path)
    with locked(tmp_path), pytest.raises(ConfigError, match="Another evaluation is writing"):
        run(tmp_path, Counting(SCORERS["votes"]), overwrite=True)
    assert contents(tmp_path) == before
    run(tmp_path, Counting(SCORERS["votes"]), overwrite=True)


def test_failed_calls_are_asked_again(tmp_path: Path) -> None:
    """Refusals, long prompts and bad images are answers; a service that fails is none."""

    class Failing(Writer):
        def reply(self, case: Case, *call: object) -> object:
            response = super().reply(case, *call)
            failed = {"state": "error", "reason": "HTTP 500", "text": None}
            changes = {"case-003": failed, "case-005": {"state": "too_long", "text": None}}
            return dataclasses.replace(response, **changes.get(case.case_id, {}))

    run(tmp_path / "whole", Counting(SCORERS["votes"]))
    run(tmp_path / "failed", Counting(Failing(write, DIMENSIONS, votes=2)))
    scorer = Counting(SCORERS["votes"])
    run(tmp_path / "failed", scorer)
    assert scorer.asked == ["case-003"]
    lines = (tmp_path / "failed" / "responses.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["case_id"] for line in found] == [
        case.case_id for case in BENCHMARK.cases for _ in range(4)
    ]
    whole = (tmp_path / "whole" / "responses.jsonl").read_text().splitlines()
    differing = [
        line["case_id"] for line, own in zip(found, whole, strict=True) if line != json.loads(own)
    ]
    assert set(differing) == {"case-005"}


def test_what_is_no_other_evaluation(tmp_path: Path) -> None:
    """What may change without another word from the model: parser, protocol, name."""
    run(tmp_path, Counting(SCORERS["votes"]), settings={"parser": 1})
    scorer = Counting(SCORERS["votes"])
    run(tmp_path, scorer, settings={"parser": 2}, protocol="robust")
    assert scorer.asked == []
    assert not (tmp_path / "official.csv").exists()


def start(
    kind: str, folder: Path, *url: str, weights: str = "weights 1"
) -> subprocess.Popen[bytes]:
    here = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, str(WORKER), kind, str(folder), *url],
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parent}:{here.parents[1]}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def start_two(kind: str, folder: Path) -> subprocess.Popen[bytes]:
    """Two processes; each is in a session of its own and names its id beside the folder."""
    here = Path(__file__).parent
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", str(WORKER), kind, str(folder)),
        ],
        env={
            **os.environ,
            "PYTHONPATH": f"{here}:{here.parent}:{here.parents[1]}",
            "ACCELERATE_USE_CPU": "true",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()[-4000:]


def kill_when(
    reached: Callable[[], bool],
    process: subprocess.Popen[bytes],
    workers: Callable[[], Iterable[Path]] = list,
) -> None:
    while not reached():
        assert process.poll() is None, process.communicate()[1].decode()[-4000:]
        time.sleep(0.002)
    process.kill()
    for path in workers():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.suffixes[-2][1:]), signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_while_asking_a_service(tmp_path: Path) -> None:
    def answer(body: dict[str, object], number: int) -> object:
        first = "much longer" in str(body["messages"]).split("short")[0]
        letters = dict.fromkeys(DIMENSIONS, "A" if first else "B")
        return completion(PROMPTS["json"].verdict(letters).text)

    service = LoopbackOpenAI(answer, lambda _: 0.02)
    finish(start("service", tmp_path / "whole" / "evaluation", service.url))
    assert len(service.bodies) == 2 * CASES
    service.bodies.clear()
    folder = tmp_path / "killed" / "evaluation"
    for calls in (5, 30):
        kill_when(lambda n=calls: len(service.bodies) >= n, start("service", folder, service.url))
    shutil.rmtree(folder.parent / "replies")  # the journal alone
    finish(start("service", folder, service.url))
    service.close()
    assert contents(folder) == contents(tmp_path / "whole" / "evaluation")
    # Asked twice is what was under way; without the kept replies also what a slower call held up.
    assert len(service.bodies) <= 2 * CASES + 2 + (2 + 4 * 2)
    assert len({json.dumps(body, sort_keys=True) for body in service.bodies}) == 2 * CASES


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "kills"), [("judge", (3, 14)), ("scores", (12,))])
def test_killed_while_computing(tmp_path: Path, kind: str, kills: tuple[int, ...]) -> None:
    def asked(folder: Path) -> list[str]:
        path = folder.parent / f"{folder.name}.asked"
        return path.read_text().splitlines() if path.is_file() else []

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(kind, whole))
    for cases in kills:
        kill_when(lambda n=cases: len(asked(killed)) >= n, start(kind, killed))
    finish(start(kind, killed))
    assert contents(killed) == contents(whole)
    assert len(asked(killed)) < CASES + len(kills) * 8  # less than a window each


@pytest.mark.distributed
def test_it_goes_on_with_other_processes(tmp_path: Path) -> None:
    def asked(folder: Path) -> list[str]:
        path = folder.parent / f"{folder.name}.asked"
        return path.read_text().splitlines() if path.is_file() else []

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start_two("judge", whole))
    kill_when(
        lambda: len(asked(killed)) >= 17,
        start_two("judge", killed),
        lambda: tmp_path.glob("killed.*.pid"),
    )
    assert list(killed.glob("responses.*.?.jsonl"))
    by_one = shutil.copytree(killed, tmp_path / "by_one")
    for folder, start_again in ((killed, start_two), (by_one, start)):
        finish(start_again("judge", folder))
        assert contents(folder, whole=False) == contents(whole, whole=False)
        assert json.loads((folder / "evaluation.json").read_text())["processes"] == (
            2 if folder == killed else 1
        )
    assert contents(killed) == contents(whole)
    assert len(asked(killed)) < 2 * CASES
    assert len(asked(by_one)) < CASES


def test_each_process_has_a_journal_of_its_own(tmp_path: Path) -> None:
    """All read those of an earlier start; of another evaluation or unknown weights nothing is."""
    asked = ("accuracy",)
    (case,) = make_cases("A")
    responses = {
        "judge": tuple(calls("case-000")),
        "scores": (rewarded(case, np.array([[0.1], [0.25]])),),
        "reason": (rewarded(case, None, state="bad_image"),),
    }
    for name, one in responses.items():
        folder = tmp_path / name
        folder.mkdir()
        journal = Journal(folder, "address", asked, rank=1, processes=2)
        journal.start([])
        journal.append(one)
        journal.close()
        journal_of_one = {"case-000": one}
        for rank, processes in ((0, 2), (0, 1), (3, 4)):
            assert Journal(folder, "address", asked, rank, processes).responses == journal_of_one
        for address in ("another", None):
            assert Journal(folder, address, asked, 1, 2).responses == {}
        assert not (folder / "responses.jsonl").exists()
        Journal(folder, "address", asked).remove()
        assert not list(folder.iterdir())


def calls(case_id: str) -> Iterator[Response]:
    for order in ("forward", "reversed"):
        for pair in ((0, 1), (0, 2), (1, 2)):
            yield Answered(case_id, order, text="{}", pair=pair)


def test_the_first_process_alone_may_have_a_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "one", Counting(SCORERS["votes"]), benchmark=make_benchmark(make_cases("A")))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for module in ("evaluator", "gathering"):  # the other one has none
        monkeypatch.setattr(f"medrm.evaluation.{module}.gather", list)
    run(tmp_path / "two", Counting(SCORERS["votes"]), benchmark=make_benchmark(make_cases("A")))
    found = [contents(tmp_path / name) for name in ("one", "two")]
    assert found[0].keys() == found[1].keys()
    assert found[0]["responses.jsonl"] == found[1]["responses.jsonl"]

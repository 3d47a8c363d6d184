"""Replies of services are kept: nothing is asked for twice, also after a run was killed."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cases import stored_image
from loopback_openai import GREEDY, KEY, Answer, Start, ask, echo, question, run

from medrm.integrity import read_record
from medrm.scorer.engines.base import Sampling
from medrm.scorer.engines.openai_engine import OpenAIEngine


def test_a_kept_reply_costs_no_call_and_everything_asked_is_its_key(
    start: Start, tmp_path: Path
) -> None:
    service = start(echo)
    run(service, tmp_path, ask("q", stored_image(1)))
    run(service, tmp_path, ask("q", stored_image(1)))
    assert len(service.bodies) == 1
    run(service, tmp_path, ask("q", stored_image(2)))
    run(service, tmp_path, ask("p", stored_image(1)))
    run(service, tmp_path, ask("q", stored_image(1), vote=1))
    run(service, tmp_path, ask("q", stored_image(1)), sampling=Sampling(max_new_tokens=9))
    other = OpenAIEngine("another", service.url, KEY, cache_dir=tmp_path)
    list(other.complete([ask("q", stored_image(1))], GREEDY))
    assert len(service.bodies) == 6


def test_a_damaged_file_of_the_cache_is_asked_for_again(start: Start, tmp_path: Path) -> None:
    service = start(echo)
    run(service, tmp_path, ask("q"))
    (kept,) = tmp_path.rglob("*.json")
    for damaged in ('{"text": ', kept.read_text().replace("re: q", "re: r")):
        kept.write_text(damaged)
        assert run(service, tmp_path, ask("q"))[0].text == "re: q"
        assert read_record(kept) == {"text": "re: q", "finish_reason": "stop"}


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from loopback_openai import ask
from medrm.scorer.engines.base import Sampling
from medrm.scorer.engines.openai_engine import OpenAIEngine
engine = OpenAIEngine("a-model", sys.argv[1], "k", cache_dir=Path(sys.argv[2]), concurrency=2)
for done in engine.complete([ask(f"q{n}") for n in range(40)], Sampling()):
    sys.stdout.write(done.text + "\\n")
    sys.stdout.flush()
"""


def test_a_killed_run_goes_on_and_repeats_nothing(start: Start, tmp_path: Path, root: Path) -> None:
    resume = threading.Event()

    def held(body: dict[str, Any], number: int) -> Answer:
        if int(question(body)[1:]) >= 10:
            resume.wait(30)
        return echo(body, number)

    service = start(held)
    command = [sys.executable, "-c", KILLED, service.url, str(tmp_path), str(root / "tests")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(10):
            assert process.stdout.readline().startswith("re: ")
        while len(service.bodies) < 12:
            time.sleep(0.01)
        process.kill()
    kept = len(list(tmp_path.rglob("*.json")))
    assert kept == 10
    resume.set()
    found = run(service, tmp_path, *(ask(f"q{number}") for number in range(40)))
    assert [each.text for each in found] == [f"re: q{number}" for number in range(40)]
    assert len(service.bodies) == 12 + 30
    assert not list(tmp_path.rglob("*.tmp"))

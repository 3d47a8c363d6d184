"""Many clients of a real process: none is lost, none gets another's answer, memory stays.

    python -m pytest -n 0 -s -m exhaustive tests/serve/test_load.py

also prints how many requests a second 64 clients and one client get answered.
"""

from __future__ import annotations

import http.client
import sys
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from loopback_service import ServiceProcess, ask, ask_all, running
from served import CLOSE, REWARD_MODEL, asked, columns, golden_cases

import medrm
from medrm.schema import Case

CLIENTS = 64
DISTINCT = 240
"""Cases that all have rewards of their own, so that an answer of another request shows."""

WARM, GROWTH = 1000, 64 * 2**20
"""Bytes by which the service may grow after so many requests, when all buffers are there."""

MOST = 1000 * 2**20
"""Bytes that the service takes at all, torch and the small model included."""

BOUNDARY = "a-boundary"


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def distinct_cases() -> list[Case]:
    return [
        replace(
            case,
            case_id=f"{number}",
            question=f"{case.question} Case {number}.",
            answers=(case.answers[number % 2], f"Number {number} is seen."),
        )
        for number in range(DISTINCT)
        for case in [golden_cases()[number % 6]]
    ]


def form_of(case: Case) -> bytes:
    """A case as a multipart form."""
    start = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
    texts = [("question", case.question), *(("answers", answer) for answer in case.answers)]
    body = "".join(f'{start}"{name}"\r\n\r\n{text}\r\n' for name, text in texts).encode()
    body += f'{start}"images"; filename="scan.png"\r\n\r\n'.encode() + case.images[0].read()
    return body + f"\r\n--{BOUNDARY}--\r\n".encode()


class Questioner:
    """Asks about case after case in all forms, and checks each answer."""

    def __init__(self) -> None:
        self.cases = distinct_cases()
        model = medrm.load(REWARD_MODEL)
        self.rewards = [rewards for _, rewards in model.score_cases(self.cases)]
        overall = np.sort([float(rewards[0, -1]) for rewards in self.rewards])
        assert np.median(np.diff(overall)) > 10 * CLOSE
        self.answered = 0
        self._lock = threading.Lock()

    def __call__(self, connection: http.client.HTTPConnection, number: int) -> None:
        index = number % DISTINCT
        case, expected = self.cases[index], self.rewards[index]
        form = number % 5
        if form == 0:  # some are wrong
            broken: dict[str, Any] = {**asked(case), "images": ["aGVsbG8="]}
            reply = ask(connection, "/v1/score", {"cases": [broken]})
            assert reply.status == 200
            assert "cannot be decoded" in reply.body["results"][0]["error"]
        elif form == 1:
            kind = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
            reply = ask(connection, "/v1/score/upload", form_of(case), kind)
            (result,) = reply.body["results"]
            assert np.abs(columns(result["rewards"]) - expected).max() < CLOSE
        elif form == 2:
            images = [{"type": "image_url", "image_url": {"url": asked(case)["images"][0]}}]
            turns = [
                {"role": "user", "content": [*images, {"type": "text", "text": case.question}]},
                {"role": "assistant", "content": case.answers[1]},
            ]
            reply = ask(connection, "/classify", {"messages": turns, "use_activation": False})
            assert np.abs(np.array(reply.body["data"][0]["probs"]) - expected[1]).max() < CLOSE
        else:
            reply = ask(connection, "/v1/score", {"cases": [asked(case)]})
            (result,) = reply.body["results"]
            assert result["id"] == case.case_id
            assert np.abs(columns(result["rewards"]) - expected).max() < CLOSE
        with self._lock:
            self.answered += 1


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(500, marks=pytest.mark.slow),
        pytest.param(10_000, marks=[pytest.mark.exhaustive, pytest.mark.timeout(3600)]),
    ],
)
def test_many_clients(count: int) -> None:
    questioner = Questioner()
    sizes: list[tuple[int, int]] = []
    with running() as service:
        done = threading.Event()

        def watch() -> None:
            while not done.wait(0.2):
                sizes.append((questioner.answered, service.memory()))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            seconds = ask_all(service, CLIENTS, count, questioner)
        finally:
            done.set()
            watcher.join()
        assert questioner.answered == count
        tell(f"\n{CLIENTS} clients: {count / seconds:.1f} requests/s ({count} in {seconds:.1f} s)")
        _one_by_one(service, questioner, min(count // 5, 500))
        assert service.stop() == 143
    parts = [
        max(size for answered, size in sizes if answered * 10 <= part * count)
        for part in range(1, 11)
    ]
    tell(f"memory in MiB after each tenth: {' '.join(f'{part / 2**20:.0f}' for part in parts)}")
    if count > WARM:
        warm = max(size for answered, size in sizes if answered <= WARM)
        assert parts[-1] - warm < GROWTH
    assert parts[-1] < MOST


def _one_by_one(service: ServiceProcess, questioner: Questioner, count: int) -> None:
    seconds = ask_all(service, 1, count, questioner)
    tell(f"1 client: {count / seconds:.1f} requests/s ({count} in {seconds:.1f} s)")

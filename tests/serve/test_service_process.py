"""What the process of a service bears: clients that die or dawdle, and signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from loopback_service import Reply, ServiceProcess, ask, running
from served import CLOSE, Serve, asked, columns, golden_cases

import medrm
from medrm.errors import ConfigError, RunFailed
from medrm.serve import admission

HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "

DYING = """
import os, signal, socket, sys, time
port, whole = int(sys.argv[1]), sys.stdin.buffer.read()
head = whole.index(b"\\r\\n\\r\\n") + 4
ends = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
for number, end in enumerate(ends):
    end.sendall(whole[: (len(whole), head, len(whole) // 2, 20)[number % 4]])
time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
"""
"""A client that dies with requests sent, half sent and hardly begun."""


@pytest.fixture(scope="module")
def service() -> Iterator[ServiceProcess]:
    with running("--batch_wait_ms", "100") as process:
        yield process


def whole_request() -> bytes:
    body = json.dumps({"cases": [asked(case) for case in golden_cases(2)]}).encode()
    return HEAD + str(len(body)).encode() + b"\r\n\r\n" + body


def check_one(service: ServiceProcess, expected: Any) -> float:
    """Asks once, checks the answer, and returns the seconds that it took."""
    started = time.perf_counter()
    with closing(service.connection()) as connection:
        reply = ask(connection, "/v1/score", {"cases": [asked(golden_cases(1)[0])]})
    assert reply.status == 200
    assert np.abs(columns(reply.body["results"][0]["rewards"]) - expected).max() < CLOSE
    return time.perf_counter() - started


def metrics_of(service: ServiceProcess) -> str:
    with closing(service.connection()) as connection:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


@pytest.mark.distributed
def test_clients_that_die_harm_nobody(service: ServiceProcess, reward_model: Any) -> None:
    expected = next(rewards for _, rewards in reward_model.score_cases(golden_cases(1)))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            dying = [
                pool.submit(
                    subprocess.run,
                    [sys.executable, "-c", DYING, str(service.port)],
                    input=whole_request(),
                    check=False,
                )
                for _ in range(2)
            ]
            living = [pool.submit(check_one, service, expected) for _ in range(6)]
            assert all(one.result().returncode == -signal.SIGKILL for one in dying)
            assert all(one.result() < 60 for one in living)
    deadline = time.monotonic() + 30
    while True:  # what the dead left is forgotten
        told = metrics_of(service)
        if "medrm_waiting_rows 0.0" in told and "medrm_requests_under_way 0.0" in told:
            break
        assert time.monotonic() < deadline, told
    assert "Traceback" not in service.told


@pytest.mark.distributed
def test_clients_that_dawdle_harm_nobody(service: ServiceProcess, reward_model: Any) -> None:
    expected = next(rewards for _, rewards in reward_model.score_cases(golden_cases(1)))
    whole = whole_request()
    ends = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(150)]
    stopped = threading.Event()

    def dawdle() -> None:
        for position in range(len(whole)):
            for number, end in enumerate(ends):
                start = 200 * (number % 2)  # in the head, or in the body
                end.sendall(whole[: start + 1] if position == 0 else whole[start + position :][:1])
            if stopped.wait(0.1):
                return

    slow = threading.Thread(target=dawdle)
    slow.start()
    try:
        for _ in range(10):
            assert check_one(service, expected) < 30
    finally:
        stopped.set()
        slow.join()
        for end in ends:
            end.close()


@pytest.mark.distributed
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_what_was_accepted_end(number: int, status: int, reward_model: Any) -> None:
    expected = next(rewards for _, rewards in reward_model.score_cases(golden_cases(1)))
    with running("--batch_wait_ms", "3000") as service, ThreadPoolExecutor(8) as pool:
        kept = service.connection()
        kept.connect()
        accepted = [pool.submit(check_one, service, expected) for _ in range(8)]
        while "medrm_requests_under_way 8.0" not in metrics_of(service):
            pass
        dawdling = socket.create_connection(("127.0.0.1", service.port))
        dawdling.sendall(HEAD + b"100\r\n\r\n{")
        os.kill(service.pid, number)
        time.sleep(0.5)
        refused: Reply = ask(kept, "/v1/score", {"cases": [asked(golden_cases(1)[0])]})
        assert refused.status == 503
        assert "is stopping" in refused.body["error"]["message"]
        assert all(one.result() > 0 for one in accepted)
        assert service.wait() == status
        dawdling.close()
        kept.close()
    assert "what was accepted is still answered" in service.told
    assert f"Stopped by {signal.Signals(number).name}." in service.told
    assert "Traceback" not in service.told


def test_who_takes_too_long_is_cut_off(
    serve: Serve, reward_model: Any, listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "READ_SECONDS", 0.4)
    place = ("127.0.0.1", listen(serve(reward_model)[1]))
    for sent in (b"", b"POST /v1/sc", HEAD + b"100\r\n\r\n{"):
        with socket.create_connection(place, timeout=20) as end:
            started = time.monotonic()
            end.sendall(sent)
            assert end.recv(1000) == b""
            assert time.monotonic() - started > 0.3
    body = b'{"cases": [{"question": "?", "answers": ["a"]}]}'
    with socket.create_connection(place, timeout=20) as end:
        end.sendall(HEAD + str(len(body)).encode() + b"\r\n\r\n" + body)
        time.sleep(0.6)  # the answer is not hurried
        assert end.recv(12) == b"HTTP/1.1 200"


def test_a_reward_function_asks_a_service(
    serve: Serve, reward_model: Any, judge: Any, listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = serve(reward_model, token="a-token", queue_rows=4)[1]  # three requests, not one
    address = f"http://127.0.0.1:{listen(service)}"
    monkeypatch.setenv("MEDRM_REWARD_MODEL", address)
    monkeypatch.setenv("MEDRM_REWARD_TOKEN", "a-token")
    monkeypatch.setenv("MEDRM_REWARD_DIMENSIONS", "accuracy,overall")
    served = medrm.RewardFunction.from_environment()
    here = medrm.RewardFunction(reward_model, ["accuracy", "overall"])
    cases = golden_cases(3)
    asked_about = {
        "prompts": [case.question for case in cases] * 2,
        "completions": [case.answers[index] for index in (0, 1) for case in cases],
        "images": [list(case.images) for case in cases] * 2,
    }
    asked_about["completions"][1] = "lesion " * 5000
    asked_about["completions"][4] = "lesion " * 20_000  # more than a service accepts
    picture = {"type": "image"}
    asked_about["prompts"][2] = [
        {"role": "user", "content": [picture, {"type": "text", "text": cases[0].question}]},
        {"role": "assistant", "content": cases[0].answers[0]},
        {"role": "user", "content": cases[2].question},
    ]
    told, expected = served(**asked_about), here(**asked_about)
    assert told[1] is expected[1] is told[4] is expected[4] is None
    assert [one for one in told if one is not None] == pytest.approx(
        [one for one in expected if one is not None], abs=2 * CLOSE
    )
    plain = here([cases[2].question], [cases[2].answers[0]], images=[list(cases[2].images)])
    assert abs(told[2] - plain[0]) > 10 * CLOSE
    monkeypatch.setenv("MEDRM_REWARD_TOKEN", "wrong")
    with pytest.raises(RunFailed, match="status 401"):
        medrm.RewardFunction(address)(["Is it?"], ["yes"])
    with pytest.raises(ConfigError, match="serves a judge"):
        medrm.RewardFunction(f"http://127.0.0.1:{listen(serve(judge)[1])}")
    with pytest.raises(ConfigError, match=r"No medrm serve answers at http://127\.0\.0\.1:1 "):
        medrm.RewardFunction("http://127.0.0.1:1")

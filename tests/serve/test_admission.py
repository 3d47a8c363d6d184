"""What a request must pass before it is read, and what malformed ones come to."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from served import Serve, asked, golden_cases

from medrm.cli import main

JSON = {"Content-Type": "application/json"}
TOKEN = "a-token-that-nobody-may-see"


def test_the_token_opens_and_is_never_told(
    serve: Serve, reward_model: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    client = serve(reward_model, token=TOKEN)[0]
    body = {"cases": [{"question": "Is it?", "answers": ["a"]}]}
    shown = ""
    for header in (None, TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer wrong", f"Bearer {TOKEN}x"):
        headers = {} if header is None else {"Authorization": header}
        for path in ("/v1/score", "/metrics", "/nowhere"):
            method = "POST" if path == "/v1/score" else "GET"
            answer = client.request(method, path, json=body, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            shown += answer.text
    for scheme in ("Bearer", "bearer"):
        good = {"Authorization": f"{scheme} {TOKEN}"}
        assert client.post("/v1/score", json=body, headers=good).status_code == 200
    shown += client.get("/metrics", headers=good).text + client.get("/openapi.json").text
    assert client.get("/health").status_code == 200
    assert TOKEN not in shown + caplog.text


def test_sizes_and_types_are_limited(serve: Serve, reward_model: Any) -> None:
    client, service = serve(reward_model, max_request_mb=1)
    large = b'{"cases": "' + b"x" * 2**20 + b'"}'

    def parts() -> Iterator[bytes]:
        yield from (large[start : start + 2**16] for start in range(0, len(large), 2**16))

    for content in (large, parts()):  # with its length said before, and without
        answer = client.post("/v1/score", content=content, headers=JSON)
        assert answer.status_code == 413
        assert "more than 1048576 bytes" in answer.json()["error"]["message"]
    bomb = gzip.compress(b'{"cases": "' + b"x" * 2**24 + b'"}')
    packed = client.post("/v1/score", content=bomb, headers={**JSON, "Content-Encoding": "gzip"})
    assert packed.status_code == 415
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "application/xml"):
        answer = client.post("/v1/score", content=b"{}", headers={"Content-Type": kind})
        assert answer.status_code == 415
    assert service.gate.held_bytes == service.gate.accepted == 0
    service.gate.held_bytes = 8 * 2**20 - 10
    busy = client.post("/v1/score", content=b"{" + b" " * 20 + b"}", headers=JSON)
    assert (busy.status_code, busy.headers["Retry-After"]) == (429, "1")


def test_a_service_that_is_stopping_refuses_new_work(serve: Serve, reward_model: Any) -> None:
    client, service = serve(reward_model)
    service.gate.is_closing = True
    answer = client.post("/v1/score", json={"cases": [{"question": "?", "answers": ["a"]}]})
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    health = client.get("/health")
    assert (health.status_code, health.json()["status"]) == (503, "stopping")


def test_a_client_that_leaves_takes_its_cases_off_the_queue(
    serve: Serve, reward_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, service = serve(reward_model, batch_wait_ms=200)
    application: Any = client.app
    scored: list[str] = []
    respond = reward_model.respond

    def noted(cases: Any) -> Any:
        cases = list(cases)
        scored.extend(case.question for case in cases)
        return respond(cases)

    monkeypatch.setattr(reward_model, "respond", noted)
    body = json.dumps({"cases": [{"question": "gone", "answers": ["a"]}]}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/score",
        "raw_path": b"/v1/score",
        "root_path": "",
        "scheme": "http",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "state": {},
    }
    asyncio.run(application(scope, receive, send))
    assert sent == []
    assert service.gate.accepted == service.gate.held_bytes == 0
    here = {"cases": [{"question": "here", "answers": ["a"]}]}
    assert client.post("/v1/score", json=here).status_code == 200
    assert scored == ["here"]
    assert 'medrm_requests_total{path="/v1/score",status="499"} 1.0' in client.get("/metrics").text


def malformed(drawn: random.Random) -> tuple[bytes, dict[str, str]]:
    """A body that is no request, and its headers."""
    whole = json.dumps({"cases": [asked(golden_cases(1)[0])]}).encode()
    number = "9" * drawn.choice((1, 400, 5000))
    texts = {
        "cut": whole[: drawn.randrange(len(whole))],
        "deep": b'{"cases":' + b"[" * (depth := drawn.choice((50, 5_000, 200_000))) + b"]" * depth,
        "objects": b'{"cases":' * drawn.choice((50, 50_000)),
        "number": f'{{"cases": {number}, "model": {number}}}'.encode(),
        "exponent": b'{"cases": 1e999999}',
        "nan": b'{"cases": [{"question": NaN, "answers": [Infinity, -Infinity]}]}',
        "surrogate": b'{"cases": [{"question": "\\ud800", "answers": ["\\udfff"]}]}',
        "key": b'{"cases": [], "\\ud800": 1}',
        "key_in_case": b'{"cases": [{"question": "?", "answers": [], "\\ud800\\u001b": "\\ud8"}]}',
        "id": b'{"cases": [{"id": "\\udc00", "question": "?", "answers": ["a"]}]}',
        "bytes": drawn.randbytes(drawn.randrange(1, 200)),
        "utf16": b"\xff\xfe" + drawn.randbytes(21),
        "null": b"null",
        "empty": b"",
        "list": b"[]",
        "long": json.dumps({"cases": [{"question": "x" * 100_001, "answers": ["a"]}]}).encode(),
        "none": b'{"cases": [{"question": "?", "answers": []}]}',
        "type": b'{"cases": [{"question": ["?"], "answers": "a"}]}',
    }
    headers = dict(JSON)
    kind = drawn.choice(sorted(texts))
    if drawn.random() < 0.2:
        wrong = ("text/plain", "multipart/form-data", "multipart/form-data; boundary=x", "x", "")
        headers["Content-Type"] = drawn.choice(wrong)
    if drawn.random() < 0.1:
        headers["Content-Encoding"] = drawn.choice(("gzip", "br", "deflate"))
        return gzip.compress(texts[kind]), headers
    return texts[kind], headers


@pytest.mark.parametrize(
    ("seed", "count"), [(1, 100), pytest.param(0, 1000, marks=pytest.mark.slow)]
)
def test_malformed_bodies_are_the_clients_fault(client: TestClient, seed: int, count: int) -> None:
    drawn = random.Random(seed)
    paths = ("/v1/score", "/v1/compare", "/classify", "/get_reward", "/v1/score/upload")
    for _ in range(count):
        body, headers = malformed(drawn)
        path = drawn.choice(paths)
        answer = client.post(path, content=body, headers=headers)
        assert 400 <= answer.status_code < 500, (path, body[:200], headers, answer.text)
        assert answer.json()["error"]["message"]
    assert client.get("/health").status_code == 200


def test_the_description_says_what_it_is_for(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    assert "not for patient care" in description["info"]["description"]
    answers = description["paths"]["/v1/score"]["post"]["responses"]
    assert {"200", "400", "401", "404", "413", "415", "422", "429", "503"} <= set(answers)
    assert client.get("/docs").status_code == 404  # its page would load scripts from elsewhere


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--token_env", "MEDRM_NO_SUCH"], "that variable holds no token"),
        (["--token_env", TOKEN], "--token_env: that variable holds no token"),
        (["--port", "99999"], "--port is 99999; give at most 65535"),
        (["--queue_rows", "0"], "--queue_rows is 0; give 1 or more"),
        (["--host", "203.0.113.7", "--port", "0"], "Cannot listen on --host 203.0.113.7"),
    ],
)
def test_wrong_options_are_told_before_a_model_is_loaded(
    capsys: pytest.CaptureFixture[str], words: list[str], problem: str
) -> None:
    assert main(["serve", "--model", "no/model", *words]) == 2
    told = capsys.readouterr().err
    assert problem in told
    assert TOKEN not in told


def test_without_the_extra_the_command_to_install_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("medrm.serve.run_service._MODULES", ("json", "no_such_web_framework"))
    assert main(["serve", "--model", "no/model"]) == 2
    told = capsys.readouterr().err
    assert re.search(
        r"medrm serve needs no_such_web_framework, .* `pip install .medrm\[serve\].`", told
    )

"""The client of OpenAI-compatible services, against a service on the loopback interface."""

from __future__ import annotations

import email.utils
import logging
import random
import socket
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from cases import stored_image
from loopback_openai import (
    GREEDY,
    KEY,
    Answer,
    Start,
    ask,
    completion,
    echo,
    engine,
    failure,
    question,
    run,
)
from presentations import by_order

from medrm.chat import PROMPTS
from medrm.errors import ConfigError
from medrm.schema import Case
from medrm.scorer.engines.base import Request, Sampling, call_seed
from medrm.scorer.engines.openai_engine import OpenAIEngine
from medrm.scorer.readouts.pair_judge import Judge


def test_keeps_the_order_and_never_has_more_calls_under_way_than_allowed(
    start: Start, tmp_path: Path
) -> None:
    delays = random.Random(0)
    service = start(echo, delay=lambda _: delays.uniform(0, 0.05))
    requests = [ask(f"q{number}") for number in range(60)]
    found = run(service, tmp_path, *requests, concurrency=5)
    assert [each.text for each in found] == [f"re: q{number}" for number in range(60)]
    assert {(each.state, each.finish_reason) for each in found} == {("ok", "stop")}
    assert [each.prompt_digest for each in found] == [request.digest for request in requests]
    assert 2 <= service.most_at_once <= 5


def test_reads_requests_only_a_window_ahead(start: Start, tmp_path: Path) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Request]:
        while True:
            taken.append(1)
            yield ask(f"q{len(taken)}")

    replies = engine(start(echo), tmp_path, concurrency=2).complete(endless(), GREEDY)
    assert len(list(islice(replies, 10))) == 10
    replies.close()  # type: ignore[attr-defined]
    assert len(taken) < 20


def test_sends_what_the_service_documents(start: Start, tmp_path: Path) -> None:
    service = start(echo)
    sampling = Sampling(temperature=0.5, max_new_tokens=77, seed=3)
    prompt = PROMPTS["json"]
    judge = Judge(engine(service, tmp_path), prompt, ["overall"], sampling=sampling)
    by_order(judge, [Case("c", (stored_image(1),), "Q?", ("a", "b"))])
    body = next(body for body in service.bodies if "Answer A:\na\n" in question(body))
    assert body["model"] == "a-model"
    assert (body["temperature"], body["max_completion_tokens"]) == (0.5, 77)
    assert isinstance(body["seed"], int)
    assert body["messages"][0] == {"role": "system", "content": prompt.system}
    assert [part["type"] for part in body["messages"][1]["content"]] == ["image_url", "text"]
    assert service.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert service.headers[0]["Content-Type"] == "application/json"


def test_votes_are_drawn_with_seeds_of_their_own_and_kept_apart(
    start: Start, tmp_path: Path
) -> None:
    service = start(lambda body, number: completion(str(body["seed"])))
    votes = [ask("q", vote=vote) for vote in range(3)]
    for _ in range(2):
        assert [each.text for each in run(service, tmp_path, *votes)] == [
            str(call_seed(request, GREEDY)) for request in votes
        ]
    assert len(service.bodies) == 3


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_an_infrastructure_error_is_repeated(status: int, start: Start, tmp_path: Path) -> None:
    service = start(lambda body, n: failure(status) if n < 2 else completion("good"))
    (found,) = run(service, tmp_path, ask("q"))
    assert (found.state, found.text, len(service.bodies)) == ("ok", "good", 3)


@pytest.mark.parametrize(
    "content", [b"<html>", {"error": {"message": "busy"}}, [], {"choices": []}]
)
def test_what_is_no_completion_is_repeated(content: Any, start: Start, tmp_path: Path) -> None:
    service = start(lambda body, n: (200, content, {}) if n < 1 else completion("good"))
    (found,) = run(service, tmp_path, ask("q"))
    assert (found.state, found.text, len(service.bodies)) == ("ok", "good", 2)


def test_a_timeout_is_repeated(start: Start, tmp_path: Path) -> None:
    service = start(echo, delay=lambda number: 0.6 if number == 0 else 0.0)
    (found,) = run(service, tmp_path, ask("q"), timeout_s=0.3)
    assert (found.text, len(service.bodies)) == ("re: q", 2)


@pytest.mark.parametrize("dated", [False, True])
def test_waits_as_long_as_the_service_asks(dated: bool, start: Start, tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        when = email.utils.formatdate(time.time() + 2, usegmt=True) if dated else "1"
        return failure(429, Retry_After=when) if number == 0 else completion("good")

    begun = time.monotonic()
    (found,) = run(start(answer), tmp_path, ask("q"))
    assert found.text == "good"
    assert 0.9 <= time.monotonic() - begun < 4


def test_a_service_that_never_recovers_gives_an_error_that_is_not_kept(
    start: Start, tmp_path: Path
) -> None:
    service = start(lambda body, number: failure(500, "boom"))
    (found,) = run(service, tmp_path, ask("q"), attempts=3)
    assert (found.state, found.reason, found.text) == ("error", "HTTP 500: boom", None)
    assert len(service.bodies) == 3
    service.answer = echo
    (found,) = run(service, tmp_path, ask("q"))
    assert found.text == "re: q"


def test_a_service_that_was_never_reached_ends_the_run(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    unreachable = OpenAIEngine(
        "m", url, KEY, cache_dir=tmp_path, attempts=2, wait_s=0.01, concurrency=2
    )
    with pytest.raises(ConfigError, match="cannot be reached"):
        list(unreachable.complete([ask("q")], GREEDY))


@pytest.mark.parametrize(
    ("text", "finish", "refusal"),
    [("I cannot help with that.", "content_filter", None), (None, "stop", "I refuse.")],
)
def test_a_refusal_is_a_reply_and_asked_for_once(
    text: str | None, finish: str, refusal: str | None, start: Start, tmp_path: Path
) -> None:
    service = start(lambda body, number: completion(text, finish, refusal=refusal))
    for _ in range(2):
        (found,) = run(service, tmp_path, ask("q"))
        assert (found.state, found.text, found.finish_reason) == ("ok", text or refusal, finish)
    assert len(service.bodies) == 1


def test_an_empty_reply_is_neither_repeated_nor_kept(start: Start, tmp_path: Path) -> None:
    service = start(lambda body, number: completion("", "content_filter"))
    for _ in range(2):
        (found,) = run(service, tmp_path, ask("q"))
        assert (found.state, found.text, found.finish_reason) == ("ok", "", "content_filter")
    assert len(service.bodies) == 2


@pytest.mark.parametrize(
    ("status", "message", "state"),
    [
        (400, "This model's maximum context length is 8192 tokens. However", "too_long"),
        (400, "'max_completion_tokens' is too large: this model's context window", "too_long"),
        (400, "The decoder prompt (length 9) is longer than the maximum model length", "too_long"),
        (400, "prompt is too long: 213462 tokens > 200000 maximum", "too_long"),
        (400, "max_completion_tokens is not supported beyond the context length", "too_long"),
        (400, "Invalid image data", "error"),
        (400, "temperature must be between 0 and 1", "error"),
        (404, "no such model", "error"),
        (302, "elsewhere", "error"),
    ],
)
def test_other_refusals_of_the_service_are_final(
    status: int, message: str, state: str, start: Start, tmp_path: Path
) -> None:
    service = start(lambda body, number: failure(status, message))
    (found,) = run(service, tmp_path, ask("q"))
    assert (found.state, found.reason) == (state, f"HTTP {status}: {message}")
    assert len(service.bodies) == 1


@pytest.mark.parametrize(
    ("status", "message"), [(401, "bad"), (403, "no"), (429, "insufficient_quota")]
)
def test_a_key_that_cannot_work_ends_the_run(
    status: int, message: str, start: Start, tmp_path: Path
) -> None:
    service = start(lambda body, number: failure(status, f"{message} {KEY}"), lambda _: 0.2)
    with pytest.raises(ConfigError) as raised:
        run(service, tmp_path, *(ask(f"q{number}") for number in range(50)))
    assert KEY not in str(raised.value)
    assert len(service.bodies) <= 12  # of 16 that were read


@pytest.mark.parametrize("status", [401, 403])
def test_an_input_that_is_held_back_ends_no_run(status: int, start: Start, tmp_path: Path) -> None:
    service = start(lambda body, n: failure(status, "flagged") if n == 1 else echo(body, n))
    completions = run(service, tmp_path, *(ask(f"q{n}") for n in range(3)), concurrency=1)
    assert [completion.state for completion in completions] == ["ok", "error", "ok"]
    assert completions[1].reason == f"HTTP {status}: flagged"


def test_parameters_that_a_service_does_not_know_are_given_up_once(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(body: dict[str, Any], number: int) -> Answer:
        if "max_completion_tokens" in body:
            return failure(422, "extra field 'max_completion_tokens' not permitted")
        if "temperature" in body:
            return failure(400, "Unsupported value: 'temperature' does not support 0.0")
        return echo(body, number)

    service = start(answer)
    with caplog.at_level(logging.WARNING):
        found = run(service, tmp_path, *(ask(f"q{number}") for number in range(9)), concurrency=1)
    assert [each.text for each in found] == [f"re: q{number}" for number in range(9)]
    assert len(service.bodies) == 11
    assert service.bodies[-1]["max_tokens"] == 512
    assert "seed" in service.bodies[-1]
    assert [record.message.split(" refuses ")[1] for record in caplog.records] == [
        "max_completion_tokens; max_tokens is sent instead.",
        "temperature; the service's own is used.",
    ]


def test_the_key_is_nowhere(start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    service = start(lambda body, n: failure(500, KEY) if n == 0 else completion("good"))
    with caplog.at_level(logging.DEBUG):
        (failed,) = run(service, tmp_path, ask("p"), attempts=1)
        run(service, tmp_path, ask("q"))
    assert failed.reason == "HTTP 500: ***"
    assert KEY not in caplog.text
    (kept,) = tmp_path.rglob("*.json")
    assert KEY not in kept.read_text()


def test_the_environment_names_service_and_key(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start(echo)
    monkeypatch.setenv("OPENAI_BASE_URL", service.url + "/")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    list(OpenAIEngine("m", cache_dir=tmp_path / "a").complete([ask("q")], GREEDY))
    assert "Authorization" not in service.headers[-1]
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    list(OpenAIEngine("m", cache_dir=tmp_path / "b").complete([ask("q")], GREEDY))
    assert service.headers[-1]["Authorization"] == f"Bearer {KEY}"


def test_openai_itself_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY"):
        OpenAIEngine("m")
    OpenAIEngine("m", api_key=KEY)
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as raised:
        OpenAIEngine("m", api_key="sk-\u00e9")
    assert "\u00e9" not in str(raised.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://me:pw@host/v1"])
def test_an_address_that_cannot_work_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="OPENAI_BASE_URL") as raised:
        OpenAIEngine("m", url)
    assert "pw" not in str(raised.value).replace("password", "")

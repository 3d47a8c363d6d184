"""Every HTTP answer of a service has an outcome: it is asked again or recorded, never a crash."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from cases import make_case
from loopback_openai import Answer, Start, ask, completion, engine, failure, run

from medrm.chat import PROMPTS
from medrm.evaluation.records.jsonl import read_responses, write_rows
from medrm.parsers.thinking import UNENDED
from medrm.schema import DIMENSIONS, Response
from medrm.scorer.engines.base import Completion
from medrm.scorer.readouts.pair_judge import Judge
from medrm.scorer.verdict_rules import CUT_OFF, read_response

VERDICT = json.dumps(dict.fromkeys(DIMENSIONS, "A"))
BROKEN_UTF8 = '{"choices":[{"message":{"content":"好的"},"finish_reason":"stop"}]}'.encode("gbk")


def ok(content: Any, **headers: str) -> Answer:
    return 200, content, {name.replace("_", "-"): value for name, value in headers.items()}


def choices(*members: Any) -> Answer:
    return ok({"choices": list(members)})


FAILURES: dict[str, Answer] = {
    "529 without a word": (529, b"", {}),
    "500 with blanks": (500, b" \r\n\t ", {}),
    "500 in HTML": (500, b"<html>oops</html>", {}),
    "500 in no UTF-8": (500, b"\xff\xfe\n\xff", {"Content-Type": "text/plain; charset=odd"}),
    "503 with an error of another kind": (503, {"error": ["busy"]}, {"Retry-After": "nan"}),
    "500 whose error is half a pair": failure(500, "\ud83d"),
    "200 without a body": ok(b""),
    "204": (204, b"", {}),
    "200 in no JSON": ok(b"data: [DONE]"),
    "200 in no UTF-8": ok(BROKEN_UTF8),
    "200 nested deeply": ok(b"[" * 100_000),
    "200 with a list": ok([]),
    "200 with null": ok(b"null"),
    "200 with a number": ok(b"1e999"),
    "200 with an error": ok({"error": {"message": "busy", "code": 502}}),
    "no choices": choices(),
    "choices of another kind": ok({"choices": {"first": 1}}),
    "choices that are null": ok({"choices": None}),
    "a choice that is null": choices(None),
    "a message that is null": choices({"message": None}),
    "a message that is a text": choices({"message": "A"}),
    "content that is a number": completion(5),  # type: ignore[arg-type]
    "content that is an object": completion({"text": VERDICT}),  # type: ignore[arg-type]
    "a segment without text": completion([{"type": "text"}]),  # type: ignore[arg-type]
    "a segment that is null": completion([None]),  # type: ignore[arg-type]
    "a torn gzip": ok(gzip.compress(VERDICT.encode())[:-20], Content_Encoding="gzip"),
    "no gzip at all": ok(b"{}", Content_Encoding="gzip"),
    "a broken chunk": ok(b"zz\r\n{}", Transfer_Encoding="chunked"),
    "a torn chunk": ok(b"ff\r\n{}", Transfer_Encoding="chunked"),
    "a length that is none": ok(b"{}", Content_Length="many"),
    "a longer length": ok(b"{}", Content_Length="99", Connection="close"),
}
"""Answers that are no completion: asked again, and in the end recorded."""


@pytest.mark.parametrize("kind", FAILURES)
def test_what_is_no_completion_is_asked_again_and_recorded(
    kind: str, start: Start, tmp_path: Path
) -> None:
    service = start(lambda body, number: FAILURES[kind] if number < 2 else completion(VERDICT))
    again, once = (
        run(service, tmp_path, ask(text), attempts=attempts, timeout_s=1.0, concurrency=1)[0]
        for text, attempts in (("q", 1), ("p", 2))
    )
    assert (again.state, again.text) == ("error", None)
    assert again.reason
    assert recorded(again, tmp_path) == again
    assert (once.state, once.text, len(service.bodies)) == ("ok", VERDICT, 3)


@pytest.mark.parametrize("status", [300, 301, 304, 402, 418, 499])
def test_what_is_final_without_a_word_is_recorded(
    status: int, start: Start, tmp_path: Path
) -> None:
    service = start(lambda body, number: (status, b"", {}))
    (reply,) = run(service, tmp_path, ask("q"))
    assert (reply.state, len(service.bodies)) == ("error", 1)
    assert str(reply.reason).startswith(f"HTTP {status}: ")


def test_a_service_that_says_nothing_is_named(start: Start, tmp_path: Path) -> None:
    (reply,) = run(start(lambda body, number: (529, b"", {})), tmp_path, ask("q"), attempts=1)
    assert reply.reason == "HTTP 529: nothing said"


FINISH_REASONS = {
    "a text": ("eos_token", "eos_token"),
    "none": (None, None),
    "an object": ({"type": "stop"}, '{"type": "stop"}'),
    "a number": (7, "7"),
    "a list": (["stop"], '["stop"]'),
    "an empty text": ("", ""),
    "a long text": ("x" * 5000, "x" * 100),
    "half a pair": ("\ud83d", "?"),
}


@pytest.mark.parametrize("kind", FINISH_REASONS)
def test_a_finish_reason_may_be_anything(kind: str, start: Start, tmp_path: Path) -> None:
    stated, expected = FINISH_REASONS[kind]
    service = start(lambda body, number: completion(VERDICT, stated))  # type: ignore[arg-type]
    (reply,) = run(service, tmp_path, ask("q"))
    assert (reply.state, reply.text, reply.finish_reason) == ("ok", VERDICT, expected)
    assert recorded(reply, tmp_path) == reply
    assert run(service, tmp_path, ask("q")) == [reply]  # from the cache
    assert verdict(reply) == ("A", None)


CONTENTS: dict[str, tuple[Any, str]] = {
    "half a pair": (VERDICT + " \ud83d cut", VERDICT + " ? cut"),
    "NUL and an escape": (VERDICT + " \0\x1b[31m", VERDICT + " \0\x1b[31m"),
    "segments": (
        [{"type": "thinking", "thinking": [{"type": "text", "text": "B"}]}]
        + [{"type": "text", "text": part} for part in (VERDICT[:9], VERDICT[9:])],
        VERDICT,
    ),
    "very long": ("a {" * 300_000 + VERDICT, "a {" * 300_000 + VERDICT),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_odd_contents_are_recorded_and_read(kind: str, start: Start, tmp_path: Path) -> None:
    content, expected = CONTENTS[kind]
    (reply,) = run(start(lambda body, number: completion(content)), tmp_path, ask("q"))
    assert (reply.state, reply.text) == ("ok", expected)
    assert recorded(reply, tmp_path) == reply
    assert verdict(reply) == ("A", None)


def test_no_content_at_all_is_an_empty_reply(start: Start, tmp_path: Path) -> None:
    service = start(lambda body, number: completion(None, "content_filter"))
    (reply,) = run(service, tmp_path, ask("q"))
    assert (reply.state, reply.text, reply.finish_reason) == ("ok", "", "content_filter")
    assert verdict(reply) == ("unread", "empty reply")


THOUGHT = f"hmm </think> {VERDICT}"


@pytest.mark.parametrize(
    "message",
    [
        {"reasoning_content": THOUGHT},
        {"reasoning": THOUGHT},
        {"reasoning_details": [{"text": THOUGHT}]},
        {"content": [{"type": "thinking", "thinking": THOUGHT}]},
        {"content": "\n\n", "reasoning": THOUGHT},
    ],
    ids=str,
)
@pytest.mark.parametrize("finish_reason", ["length", "stop"])
def test_thinking_that_is_given_apart_is_never_the_verdict(
    message: dict[str, Any], finish_reason: str, start: Start, tmp_path: Path
) -> None:
    empty = {"content": "", **message}
    service = start(lambda body, number: completion(None, finish_reason, **empty))
    (reply,) = run(service, tmp_path, ask("q"))
    assert (reply.state, reply.finish_reason) == ("ok", finish_reason)
    assert VERDICT not in str(reply.text)
    reason = f"{CUT_OFF}: {UNENDED}" if finish_reason == "length" else UNENDED
    assert verdict(reply) == ("unread", reason)
    official = read_response(response_of(reply), DIMENSIONS, "official")
    assert {each.outcome for each in official.values()} == {"unread"}
    run(service, tmp_path, ask("q"))
    assert len(service.bodies) == 2  # no such reply is kept


def test_thinking_beside_a_reply_is_left_out(start: Start, tmp_path: Path) -> None:
    said = {"reasoning_content": VERDICT.replace("A", "B")}
    (reply,) = run(start(lambda body, n: completion(VERDICT, **said)), tmp_path, ask("q"))
    assert reply.text == VERDICT


@pytest.mark.parametrize(
    "finish_reason",
    ["length", "max_tokens", "MAX_TOKENS", "max_output_tokens", "model_length", "stop"],
)
def test_a_reply_that_ends_inside_its_thinking_is_unread(
    finish_reason: str, start: Start, tmp_path: Path
) -> None:
    thought = f"<unused94>thought\n{VERDICT} but wait, look again at"
    (reply,) = run(start(lambda body, n: completion(thought, finish_reason)), tmp_path, ask("q"))
    reason = UNENDED if finish_reason == "stop" else f"{CUT_OFF}: {UNENDED}"
    assert verdict(reply) == ("unread", reason)


USAGES: dict[str, tuple[Any, dict[str, int] | None]] = {
    "both": (
        {"prompt_tokens": 812, "completion_tokens": 40, "total_tokens": 852},
        {"prompt_tokens": 812, "completion_tokens": 40},
    ),
    "nothing": (None, None),
    "a list": ([812, 40], None),
    "a number": (852, None),
    "one kind": ({"prompt_tokens": 812}, None),
    "texts": ({"prompt_tokens": "812", "completion_tokens": "40"}, None),
    "truths": ({"prompt_tokens": True, "completion_tokens": True}, None),
    "fractions": ({"prompt_tokens": 1.5, "completion_tokens": 4.0}, None),
    "debts": ({"prompt_tokens": -1, "completion_tokens": 4}, None),
}


@pytest.mark.parametrize("kind", USAGES)
def test_usage_is_recorded_where_it_is_one(kind: str, start: Start, tmp_path: Path) -> None:
    stated, expected = USAGES[kind]

    def answer(body: dict[str, Any], number: int) -> Answer:
        status, content, headers = completion(VERDICT)
        return status, {**content, "usage": stated}, headers

    service = start(answer)
    (reply,) = run(service, tmp_path, ask("q"))
    assert (reply.state, reply.text, reply.usage) == ("ok", VERDICT, expected)
    assert recorded(reply, tmp_path) == reply
    assert run(service, tmp_path, ask("q")) == [reply]
    assert len(service.bodies) == 1


def test_one_odd_answer_costs_no_other_case_its_reply(start: Start, tmp_path: Path) -> None:
    odd = [FAILURES["529 without a word"], FAILURES["a torn gzip"], completion(VERDICT)]
    service = start(lambda body, number: odd[number % 3])
    judge = Judge(engine(service, tmp_path, attempts=1), PROMPTS["json"], DIMENSIONS)
    responses = list(judge.respond([make_case(number, sizes=()) for number in range(6)]))
    assert sorted(response.state for response in responses) == ["error"] * 8 + ["ok"] * 4


def response_of(reply: Completion) -> Response:
    return Response(
        *("q", "forward", None, 0, "generate", reply.prompt_digest, reply.text),
        finish_reason=reply.finish_reason,
        state=reply.state,
        reason=reply.reason,
        usage=reply.usage,
    )


def recorded(reply: Completion, folder: Path) -> Completion:
    """The reply as it is read again from `responses.jsonl`."""
    write_rows(folder / "responses.jsonl", [response_of(reply)])
    (line,) = read_responses(folder / "responses.jsonl")
    return Completion(
        *(line.text, line.finish_reason, line.state, line.reason, line.prompt_digest, line.usage)
    )


def verdict(reply: Completion) -> tuple[Any, str | None]:
    """What the strict parser makes of a reply, overall."""
    overall = read_response(response_of(reply), DIMENSIONS)["overall"]
    return overall.outcome, overall.reason

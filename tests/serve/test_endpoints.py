"""What the endpoints answer: the numbers of `score_cases`, for each case, and never another's."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from served import CLOSE, REWARD_MODEL, Serve, asked, columns, encoded, golden_cases

import medrm
from medrm.data.decoding import MAX_PIXELS
from medrm.schema import DIMENSIONS, Turn
from medrm.scorer.caller_cases import row_case
from medrm.serve.case_queue import SizedCase


def expected(model: Any, cases: Any) -> list[Any]:
    return [rewards for _, rewards in model.score_cases(cases)]


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_rewards_are_those_of_score_cases(client: TestClient, reward_model: Any) -> None:
    cases = golden_cases()
    body = {"cases": [asked(case, as_url=index % 2 == 0) for index, case in enumerate(cases)]}
    answer = client.post("/v1/score", json=body).json()
    assert answer["model"] == "a-model"
    assert answer["dimensions"] == list(DIMENSIONS)
    for result, case, rewards in zip(
        answer["results"], cases, expected(reward_model, cases), strict=True
    ):
        assert result["id"] == case.case_id
        assert result["error"] is None
        assert np.abs(columns(result["rewards"]) - rewards).max() < CLOSE
    some = {**body, "model": "a-model", "dimensions": ["overall", "accuracy"]}
    chosen = client.post("/v1/score", json=some).json()
    assert list(chosen["results"][0]["rewards"]) == chosen["dimensions"] == some["dimensions"]
    for name, column in chosen["results"][0]["rewards"].items():
        assert column == pytest.approx(answer["results"][0]["rewards"][name], abs=CLOSE)
    files = [("images", ("scan.png", image.read())) for image in cases[0].images]
    form = {"question": cases[0].question, "answers": list(cases[0].answers)}
    (uploaded,) = client.post("/v1/score/upload", data=form, files=files).json()["results"]
    rewards = expected(reward_model, cases[:1])[0]
    assert np.abs(columns(uploaded["rewards"]) - rewards).max() < CLOSE


def test_deterministic_rewards_are_equal_to_the_bit_whatever_else_is_asked(serve: Serve) -> None:
    exact = medrm.load(REWARD_MODEL, deterministic=True)
    cases = golden_cases()
    alone = expected(exact, cases)
    client, service = serve(exact)
    assert client.get("/health").json()["deterministic"] is True

    def ask(number: int) -> tuple[int, Any]:
        index = number % len(cases)
        answer = client.post("/v1/score", json={"cases": [asked(cases[index])]}).json()
        return index, columns(answer["results"][0]["rewards"])

    with ThreadPoolExecutor(8) as pool:
        for index, rewards in pool.map(ask, range(24)):
            assert np.array_equal(rewards, alone[index])
    told = service.metrics.exposition().decode()
    batches = next(line for line in told.splitlines() if line.startswith("medrm_batch_rows_count"))
    assert float(batches.split()[1]) < 24  # of several requests


def test_comparisons_are_those_of_the_model(
    serve: Serve, client: TestClient, reward_model: Any, judge: Any
) -> None:
    for model, service in ((reward_model, client), (judge, serve(judge)[0])):
        cases = golden_cases(3)
        answer = service.post("/v1/compare", json={"cases": list(map(asked, cases))}).json()
        for result, case in zip(answer["results"], cases, strict=True):
            verdicts = model.compare(case.images, case.question, case.answers)
            assert list(result["verdicts"]) == list(verdicts) == answer["dimensions"]
            for told, verdict in zip(result["verdicts"].values(), verdicts.values(), strict=True):
                assert (told["outcome"], told["reason"]) == (verdict.outcome, verdict.reason)
                if verdict.score_a is None:
                    assert told["scores"] is None
                else:
                    scores = [verdict.score_a, verdict.score_b]
                    assert told["scores"] == pytest.approx(scores, abs=CLOSE)
    files = [("images", ("scan.png", cases[0].images[0].read()))]
    form = {"question": cases[0].question, "answers": list(cases[0].answers)}
    uploaded = service.post("/v1/compare/upload", data=form, files=files).json()["results"]
    assert uploaded[0]["verdicts"] == answer["results"][0]["verdicts"]


def test_a_judge_gives_no_rewards_and_compares_two_answers(serve: Serve, judge: Any) -> None:
    client = serve(judge)[0]
    assert client.get("/health").json()["kind"] == "judge"
    case = asked(golden_cases(1)[0])
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant")]
    for path, body in (
        ("/v1/score", {"cases": [case]}),
        ("/classify", {"messages": turns}),
        ("/get_reward", {"query": ["ab"], "prompts": ["a"]}),
    ):
        answer = client.post(path, json=body)
        assert answer.status_code == 404
        assert "is a judge: it compares two answers" in answer.json()["error"]["message"]
    three = {**case, "answers": ["a", "b", "c"]}
    results = client.post("/v1/compare", json={"cases": [three, case]}).json()["results"]
    assert results[0] == {
        "id": case["id"],
        "verdicts": None,
        "error": "a judge compares two answers; 3 were given",
    }
    assert results[1]["error"] is None


def test_best_of_three_names_an_index(client: TestClient, reward_model: Any) -> None:
    case = asked(golden_cases(1)[0]) | {"answers": ["a", "b", "no lesion"]}
    verdicts = client.post("/v1/compare", json={"cases": [case]}).json()["results"][0]["verdicts"]
    rewards = reward_model.score(golden_cases(1)[0].images, case["question"], case["answers"])
    assert [told["outcome"] for told in verdicts.values()] == rewards.argmax(axis=0).tolist()
    assert verdicts["overall"]["scores"] == pytest.approx(rewards[:, -1].tolist(), abs=CLOSE)


def test_the_form_of_vllm(client: TestClient, reward_model: Any) -> None:
    case = golden_cases(1)[0]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in encoded(case)]
    parts.append({"type": "text", "text": case.question})
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": case.answers[0]},
    ]
    template = reward_model.contract.reward_template == "generation_prompt"
    body = {"model": "a-model", "messages": messages, "use_activation": False}
    body["add_generation_prompt"] = template
    answer = client.post("/classify", json=body).json()
    rewards = expected(reward_model, [case])[0][0]
    (classified,) = answer["data"]
    assert answer["object"] == "list"
    assert answer["dimensions"] == list(DIMENSIONS)
    assert classified["probs"] == pytest.approx(rewards.tolist(), abs=CLOSE)
    assert classified["num_classes"] == len(DIMENSIONS)
    assert classified["label"] == DIMENSIONS[int(rewards.argmax())]
    tokens = reward_model._runner.collator.rows([case])["attention_mask"].sum(dim=1)[0].item()
    assert answer["usage"] == {
        "prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0
    }  # fmt: skip
    active = client.post("/classify", json={**body, "use_activation": True, "model": None}).json()
    sigmoids = [1 / (1 + math.exp(-reward)) for reward in rewards.tolist()]
    assert active["data"][0]["probs"] == pytest.approx(sigmoids, abs=CLOSE)
    last = client.post("/classify", json={**body, "dimensions": ["overall"]}).json()["data"][0]
    assert last["probs"] == pytest.approx([rewards[-1]], abs=CLOSE)
    other = client.post("/classify", json={**body, "add_generation_prompt": not template})
    assert other.status_code == 422
    assert "was trained with add_generation_prompt" in other.json()["error"]["message"]
    earlier = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [parts[0], {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A scan."},
    ]
    longer = [*earlier, {"role": "user", "content": "Is it clear?"}, messages[1]]
    told = client.post("/classify", json={**body, "messages": longer}).json()
    turns = (Turn("system", "Be brief.", 0), Turn("user", "What is it?", 1))
    turns += (Turn("assistant", "A scan.", 0),)
    asked_after = dataclasses.replace(case, question="Is it clear?", context=turns)
    ((_, rewards_after),) = reward_model.score_cases([asked_after])
    assert told["data"][0]["probs"] == pytest.approx(rewards_after[0].tolist(), abs=CLOSE)
    assert told["usage"]["prompt_tokens"] > tokens
    for wrong in (longer[:-1], [*longer[:3], longer[-1]]):
        refused = client.post("/classify", json={**body, "messages": wrong})
        assert refused.status_code == 422
        assert "The messages end in" in refused.json()["error"]["message"]
    parts[0]["image_url"]["url"] = "https://example.org/scan.png"
    fetched = client.post("/classify", json=body)
    assert fetched.status_code == 422
    assert "addresses and paths are not followed" in fetched.json()["error"]["message"]
    rendered = client.post("/classify", json={"model": "a-model", "input": "<|im_start|>user"})
    assert "body.input: Extra inputs are not permitted" in rendered.json()["error"]["message"]


def test_the_form_of_openrlhf(client: TestClient, reward_model: Any) -> None:
    cases = golden_cases(3)
    rewards = expected(reward_model, cases)
    prompts = [f"<|im_start|>user\n{case.question}<|im_end|>\n" for case in cases]
    ends = ("<|im_end|>", "<|im_end|>\n" * 5000, "")
    body: dict[str, Any] = {
        "query": [
            prompt + case.answers[0] + end
            for prompt, case, end in zip(prompts, cases, ends, strict=True)
        ],
        "prompts": prompts,
        "labels": [case.question for case in cases],
        "images": list(map(encoded, cases)),
    }
    answer = client.post("/get_reward?question_in=labels", json=body).json()
    overall = [float(one[0, -1]) for one in rewards]
    assert answer["rewards"] == pytest.approx(overall, abs=CLOSE)
    assert answer["scores"] == pytest.approx(
        [1 / (1 + math.exp(-one)) for one in overall], abs=CLOSE
    )
    accuracy = [float(one[0, 0]) for one in rewards]
    assert answer["extra_logs"]["accuracy"] == pytest.approx(accuracy, abs=CLOSE)
    named = client.post("/get_reward?question_in=labels&dimension=accuracy", json=body).json()
    assert named["rewards"] == named["extra_logs"]["accuracy"]
    plain = {"query": ["Is it? Yes."], "prompts": ["Is it?"], "labels": [None]}
    told = client.post("/get_reward", json=plain).json()["rewards"]
    assert told == pytest.approx([reward_model.score([], "Is it?", [" Yes."])[0, -1]], abs=CLOSE)
    body["images"][1] = ["iVBORw0KGgo="]
    for changed, problem in (
        (body, "query 1: Image 'number 0' cannot be decoded"),
        ({**plain, "prompts": ["Was it?"]}, "Query 0 does not start with its prompt"),
        ({**plain, "prompts": ["a", "b"]}, "1 queries and 2 prompts"),
        ({**plain, "images": []}, "1 queries and 0 images"),
    ):
        refused = client.post("/get_reward", json=changed)
        assert refused.status_code == 422
        assert problem in refused.json()["error"]["message"]
    labels = client.post("/get_reward?question_in=labels", json=plain).json()
    assert "its question is no text" in labels["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/score/upload", "/v1/compare/upload"])
def test_another_field_of_a_form_is_refused(client: TestClient, path: str) -> None:
    form = {"question": "?", "answers": ["a", "b"]}
    answer = client.post(path, data=form | {"dimension": "overall"}, files={"a": b"b"})
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert "body.dimension: Extra inputs are not permitted" in message
    assert "body.a: Extra inputs are not permitted" in message
    files = {"images": b""}
    other = client.post(path, data=form | {"model": "another"}, files=files)
    assert other.status_code == 404
    named = client.post(path, data=form | {"dimensions": ["overall"]}, files=files).json()
    assert named["dimensions"] == ["overall"]


@pytest.mark.parametrize("path", ["/v1/score", "/v1/compare", "/classify", "/get_reward"])
def test_another_model_or_dimension_is_refused(client: TestClient, path: str) -> None:
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant")]
    bodies: dict[str, dict[str, Any]] = {
        "/classify": {"messages": turns},
        "/get_reward": {"query": ["ab"], "prompts": ["a"]},
    }
    body = bodies.get(path, {"cases": [{"question": "?", "answers": ["a", "b"]}]})
    in_query = path == "/get_reward"
    for key, value, told in (
        ("model", "another", "No model 'another' is loaded here, but a-model."),
        ("dimension", "accurracy", "no dimension 'accurracy'. Did you mean 'accuracy'?"),
    ):
        if in_query:
            answer = client.post(f"{path}?{key}={value}", json=body)
        else:
            change = {key: value} if key == "model" else {"dimensions": ["overall", value]}
            answer = client.post(path, json=body | change)
        assert answer.status_code == 404
        assert told in answer.json()["error"]["message"]
    extra = client.post(path, json=body | {"adapter": "another"})
    assert extra.status_code == 422
    assert "body.adapter: Extra inputs are not permitted" in extra.json()["error"]["message"]


def test_what_cannot_be_scored_has_an_error_and_harms_no_other(
    client: TestClient, reward_model: Any, tmp_path: Path
) -> None:
    case = golden_cases(1)[0]
    good = asked(case)
    (tmp_path / "there.png").write_bytes(case.images[0].read())
    stored = case.images[0].read()
    images = {
        "http://127.0.0.1:1/scan.png": "addresses and paths are not followed",
        str(tmp_path / "there.png"): "addresses and paths are not followed",
        "file:///etc/passwd": "addresses and paths are not followed",
        "data:image/png;base64,%%%": "neither a data URL",
        "data:image/png,abc": "neither a data URL",
        "aGVsbG8=": "cannot be decoded (no known format)",
    }
    changes: list[tuple[dict[str, Any], str]] = [
        ({"images": [image]}, problem) for image, problem in images.items()
    ]
    limit = reward_model.contract.max_length
    changes += [
        ({"images": [data(stored[: len(stored) // 2])]}, "cannot be decoded"),
        ({"images": [data(png(9000, 9000))]}, f"at most {MAX_PIXELS} are accepted"),
        ({"images": [data(png(6000, 6000))] * 2}, f"pixels together; at most {MAX_PIXELS}"),
        ({"images": [data(png(1000, 2))]}, "one side may be less than"),
        ({"context": [{"role": "user", "text": "Why?"}]}, "its turns do not alternate"),
        ({"answers": ["a", "lesion " * 5000]}, f"more than {limit} tokens, the model's limit"),
    ]
    cases = [good]
    for change, _ in changes:
        cases += [good | change, good]
    answer = client.post("/v1/score", json={"cases": cases})
    assert answer.status_code == 200
    results = answer.json()["results"]
    alone = expected(reward_model, [case])[0]
    for result in results[::2]:
        assert np.abs(columns(result["rewards"]) - alone).max() < CLOSE
    for result, (_, problem) in zip(results[1::2], changes, strict=True):
        assert result["rewards"] is None
        assert problem in result["error"]


def data(stored: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(stored).decode()}"


def test_an_exception_is_no_score_and_costs_the_others_nothing(
    serve: Serve, reward_model: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    client, service = serve(reward_model, batch_wait_ms=1000)
    respond, seen = reward_model.respond, []

    def failing(cases: Any) -> Any:
        cases = list(cases)
        seen.append(len(cases))
        if any("boom" in case.question for case in cases):
            raise RuntimeError("the text of a patient")
        for response in respond(cases):
            if "infinite" in cases[0].question:
                object.__setattr__(response, "rewards", {"overall": (1.0, math.nan)})
            yield response

    monkeypatch.setattr(reward_model, "respond", failing)
    good = {"question": "Is it?", "answers": ["yes"]}

    def ask(question: str) -> Any:
        answer = client.post("/v1/score", json={"cases": [good | {"question": question}]})
        return answer.json()["results"][0]

    with ThreadPoolExecutor(4) as pool:
        first, failed, second = pool.map(ask, ("Is it?", "boom", "Is it?"))
    assert max(seen) > 1
    assert failed["rewards"] is None
    assert failed["error"] == "the model failed on it (RuntimeError)"
    assert first["rewards"] == second["rewards"]
    assert first["error"] is None
    assert client.get("/health").status_code == 200
    assert ask("infinite")["error"] == "the model gave a reward that is no finite number"
    assert ask("boom")["error"] == failed["error"]
    assert client.get("/health").json()["status"] == "failing"  # nothing that it was asked worked
    assert ask("Is it?")["error"] is None
    assert client.get("/health").status_code == 200
    assert service.queue.is_alive


def test_a_full_queue_says_when_to_come_again(
    serve: Serve, reward_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, service = serve(reward_model, queue_rows=4, evaluation_batch_rows=2, batch_wait_ms=0)
    entered, go_on, respond = threading.Event(), threading.Event(), reward_model.respond

    def held(cases: Any) -> Any:
        entered.set()
        assert go_on.wait(60)
        return respond(cases)

    monkeypatch.setattr(reward_model, "respond", held)
    body = {"cases": [{"question": "Is it?", "answers": ["a", "b"]}]}
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(client.post, "/v1/score", json=body)
        assert entered.wait(60)
        waiting = [pool.submit(client.post, "/v1/score", json=body) for _ in range(2)]
        while service.metrics.exposition().decode().count("medrm_waiting_rows 4.0") == 0:
            pass
        full = client.post("/v1/score", json=body)
        go_on.set()
        assert full.status_code == 429
        assert int(full.headers["Retry-After"]) >= 1
        assert {one.result().status_code for one in (first, *waiting)} == {200}
    # Whoever goes away makes room at once, not when the model comes to it.
    entered.clear()
    go_on.clear()
    case = row_case({"question": "Is it?", "answers": ["a", "b"], "images": []}, 1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/v1/score", json=body)
        assert entered.wait(60)
        gone, here = service.queue.submit([SizedCase(case, 0)] * 2)
        assert client.post("/v1/score", json=body).status_code == 429
        assert gone.cancel()
        assert "medrm_waiting_rows 2.0" in service.metrics.exposition().decode()
        last = pool.submit(client.post, "/v1/score", json=body)
        while "medrm_waiting_rows 4.0" not in service.metrics.exposition().decode():
            pass
        go_on.set()
        assert {one.result().status_code for one in (first, last)} == {200}
        assert here.result(60).responses[0].rewards
    assert "medrm_waiting_rows 0.0" in service.metrics.exposition().decode()
    never = client.post("/v1/score", json={"cases": body["cases"] * 3})
    assert never.status_code == 413
    assert "More than 4 answers in one request" in never.json()["error"]["message"]

"""Replies of the transformers engine against `generate` on one whole prompt at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from presentations import by_order
from quick import quick
from scorer.cases import broken_image, make_case, stored_image
from tiny import SOME_FAMILIES, make_tiny

from medrm import chat_template
from medrm.chat import PROMPTS, JudgePrompt
from medrm.config.options import AdapterOptions, JudgeOptions, ModelOptions
from medrm.models.adapter_config import new_adapter_config
from medrm.models.prefix_sharing.kv_cache import disable_shared_cache
from medrm.models.trainable import add_adapter
from medrm.schema import Case
from medrm.scorer import runner as batches
from medrm.scorer.collator import Collator, Row
from medrm.scorer.engines.base import Completion, Request, Sampling, text_digest
from medrm.scorer.engines.transformers_engine import TransformersEngine, stop_tokens
from medrm.scorer.open import LoadedModel, open_scorer
from medrm.scorer.readouts.pair_judge import Judge
from medrm.scorer.specs import judge_spec

DIMENSIONS = ("accuracy", "overall")
SHORT = Sampling(max_new_tokens=12)
WARM = Sampling(temperature=1.0, max_new_tokens=12, seed=7)


def talkative(family: str, seed: int = 0, *, shared_prefix: bool = True) -> tuple[Any, Any]:
    """A tiny model with larger weights, whose replies differ from case to case."""
    model, processor = make_tiny(family, seed, shared_prefix=shared_prefix)
    decoder = model.get_submodule(
        "model.text_model" if family in ("idefics3", "smolvlm") else "model.language_model"
    )
    for parameter in decoder.layers.parameters():
        parameter.data *= 12 if parameter.ndim == 2 else 1
    return model, processor


def requests_of(
    cases: list[Case], prompt: JudgePrompt = PROMPTS["json_per_dimension"], votes: int = 1
) -> list[Request]:
    """The calls of a judge: for each case both orders, all dimensions, all votes."""
    requests = []
    for case in cases:
        for order in ("forward", "reversed"):
            shown = case.answers if order == "forward" else case.answers[::-1]
            for name in prompt.dimensions_per_call(DIMENSIONS):
                names = DIMENSIONS if name is None else (name,)
                messages = prompt.messages(case.question, len(case.images), shown, names)
                requests += [
                    Request(case, order, name, vote, messages, names) for vote in range(votes)
                ]
    return requests


def mixed_cases() -> list[Case]:
    return [
        make_case(0),
        make_case(1, sizes=((28, 28),)),
        make_case(2, sizes=()),
        make_case(3, sizes=((28, 28), (90, 60))),
    ]


def stock_reply(model: Any, processor: Any, request: Request, most: int) -> tuple[str, list[int]]:
    """Returns what `generate` alone says to one prompt, greedily."""
    text = chat_template.render(processor, request.messages, "generation_prompt")
    batch = Collator(processor).encode([Row(text, request.case.images)])
    stops = sorted(stop_tokens(model, processor))
    with torch.inference_mode():
        written = model.generate(
            **batch, max_new_tokens=most, do_sample=False, eos_token_id=stops, pad_token_id=stops[0]
        )
    ids = written[0, batch["input_ids"].shape[1] :].tolist()
    return processor.tokenizer.decode(ids, skip_special_tokens=True), ids


@pytest.mark.parametrize("family", SOME_FAMILIES)
@pytest.mark.parametrize("shared_prefix", [True, False])
def test_greedy_replies_are_those_of_generate(family: str, shared_prefix: bool) -> None:
    model, processor = talkative(family, shared_prefix=shared_prefix)
    requests = requests_of(mixed_cases())
    engine = TransformersEngine(model, processor)
    replies = list(engine.complete(requests, SHORT))
    assert len({reply.text for reply in replies}) > len(requests) // 2
    for request, reply in zip(requests, replies, strict=True):
        text, ids = stock_reply(model, processor, request, SHORT.max_new_tokens)
        assert reply.text == text
        ended = ids[-1] in stop_tokens(model, processor)
        assert reply.finish_reason == ("stop" if ended else "length")
        assert reply.state == "ok"
        sent = chat_template.render(processor, request.messages, "generation_prompt")
        assert reply.prompt_digest == text_digest([Row(sent, request.case.images)])


def test_settings_say_how_prompts_were_read() -> None:
    model, processor = talkative("llava")
    assert TransformersEngine(model, processor).settings["shared_prefix"]
    disable_shared_cache(model)
    assert not TransformersEngine(model, processor).settings["shared_prefix"]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "mllama"])
def test_adapter_writes_with_its_model(family: str) -> None:
    stock, processor = talkative(family)
    requests = requests_of(mixed_cases())
    without = list(TransformersEngine(stock, processor).complete(requests, SHORT))
    model = add_adapter(stock, AdapterOptions(lora_r=4)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.3
    replies = list(TransformersEngine(model, processor).complete(requests, SHORT))
    assert replies != without
    for request, reply in zip(requests, replies, strict=True):
        assert reply.text == stock_reply(model, processor, request, SHORT.max_new_tokens)[0]


@pytest.mark.parametrize(
    "family", quick("gemma3", of=["qwen2_5_vl", "smolvlm", "gemma3", "mllama"])
)
@pytest.mark.parametrize("sampling", [SHORT, WARM], ids=["greedy", "sampled"])
def test_company_changes_nothing(family: str, sampling: Sampling) -> None:
    model, processor = talkative(family, seed=1)
    requests = requests_of(mixed_cases(), votes=2)
    alone = list(TransformersEngine(model, processor, batch_rows=1).complete(requests, sampling))
    for rows in (3, 64):
        engine = TransformersEngine(model, processor, batch_rows=rows)
        assert list(engine.complete(requests, sampling)) == alone
    backwards = TransformersEngine(model, processor).complete(requests[::-1], sampling)
    assert list(backwards)[::-1] == alone


def test_both_paths_draw_the_same() -> None:
    requests = requests_of(mixed_cases(), votes=3)
    shared, whole = (
        list(
            TransformersEngine(*talkative("qwen2_5_vl", shared_prefix=shared_prefix)).complete(
                requests, WARM
            )
        )
        for shared_prefix in (True, False)
    )
    assert shared == whole


def test_votes_differ_and_repeat_by_seed() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    engine = TransformersEngine(model, processor)
    requests = requests_of([make_case(0)], votes=4)
    first, again = (list(engine.complete(requests, WARM)) for _ in range(2))
    assert first == again
    assert len({reply.text for reply in first}) == len(requests)
    other = list(engine.complete(requests, dataclasses.replace(WARM, seed=8)))
    assert all(a.text != b.text for a, b in zip(first, other, strict=True))
    greedy = list(engine.complete(requests, SHORT))
    assert greedy[0] == greedy[1]


def test_first_token_is_drawn_by_its_probability() -> None:
    """A tenth of the mass is on one token: 400 votes name it about 40 times (5 sigma: 10 to 70)."""
    model, processor = make_tiny("qwen2_5_vl")
    (request,) = requests_of([make_case(0, sizes=())])[:1]
    text = chat_template.render(processor, request.messages, "generation_prompt")
    batch = Collator(processor).encode([Row(text, ())])
    with torch.inference_mode():
        logits = model(**batch).logits[0, -1] / 0.5
    token = processor.tokenizer(" lungs")["input_ids"][-1]
    others = torch.cat([logits[:token], logits[token + 1 :]]).logsumexp(dim=0)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.text_config.vocab_size))
    model.lm_head.bias.data[token] = 0.5 * (others - logits[token] - torch.tensor(9.0).log())
    votes = [dataclasses.replace(request, vote=vote) for vote in range(400)]
    engine = TransformersEngine(model, processor, batch_rows=128)
    replies = engine.complete(votes, Sampling(temperature=0.5, max_new_tokens=1))
    named = sum(reply.text == processor.tokenizer.decode([token]) for reply in replies)
    assert 10 <= named <= 70


def test_replies_end_where_the_template_ends_a_turn() -> None:
    """Gemma's tokenizer names another end than its chat template."""
    model, processor = make_tiny("gemma3")
    turn_end = processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert stop_tokens(model, processor) == {processor.tokenizer.eos_token_id, turn_end}
    model.generation_config.eos_token_id = [3, 9]
    assert {3, 9, turn_end} <= stop_tokens(model, processor)
    requests = requests_of([make_case(0)])
    hook = model.lm_head.register_forward_hook(
        lambda _module, _inputs, logits: logits.index_fill(-1, torch.tensor([turn_end]), 1e4)
    )
    replies = list(TransformersEngine(model, processor).complete(requests, SHORT))
    hook.remove()
    assert {(reply.text, reply.finish_reason) for reply in replies} == {("", "stop")}


def test_checkpoints_own_sampling_is_ignored() -> None:
    model, processor = talkative("gemma3")
    requests = requests_of(mixed_cases())
    expected = list(TransformersEngine(model, processor).complete(requests, SHORT))
    model.generation_config.update(
        do_sample=True, temperature=0.3, top_k=1, repetition_penalty=5.0, max_length=4
    )
    assert list(TransformersEngine(model, processor).complete(requests, SHORT)) == expected


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_calls_that_were_not_made_say_why(family: str) -> None:
    model, processor = make_tiny(family)
    long = dataclasses.replace(make_case(9), answers=("short", "lungs " * 900))
    broken = dataclasses.replace(make_case(8), images=(stored_image(1), broken_image()))
    cases = [make_case(0), long, broken, make_case(2)]
    requests = requests_of(cases)
    engine = TransformersEngine(model, processor, max_length=1000)
    replies = list(engine.complete(requests, SHORT))
    states = [state for state in ("ok", "too_long", "bad_image", "ok") for _ in range(4)]
    assert [reply.state for reply in replies] == states
    assert all((reply.text is None) == (reply.state != "ok") for reply in replies)
    assert all(reply.prompt_digest for reply in replies)
    alone = TransformersEngine(model, processor).complete(requests[-4:], SHORT)
    assert list(alone) == replies[-4:]


def test_requests_are_read_a_window_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "LOOKAHEAD_PER_ROW", 1)
    model, processor = make_tiny("qwen2_5_vl")
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        while True:
            taken += 1
            yield from requests_of([make_case(50 - taken, sizes=())])

    replies = TransformersEngine(model, processor, batch_rows=4).complete(endless(), SHORT)
    names: list[Completion] = [next(replies) for _ in range(16)]
    assert len({reply.prompt_digest for reply in names}) == 16
    assert taken == 4


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_tokens_are_counted_with_images_and_the_end(shared_prefix: bool) -> None:
    model, processor = talkative("qwen2_5_vl", shared_prefix=shared_prefix)
    requests = requests_of(mixed_cases(), votes=2)
    replies = TransformersEngine(model, processor).complete(requests, SHORT)
    for request, reply in zip(requests, replies, strict=True):
        text = chat_template.render(processor, request.messages, "generation_prompt")
        batch = Collator(processor).encode([Row(text, request.case.images)])
        _, ids = stock_reply(model, processor, request, SHORT.max_new_tokens)
        assert reply.usage == {
            "prompt_tokens": batch["input_ids"].shape[1],
            "completion_tokens": len(ids),
        }


def test_a_thinking_that_the_template_opens_begins_the_text() -> None:
    model, processor = talkative("qwen2_5_vl")
    requests = requests_of([make_case(2, sizes=())], PROMPTS["json"])
    opening = "<|im_start|>assistant\n"
    template = str(processor.chat_template)
    assert template.count(opening) == 1
    processor.chat_template = template.replace(opening, f"{opening}<think>\n")
    texts = {
        thinks: [
            reply.text
            for reply in TransformersEngine(model, processor, thinks=thinks).complete(
                requests, SHORT
            )
        ]
        for thinks in (True, False)
    }
    assert texts[True] == [f"<think>{text}" for text in texts[False]]
    # A judge that medrm trained replies with its verdict at once, whatever stands before it.
    short = JudgeOptions(max_new_tokens=4)
    contract = new_adapter_config(model, processor, ModelOptions(), "judge_sft", "generate")
    contract = dataclasses.replace(contract, dimensions=DIMENSIONS, judge=judge_spec(short))
    for saved, begins in ((contract, False), (None, True)):
        judge = open_scorer(LoadedModel(model, processor, saved), "generate", judge=short)
        responses = list(judge.respond([make_case(2, sizes=())]))
        assert {str(response.text).startswith("<think>") for response in responses} == {begins}


def test_marks_of_thinking_stay_and_other_special_tokens_go() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    marks = {"additional_special_tokens": ["[THINK]", "[/THINK]", "<|channel|>"]}
    processor.tokenizer.add_special_tokens(marks)
    engine = TransformersEngine(model, processor)
    ids = processor.tokenizer("[THINK]a[/THINK]<|im_start|>b<|channel|>")["input_ids"]
    assert engine._completion(5, ids, "").text == "[THINK]a[/THINK]b<|channel|>"


def test_a_judge_asks_it() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    engine = TransformersEngine(model, processor)
    assert engine.plain("a <|im_end|> b") == "a < |im_end|> b"
    case = dataclasses.replace(make_case(0), answers=("<|im_end|>", "<|image_pad|>"))
    judge = Judge(engine, PROMPTS["json"], DIMENSIONS, sampling=SHORT)
    forward, backward = by_order(judge, [case])
    assert [one.state for one in (*forward.responses, *backward.responses)] == ["ok", "ok"]

"""The implicit reward against DPO's definition, token by token."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from presentations import by_order
from scorer.cases import broken_image, make_case, stored_image
from tiny import SOME_FAMILIES, make_tiny
from torch.nn.functional import log_softmax

from medrm import chat, chat_template
from medrm.config.options import AdapterOptions, ModelOptions
from medrm.errors import AdapterError, DataError
from medrm.models.adapter_config import AdapterConfig, new_adapter_config
from medrm.models.trainable import add_adapter
from medrm.objectives.judge.judge_collator import ConversationRenderer
from medrm.schema import Case
from medrm.scorer.collator import Collator, Row
from medrm.scorer.readouts.answer_rewards import ImplicitReward

BETA = 0.3


def contract_of(model: Any, processor: Any, **changes: Any) -> AdapterConfig:
    options = ModelOptions(model_name_or_path="phantom-base")
    contract = new_adapter_config(
        model, processor, options, "judge_dpo", "implicit_reward", ("overall",)
    )
    return dataclasses.replace(contract, implicit_beta=BETA, **changes)


def make_scorer(family: str, trained: bool = True, rows: int = 32, **changes: Any) -> Any:
    model, processor = make_tiny(family)
    model = add_adapter(model, AdapterOptions(lora_r=4))
    if trained:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                parameter.data += 0.3 * noise
    contract = contract_of(model, processor, **changes)
    return ImplicitReward(model.eval(), processor, contract, rows)


def mixed_cases() -> list[Case]:
    return [
        make_case(0),
        make_case(1, answers=3, sizes=((28, 28), (40, 90))),
        make_case(2, sizes=()),
        dataclasses.replace(make_case(4), answers=("", "one")),
    ]


def answer_log_probability(scorer: Any, case: Case, answer: str) -> float:
    """Returns log p of what follows the prompt, up to the end of the turn, by the whole model."""
    messages = chat.answer_messages(case.question, len(case.images), answer)
    collator = Collator(scorer.processor)
    whole, opened = (
        collator.encode([Row(text, case.images)])
        for text in (
            chat_template.render(scorer.processor, messages, "turn_end"),
            chat_template.render(scorer.processor, messages[:1], "generation_prompt"),
        )
    )
    ids, start = whole["input_ids"][0], opened["input_ids"].shape[1]
    with torch.inference_mode():
        logits = scorer.model(**whole, use_cache=False).logits[0]
    found = log_softmax(logits.double(), dim=-1)
    # The last token is the new line behind the end of the turn, in all tiny templates.
    places = range(start, len(ids) - 1)
    assert scorer.processor.tokenizer.added_tokens_decoder[int(ids[places[-1]])].special
    return sum(found[place - 1, ids[place]].item() for place in places)


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_reward_is_dpos(family: str) -> None:
    scorer = make_scorer(family)
    for case, rewards in scorer.score_cases(mixed_cases()):
        assert rewards.shape == (len(case.answers), 1)
        for answer, reward in zip(case.answers, rewards[:, 0], strict=True):
            adapted = answer_log_probability(scorer, case, answer)
            with scorer.model.disable_adapter():
                base = answer_log_probability(scorer, case, answer)
            assert reward == pytest.approx(BETA * (adapted - base), abs=1e-5)
            assert abs(reward) > 1e-4


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava", "gemma3", "smolvlm"])
def test_tokens_are_those_that_dpo_trains_on(family: str) -> None:
    scorer = make_scorer(family)
    renderer = ConversationRenderer.of(Collator(scorer.processor))
    case = make_case(0)
    features, learned = renderer.encode([renderer.answer(case, place) for place in range(2)])

    def log_probabilities() -> torch.Tensor:
        with torch.inference_mode():
            found = log_softmax(scorer.model(**features).logits.double(), dim=-1)
        next_ids = features["input_ids"][:, 1:, None]
        return (found[:, :-1].gather(2, next_ids)[..., 0] * learned[:, 1:]).sum(dim=1)

    adapted = log_probabilities()
    with scorer.model.disable_adapter():
        base = log_probabilities()
    ((_, rewards),) = scorer.score_cases([case])
    assert np.abs(rewards[:, 0] - (BETA * (adapted - base)).numpy()).max() <= 1e-5


def test_fresh_adapter_prefers_nothing() -> None:
    scorer = make_scorer("qwen2_5_vl", trained=False)
    for _, rewards in scorer.score_cases(mixed_cases()):
        assert np.array_equal(rewards, np.zeros_like(rewards))
    assert scorer.compare([], "What?", ["one", "two"])["overall"].outcome == "tie"


@pytest.mark.parametrize("family", ["qwen2_5_vl", "mllama"])
def test_company_changes_nothing(family: str) -> None:
    cases = mixed_cases()
    alone, together = (
        [rewards for _, rewards in make_scorer(family, rows=rows).score_cases(cases)]
        for rows in (1, 32)
    )
    for first, second in zip(alone, together, strict=True):
        assert np.abs(first - second).max() <= 1e-5


def test_scoring_leaves_the_adapter_on() -> None:
    scorer = make_scorer("qwen2_5_vl")
    first = scorer.score([stored_image(1)], "What?", ["one", "two lungs"])
    assert np.array_equal(first, scorer.score([stored_image(1)], "What?", ["one", "two lungs"]))
    verdict = scorer.compare([stored_image(1)], "What?", ["one", "two lungs"])["overall"]
    assert verdict.outcome == "AB"[first[:, 0].argmax()]
    assert scorer.dimensions == ("overall",)


def test_turn_without_an_end_gets_the_tokenizers() -> None:
    """DPO trains such a model to write it, as generation stops there."""
    scorer = make_scorer("llava")
    scorer.processor.chat_template = scorer.processor.chat_template.replace("<|im_end|>\n", " ")
    bare = ImplicitReward(scorer.model, scorer.processor, scorer.contract)
    ((case, rewards),) = bare.score_cases(
        [dataclasses.replace(make_case(0), answers=("one", "two"))]
    )
    opened = chat.answer_messages(case.question, 1, "one")[:1]
    text = chat_template.render(scorer.processor, opened, "generation_prompt") + "one<|im_end|>"
    batch = Collator(scorer.processor).encode([Row(text, case.images)])
    ids = batch["input_ids"][0]
    count = len(scorer.processor.tokenizer("one<|im_end|>")["input_ids"])

    def log_probability() -> float:
        with torch.inference_mode():
            found = log_softmax(scorer.model(**batch).logits[0].double(), dim=-1)
        places = range(len(ids) - count, len(ids))
        return sum(found[place - 1, ids[place]].item() for place in places)

    adapted = log_probability()
    with scorer.model.disable_adapter():
        base = log_probability()
    assert rewards[0, 0] == pytest.approx(BETA * (adapted - base), abs=1e-5)


def test_bad_cases_keep_their_place_and_reason() -> None:
    scorer = make_scorer("qwen2_5_vl", max_length=60)
    long = dataclasses.replace(make_case(9), answers=("short", "lungs " * 60))
    broken = dataclasses.replace(make_case(8), images=(stored_image(1), broken_image()))
    scored = by_order(scorer, [make_case(0), long, broken])
    assert [one.reason for one in scored] == [None, "too_long", "bad_image"]
    with pytest.raises(DataError, match=r"case-9.*more than 60 tokens, the model's limit"):
        list(scorer.score_cases([long]))


def test_needs_an_adapter_and_a_beta() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    contract = contract_of(model, processor)
    with pytest.raises(AdapterError, match="needs an adapter"):
        ImplicitReward(model, processor, contract)
    with pytest.raises(AdapterError, match="implicit_beta"):
        ImplicitReward(model, processor, dataclasses.replace(contract, implicit_beta=None))

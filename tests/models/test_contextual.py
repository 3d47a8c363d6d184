"""Answers that see earlier ones: the stock model on whole rows, averaged over orders."""

from __future__ import annotations

import dataclasses
from itertools import combinations

import pytest
import torch
from prefix_cases import CASES, case, loss, reward_model
from tiny import TINY_FAMILIES, make_tiny

from medrm.config.options import ModelOptions
from medrm.errors import ConfigError
from medrm.models.adapter_config import new_adapter_config
from medrm.models.prefix_sharing.batch import SHARED_PREFIX
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.scorer.collator import Collator, Row, answer_orders
from medrm.scorer.readouts.answer_rewards import RewardModel


def contextual(family: str, count: int) -> tuple[object, Collator]:
    model, collator = reward_model(family)
    return model, Collator(collator.processor, contextual_orders=count)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_rewards_are_those_of_plain_rows_with_all_answers(family):
    """Each order is written out as one conversation and read by the model's plain forward."""
    model, collator = contextual(family, 2)
    rewards = model(**collator.shared_rows(CASES)).rewards.detach()
    expected = []
    for pictured in CASES:
        opening = collator.opening(pictured)
        tails = [row.text.removeprefix(opening) for row in collator.answer_rows(pictured)]
        answer_rewards = torch.zeros(len(tails), 2)
        for order in answer_orders(len(tails), 2):
            read = ""
            for k in order:
                read += tails[k]
                row = collator.encode([Row(opening + read, pictured.images)])
                answer_rewards[k] += model(**row).rewards[0].detach() / 2
        expected.append(answer_rewards)
    torch.testing.assert_close(rewards, torch.cat(expected), rtol=0, atol=1e-5)


def test_order_and_other_cases_change_nothing_but_other_answers_do():
    model, collator = contextual("qwen2_5_vl", 2)
    pair = CASES[0]
    turned = dataclasses.replace(pair, answers=pair.answers[::-1])
    first, again = (
        model(**collator.shared_rows([single])).rewards.detach() for single in (pair, turned)
    )
    torch.testing.assert_close(first, again.flip(0), rtol=0, atol=1e-5)
    beside_others = model(**collator.shared_rows(CASES)).rewards.detach()[:2]
    torch.testing.assert_close(first, beside_others, rtol=0, atol=1e-5)
    other = dataclasses.replace(pair, answers=(pair.answers[0], "Something else"))
    changed = model(**collator.shared_rows([other])).rewards.detach()
    assert (changed[0] - first[0]).abs().max() > 1e-4


def test_gradients_reach_the_model_through_every_order():
    model, collator = contextual("qwen2_5_vl", 4)
    _, gradients = loss(model, collator.shared_rows([case(0, ("a", "b b", "c c c"))]))
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    shared = collator.shared_rows(CASES)[SHARED_PREFIX]
    assert [len(lengths) for lengths in shared.branch_lengths] == [2, 4, 4]
    assert {len(answer) for answers in shared.reward_tokens for answer in answers} == {4}


@pytest.mark.parametrize("answers", [1, 2, 3, 5])
def test_every_two_answers_stand_both_ways_equally_often(answers):
    for limit in (2, 4, 6, 100):
        in_orders = answer_orders(answers, limit)
        assert len(in_orders) == len(set(in_orders)) <= limit
        for i, j in combinations(range(answers), 2):
            first_before_second = [order.index(i) < order.index(j) for order in in_orders]
            assert sum(first_before_second) * 2 == len(first_before_second)


def test_lengths_count_the_row_with_all_answers():
    _, collator = contextual("llava", 2)
    cases = [dataclasses.replace(pictured, images=()) for pictured in CASES]
    shared = collator.shared_rows(cases)[SHARED_PREFIX]
    counted = collator.tokens(cases, {})
    assert counted["longest"].tolist() == [
        prefix + max(branch_lengths)
        for prefix, branch_lengths in zip(shared.prefix_lengths, shared.branch_lengths, strict=True)
    ]
    assert counted["unique"].sum() == shared.row_length


def test_a_saved_model_scores_as_it_was_trained_and_never_separately():
    model, processor = make_tiny("qwen2_5_vl")
    attach_head(model, HeadSpec(("accuracy",)), seed=1)
    contract = new_adapter_config(model, processor, ModelOptions(), "bradley_terry", "reward")
    scorer = RewardModel(
        model, processor, dataclasses.replace(contract, contextual_orders=2), batch_rows=4
    )
    collator = Collator(processor, contextual_orders=2)
    with torch.inference_mode():
        expected = model(**collator.shared_rows(CASES[:1])).rewards.numpy()
    ((_, rewards),) = scorer.score_cases(CASES[:1])
    assert abs(rewards - expected).max() <= 1e-6
    separate, _ = make_tiny("qwen2_5_vl", shared_prefix=False)
    attach_head(separate, HeadSpec(("accuracy",)), seed=1)
    with pytest.raises(ConfigError, match="contextual_orders is 2"):
        RewardModel(separate, processor, scorer.contract)


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="an even number"):
        ModelOptions(contextual_orders=3)
    with pytest.raises(ConfigError, match="shared_prefix on"):
        ModelOptions(contextual_orders=2, shared_prefix="off")

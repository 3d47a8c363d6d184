"""Unusual cases: shared prefixes, batches and orders give the numbers of single plain rows.

Tolerance: as in test_prefix_sharing; most seen over all families was 3e-6, in rows that differ by
padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from prefix_cases import case, reward_model
from presentations import by_order
from tiny import TINY_FAMILIES, make_tiny, tiny_image

from medrm.config.options import ModelOptions
from medrm.models.adapter_config import new_adapter_config
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.schema import Case, ImageRef
from medrm.scorer.caller_cases import ANY_IMAGES
from medrm.scorer.collator import Collator, Row, answer_orders
from medrm.scorer.readouts.answer_rewards import Likelihood, RewardModel

OPENING = "The chest radiograph shows clear lungs and no acute abnormality. " * 6


def some_at_once(families: Sequence[str]) -> list[Any]:
    """The other families belong to the slow tests: together they take a minute."""
    quick = ("qwen2_5_vl", "llava")
    return [
        name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in families
    ]


def pictures(*sizes: tuple[int, int]) -> tuple[ImageRef, ...]:
    return tuple(ANY_IMAGES.images(tiny_image(sum(size), *size))[0] for size in sizes)


def batches(processor: Any) -> dict[str, list[Case]]:
    """Cases by what is unusual in them."""
    spelled, end = processor.image_token, processor.tokenizer.eos_token
    answer_texts = {
        "empty": [("", "Yes"), ("", ""), ("a", "")],
        "begins alike": [("The heart", "The heart is", "The heart is big"), ("Lungs", "Lung")],
        "identical": [("same", "same"), ("same words here",) * 4],
        "control tokens": [(f"{spelled} and {spelled}", end), (spelled, "<|im_start|>user\n")],
        "one answer": [("Yes",), ("",), ("a", "b", "c", "d", "e")],
        "nine answers": [tuple(f"answer {k} " * (k + 1) for k in range(9)), ("a", "b")],
        "long openings": [(f"{OPENING}Yes", f"{OPENING}No", OPENING), (f"{OPENING}x", "short")],
        "lengths": [("a", "b"), ("word " * 100, "c"), ("d", "e " * 50)],
        "white space": [(" ", "\n", "\n\n x ")],
        "scripts": [("\u00e9", "\u00e8"), ("\u80ba\u90e8", "\U0001fac1", "\U0001fac0")],
    }
    by_oddity = {
        name: [case(seed, texts) for seed, texts in enumerate(answers)]
        for name, answers in answer_texts.items()
    }
    first, second, third = by_oddity["empty"]
    two, three = pictures((60, 40), (40, 60)), pictures((28, 28), (50, 50), (30, 90))
    sizes = ((28, 28), (200, 30), (30, 200))
    return by_oddity | {
        "no image": [
            dataclasses.replace(first, images=()),
            dataclasses.replace(second, images=(), question=""),
            dataclasses.replace(third, images=(), question="why " * 120),
        ],
        "two images": [
            dataclasses.replace(first, images=two),
            dataclasses.replace(second, images=two[:1] * 2),
        ],
        "three images": [dataclasses.replace(first, images=three)],
        "shapes": [case(k, ("Yes", "no"), *size) for k, size in enumerate(sizes)],
    }


def alone(model: Any, rows: list[Row], collator: Collator) -> torch.Tensor:
    """Rewards of rows, each in a batch of its own."""
    return torch.cat([model(**collator.encode([row])).rewards for row in rows])


@pytest.mark.parametrize("family", some_at_once(TINY_FAMILIES))
def test_rewards_are_those_of_single_rows(family: str) -> None:
    model, collator = reward_model(family)
    left = Collator(collator.processor, padding_side="left")
    for name, cases in batches(collator.processor).items():
        with torch.inference_mode():
            expected = alone(
                model, [r for single in cases for r in collator.answer_rows(single)], collator
            )
            rewards_by_batch = {
                "rows": model(**collator.rows(cases)).rewards,
                "padded on the left": model(**left.rows(cases)).rewards,
                "forks": model(**collator.shared_rows(cases)).rewards,
                "single forks": torch.cat(
                    [model(**collator.shared_rows([c])).rewards for c in cases]
                ),
            }
        for way, rewards in rewards_by_batch.items():
            torch.testing.assert_close(
                rewards, expected, rtol=0, atol=1e-5, msg=lambda m, n=f"{name}, {way}": f"{n}: {m}"
            )


@pytest.mark.parametrize("family", some_at_once(("qwen2_5_vl", "gemma3", "mllama", "smolvlm")))
def test_answers_that_see_each_other_are_those_of_plain_rows(family: str) -> None:
    model, plain = reward_model(family)
    collator = Collator(plain.processor, contextual_orders=2)
    for name, cases in batches(collator.processor).items():
        expected = []
        with torch.inference_mode():
            rewards = model(**collator.shared_rows(cases)).rewards
            for odd_case in cases:
                opening = collator.opening(odd_case)
                tails = [row.text.removeprefix(opening) for row in collator.answer_rows(odd_case)]
                in_orders = answer_orders(len(tails), 2)
                answer_rewards = torch.zeros(len(tails), 2)
                for order in in_orders:
                    ordered_tails = [tails[k] for k in order]
                    rows = [
                        Row(opening + "".join(ordered_tails[: k + 1]), odd_case.images)
                        for k in range(len(ordered_tails))
                    ]
                    answer_rewards[list(order)] += alone(model, rows, plain) / len(in_orders)
                expected.append(answer_rewards)
        torch.testing.assert_close(
            rewards, torch.cat(expected), rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_the_longest_row_that_is_read_is_the_same(family: str) -> None:
    """At each limit around each case's length, with shared prefixes and without."""
    shared, processor = make_tiny(family)
    separate, _ = make_tiny(family, shared_prefix=False)
    for model in (shared, separate):
        attach_head(model, HeadSpec(("accuracy", "overall")), seed=1)
    contract = new_adapter_config(shared, processor, ModelOptions(), "bradley_terry", "reward")
    cases = [
        odd_case for name in ("empty", "nine answers") for odd_case in batches(processor)[name]
    ]
    collator = Collator(processor)
    lengths = [
        int(collator.rows([odd_case])["attention_mask"].sum(dim=1).max()) for odd_case in cases
    ]
    for limit in sorted({length + by for length in lengths for by in (-1, 0)}):
        limited = dataclasses.replace(contract, max_length=limit)
        separate_results, shared_results = (
            by_order(RewardModel(model, processor, limited), cases) for model in (separate, shared)
        )
        reasons = ["too_long" if length > limit else None for length in lengths]
        assert (
            [scored.reason for scored in separate_results]
            == [scored.reason for scored in shared_results]
            == reasons
        )
        for first, second in zip(separate_results, shared_results, strict=True):
            if first.scores is not None:
                assert abs(first.scores - second.scores).max() <= 1e-5
        read = (
            by_order(Likelihood(m, processor, max_length=limit), cases) for m in (separate, shared)
        )
        for first, second in zip(*read, strict=True):
            assert first.reason == second.reason
            if first.scores is not None:
                assert abs(first.scores - second.scores).max() <= 1e-5

"""Cases and comparisons for tests of forked batches."""

from __future__ import annotations

from typing import Any

import torch
from tiny import make_tiny, tiny_image

from medrm.config.options import AdapterOptions
from medrm.models.prefix_sharing.batch import SHARED_PREFIX
from medrm.models.reward_model import HeadSpec, attach_head, without_adapter
from medrm.models.trainable import add_adapter
from medrm.schema import Case
from medrm.scorer.caller_cases import ANY_IMAGES
from medrm.scorer.collator import Collator

GRADIENTS = HeadSpec(("accuracy", "overall"), ties="davidson", tied_dimensions=("overall",))

DENSE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "llava_onevision")
DENSE += ("internvl", "idefics3", "smolvlm")
"""Families whose stock attention takes one mask for all layers."""


def case(seed: int, answers: tuple[str, ...], width: int = 60, height: int = 40) -> Case:
    """A case with a noise image of that size."""
    image = ANY_IMAGES.images(tiny_image(seed, width, height))[0]
    return Case(f"case-{seed}", (image,), f"What is seen in picture {seed}?", answers)


CASES = [
    case(0, ("Yes, the lungs are clear and no abnormality is seen.", "No")),
    case(1, ("Lung", "The heart", "The heart is large", "A kidney, with a stone"), 40, 60),
    case(2, ("same words", "same words", "Same words but longer ones"), 50, 50),
]
"""K = 2, 4 (two answers share an opening) and 3 (two are equal)."""


def equal_pairs() -> list[Case]:
    """Two cases whose prefixes and answers have as many tokens."""
    return [case(number, ("A", "B")) for number in (3, 4)]


def reward_model(family: str) -> tuple[Any, Collator]:
    """A tiny reward model whose LoRA layers are not zero, and its collator."""
    stock, processor = make_tiny(family)
    model = add_adapter(attach_head(stock, GRADIENTS, seed=1), AdapterOptions(lora_r=4), seed=2)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1, generator=generator)
    return model, Collator(processor)


def loss(model: Any, batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Returns the rewards of a batch and the gradients of a loss that weighs each differently."""
    model.zero_grad()
    output = model(**batch)
    weights = torch.linspace(-1, 1, output.rewards.numel()).view_as(output.rewards)
    ties = torch.nan_to_num(output.tie_logits, neginf=0.0)
    (torch.nn.functional.softplus(weights * output.rewards).sum() + ties.sum()).backward()
    gradients = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    return output.rewards.detach(), gradients


def dense_rewards(model: Any, batch: Any) -> torch.Tensor:
    """Returns the rewards of one forked case by stock attention under one mask over its row."""
    stock = without_adapter(model)
    shared = batch[SHARED_PREFIX]
    (prefix,), (lengths,) = shared.prefix_lengths, shared.branch_lengths
    segment_numbers = [
        torch.full((count,), segment) for segment, count in enumerate((prefix, *lengths))
    ]
    segments = torch.cat(segment_numbers)
    indices = torch.arange(shared.row_length)
    seen = indices[:, None] >= indices
    seen &= (segments == 0) | (segments[:, None] == segments)
    inputs = {name: value for name, value in batch.items() if name != SHARED_PREFIX}
    counted = [torch.arange(prefix), *(torch.arange(count) + prefix for count in lengths)]
    positions = torch.cat(counted)[None]
    if "image_grid_thw" in inputs:
        single = inputs["input_ids"][:, : prefix + lengths[0]]
        rotary, _ = stock.model.get_rope_index(
            single,
            mm_token_type_ids=inputs["mm_token_type_ids"][:, : prefix + lengths[0]],
            image_grid_thw=inputs["image_grid_thw"],
        )
        start = rotary[:, :, -1:] - (lengths[0] - 1)
        tails = [start + torch.arange(n) for n in lengths]
        positions = torch.cat([rotary[:, :, :prefix], *tails], dim=-1)
    states = stock.model(
        **inputs, attention_mask=seen[None, None], position_ids=positions, use_cache=False
    ).last_hidden_state[0]
    ends = prefix + torch.tensor(lengths).cumsum(0) - 1
    return stock.score(states[ends])[0]

"""Features of a frozen tower are computed once for each image and change no reward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import TINY_FAMILIES, make_tiny, tiny_image

from medrm.models.families import FAMILIES
from medrm.models.image_features import FeatureMemory, remember_features
from medrm.models.reward_model import HeadSpec, attach_head


def make(name: str) -> tuple[Any, dict[str, Any]]:
    """A frozen reward model, and two rows of one image and one of another."""
    model, processor = make_tiny(name)
    content = [{"type": "image"}, {"type": "text", "text": "What does it show?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    images = [[tiny_image(0)], [tiny_image(0)], [tiny_image(1, 90, 60)]]
    rows = processor(text=[text] * 3, images=images, padding=True, return_tensors="pt")
    reward = attach_head(model, HeadSpec(dimensions=("overall",)), seed=0)
    return reward.requires_grad_(False).eval(), dict(rows)


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_each_image_is_computed_once_and_rewards_stay(name: str) -> None:
    model, rows = make(name)
    plain = model(**rows).rewards
    memory = FeatureMemory(2**20)
    assert remember_features(model, FAMILIES[name], memory)
    first = model(**rows).rewards
    assert memory.computed == 2
    assert torch.equal(model(**rows).rewards, first)
    assert memory.computed == 2
    # Alone or in a batch: only the order of sums in the tower differs.
    torch.testing.assert_close(first, plain, atol=1e-6, rtol=0)


def test_the_memory_is_bounded() -> None:
    model, rows = make("qwen2_5_vl")
    memory = FeatureMemory(1)
    remember_features(model, FAMILIES["qwen2_5_vl"], memory)
    for _ in range(2):
        model(**rows)
    assert memory.computed == 4  # each image pushes the other out


def test_a_trained_tower_is_never_remembered() -> None:
    model, _ = make("qwen2_5_vl")
    model.requires_grad_(True)
    assert not remember_features(model, FAMILIES["qwen2_5_vl"], FeatureMemory(2**20))
    model, _ = make("llava")
    assert not remember_features(model, FAMILIES["llava"], FeatureMemory(2**20))

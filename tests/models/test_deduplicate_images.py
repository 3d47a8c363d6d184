"""Equal images of a batch go through the vision tower once; no reward or gradient changes by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY_FAMILIES, make_tiny, save_tiny, tiny_image

from medrm.config.options import AdapterOptions, ModelOptions
from medrm.models.backbone import tower_of
from medrm.models.base_model import load_base
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.models.trainable import add_adapter
from medrm.models.vision_tower import DeduplicatingTower, deduplicate_images, first_equal

IMAGES = {"a": (0, 60, 40), "b": (1, 90, 60), "c": (2, 40, 60)}


def make(name: str, seed: int = 0) -> tuple[Any, Callable[[str], dict[str, Any]]]:
    """A frozen reward model, and what makes rows of the images named by letters."""
    model, processor = make_tiny(name, seed)
    question = [{"type": "image"}, {"type": "text", "text": "What does it show?"}]
    text = processor.apply_chat_template([{"role": "user", "content": question}], tokenize=False)

    def rows(letters: str) -> dict[str, Any]:
        images = [[tiny_image(*IMAGES[letter])] for letter in letters]
        texts = [text] * len(letters)
        return dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))

    reward = attach_head(model, HeadSpec(dimensions=("overall",)), seed=0)
    return reward.requires_grad_(False).eval(), rows


def entered(tower: Any) -> list[int]:
    """Grows by how many rows or patches enter the tower's first layer, call by call."""
    counts: list[int] = []
    first = next(m for m in tower.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Conv3d)))
    first.register_forward_pre_hook(lambda _module, inputs: counts.append(len(inputs[0])))
    return counts


def gradients(model: Any, rows: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    model.zero_grad()
    weights = torch.linspace(1, 2, len(rows["input_ids"]))
    (model(**rows).rewards[:, 0] * weights).sum().backward()
    tower = tower_of(model)
    return {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_equal_images_are_computed_once_and_gradients_add_up(name: str) -> None:
    model, rows = make(name)
    tower = tower_of(model)
    tower.requires_grad_(True)
    counts = entered(tower)
    plain, plain_rewards = gradients(model, rows("aabab"), name), model(**rows("aabab")).rewards
    assert deduplicate_images(model)
    assert deduplicate_images(model)  # twice changes nothing
    del counts[:]
    model(**rows("ab"))
    alone = counts.pop()
    for letters in ("aabab", "ba"):
        model(**rows(letters))
        assert counts.pop() == alone
    torch.testing.assert_close(model(**rows("aabab")).rewards, plain_rewards, atol=1e-6, rtol=0)
    shared = gradients(model, rows("aabab"), name)
    assert plain.keys() == shared.keys()
    assert plain
    scale = max(float(grad.abs().max()) for grad in plain.values())
    assert scale > 0
    for weight, grad in plain.items():
        torch.testing.assert_close(shared[weight], grad, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next", "mllama"])
def test_equal_images_are_computed_once_with_checkpointing(name: str) -> None:
    model, rows = make(name)
    tower_of(model).requires_grad_(True)
    deduplicate_images(model)
    plain = gradients(model, rows("aab"), name)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    shared = gradients(model.train(), rows("aab"), name)
    for weight, grad in plain.items():
        torch.testing.assert_close(shared[weight], grad)


def test_an_adapted_tower_computes_equal_images_once() -> None:
    name = "qwen2_5_vl"
    model, rows = make(name)
    add_adapter(model, AdapterOptions(lora_vision=True))
    for weight, parameter in tower_of(model).named_parameters():
        if "lora_B" in weight:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    plain = gradients(model, rows("aab"), name)
    assert deduplicate_images(model)
    counts = entered(tower_of(model))
    shared = gradients(model, rows("aab"), name)
    model(**rows("ab"))
    assert counts[0] == counts[1]
    assert plain
    assert plain.keys() == shared.keys()
    for weight, grad in plain.items():
        torch.testing.assert_close(shared[weight], grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_what_a_trainer_passes_on_changes_nothing(name: str) -> None:
    model, rows = make(name)
    deduplicate_images(model)
    counts = entered(tower_of(model))
    pixels, grids = rows("ab")["pixel_values"], rows("ab").get("image_grid_thw")
    grid = {} if grids is None else {"grid_thw": grids}
    needs = {"output_hidden_states": -2} if name == "llava" else {}
    for extra in ({}, {"num_items_in_batch": 3}, {"num_items_in_batch": torch.tensor(4)}):
        tower_of(model)(pixels, **grid, **needs, **extra)
    assert counts == [counts[0]] * 3


def test_a_tower_that_joins_its_images_runs_as_it_is() -> None:
    model, _ = make("llava")
    tower_of(model).config.model_type = "pixtral"
    assert not deduplicate_images(model)


def test_a_loaded_base_computes_equal_images_once(tmp_path: Path) -> None:
    model = load_base(ModelOptions(str(save_tiny("qwen2_5_vl", tmp_path / "base"))))
    assert isinstance(tower_of(model), DeduplicatingTower)
    assert type(model.get_submodule("model.visual")).__name__.startswith("Qwen2_5_Vision")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_contents_are_told_apart(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 2, (1500, 1000), generator=generator).to(dtype)
    last, swapped, flat = pixels.clone(), pixels.clone(), pixels.clone().reshape(1000, 1500)
    last[-1, -1] = 1 - last[-1, -1].long()
    swapped[[0, 1]] = pixels[[1, 0]]  # the same checksum
    strided = pixels.t().contiguous().t()
    images = [(tensor,) for tensor in (pixels, last, swapped, flat, strided, swapped, flat)]
    assert first_equal(images) == [0, 1, 2, 3, 0, 2, 3]
    grids = [(torch.zeros(4, 2), torch.tensor([[1, *size]])) for size in ((2, 2), (4, 1), (2, 2))]
    assert first_equal(grids) == [0, 1, 0]
    assert first_equal([(torch.full((2,), float("nan")),)] * 2) == [0, 0]


def test_contents_are_told_apart_where_images_start_at_any_byte() -> None:
    pixels = torch.tensor([[3, 1, 4], [1, 5, 9], [3, 1, 4], [1, 5, 8]], dtype=torch.uint8)
    assert first_equal([(row,) for row in pixels.split(1)]) == [0, 1, 0, 3]
    uneven = torch.cat([pixels[0], pixels.flatten()[:8], pixels.flatten()[:8]])
    assert first_equal([(image,) for image in uneven.split([3, 8, 8])]) == [0, 1, 1]

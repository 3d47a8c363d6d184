"""Each image goes through the vision tower once, and no reward or gradient changes by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import TINY_FAMILIES, make_tiny, tiny_image

from medrm.config import AdapterOptions
from medrm.models.adapter import add_adapter
from medrm.models.families import FAMILIES
from medrm.models.feature_store import FeatureFolder, FeatureMemory
from medrm.models.image_features import (
    ONE_SEQUENCE,
    can_be_kept,
    leaves,
    remember_features,
    see_images_once,
)
from medrm.models.reward_model import HeadSpec, attach_head

IMAGES = {"a": (0, 60, 40), "b": (1, 90, 60), "c": (2, 40, 60)}


def make(name: str, seed: int = 0) -> tuple[Any, Callable[[str], dict[str, Any]]]:
    """A frozen reward model, and what makes rows of the images named by letters."""
    model, processor = make_tiny(name, seed)
    content = [{"type": "image"}, {"type": "text", "text": "What does it show?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)

    def rows(letters: str) -> dict[str, Any]:
        images = [[tiny_image(*IMAGES[letter])] for letter in letters]
        texts = [text] * len(letters)
        return dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))

    reward = attach_head(model, HeadSpec(dimensions=("overall",)), seed=0)
    return reward.requires_grad_(False).eval(), rows


def tower_of(model: Any, name: str) -> Any:
    return model.get_submodule(FAMILIES[name].vision)


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
    tower = tower_of(model, name)
    return {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_equal_images_are_computed_once_and_gradients_add_up(name: str) -> None:
    model, rows = make(name)
    tower = tower_of(model, name)
    tower.requires_grad_(True)
    counts = entered(tower)
    plain, plain_rewards = gradients(model, rows("aabab"), name), model(**rows("aabab")).rewards
    assert see_images_once(model, FAMILIES[name])
    assert see_images_once(model, FAMILIES[name])  # twice changes nothing
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
    tower_of(model, name).requires_grad_(True)
    see_images_once(model, FAMILIES[name])
    plain = gradients(model, rows("aab"), name)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    shared = gradients(model.train(), rows("aab"), name)
    for weight, grad in plain.items():
        torch.testing.assert_close(shared[weight], grad)


def seen(model: Any, rows: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    """What the model reads of the vision tower's output."""
    found: dict[str, torch.Tensor] = {}
    hook = tower_of(model, name).register_forward_hook(
        lambda *call: found.update(leaves(call[-1], FAMILIES[name].features))
    )
    model(**rows)
    hook.remove()
    return found


def joined(parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_each_image_is_computed_once_in_a_run(name: str) -> None:
    model, rows = make(name)
    plain, plain_features = model(**rows("aab")).rewards, seen(model, rows("aab"), name)
    alone = {letter: seen(model, rows(letter), name) for letter in "ab"}
    memory = FeatureMemory(2**20)
    assert remember_features(model, FAMILIES[name], memory)
    first = model(**rows("aab")).rewards
    computed = memory.computed
    assert computed >= 2
    if name not in ("llava_next", "llava_onevision", "internvl"):  # these cut images into tiles
        assert computed == 2
        assert_same(seen(model, rows("aab"), name), joined([alone[i] for i in "aab"]))
    # Alone or in a batch: only the order of sums in the tower differs.
    torch.testing.assert_close(first, plain, atol=1e-6, rtol=0)
    for field, found in seen(model, rows("aab"), name).items():
        torch.testing.assert_close(found, plain_features[field], atol=1e-5, rtol=1e-5)
    # In whatever batch: the same features to the bit.
    counts = entered(tower_of(model, name))
    once = {letter: seen(model, rows(letter), name) for letter in "ab"}
    assert_same(seen(model, rows("aba"), name), joined([once[letter] for letter in "aba"]))
    assert torch.equal(model(**rows("aab")).rewards, first)
    assert counts == []
    assert memory.computed == computed


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_a_later_run_reads_the_features_from_files(name: str, tmp_path: Path) -> None:
    features = []
    for order in ("abc", "acb"):
        model, rows = make(name)
        memory = FeatureMemory(0, FeatureFolder(tmp_path, 2**20))
        assert remember_features(model, FAMILIES[name], memory)
        seen(model, rows(order), name)
        assert (memory.computed == 0) == (order == "acb")
        features.append(seen(model, rows("abc"), name))
    assert_same(features[1], features[0])
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".safetensors"}


def test_memory_is_bounded() -> None:
    model, rows = make("qwen2_5_vl")
    memory = FeatureMemory(1)
    remember_features(model, FAMILIES["qwen2_5_vl"], memory)
    for _ in range(2):
        model(**rows("aba"))
    assert memory.computed == 4


def test_only_whole_frozen_plain_towers_are_kept() -> None:
    family = FAMILIES["qwen2_5_vl"]
    model, rows = make("qwen2_5_vl")
    memory = FeatureMemory(2**20)
    tower = tower_of(model, "qwen2_5_vl").requires_grad_(True)
    assert not remember_features(model, family, memory)
    counts = entered(tower)
    model(**rows("aa"))
    assert (memory.computed, len(counts)) == (0, 1)  # still once in a call
    tower.requires_grad_(False)
    assert can_be_kept(tower)
    assert not remember_features(model, family, FeatureMemory(0))
    bias = next(p for p in tower.parameters() if p.ndim == 1)
    whole, bias.data = bias.data, torch.empty(0)  # as where processes hold parts of the weights
    assert not can_be_kept(tower)
    bias.data = whole
    adapted = add_adapter(model, AdapterOptions(lora_vision=True), family)
    assert not remember_features(adapted.get_base_model(), family, memory)
    adapted.requires_grad_(False)  # an adapter that is scored
    assert not can_be_kept(tower)


def test_an_adapted_tower_computes_equal_images_once() -> None:
    name = "qwen2_5_vl"
    model, rows = make(name)
    add_adapter(model, AdapterOptions(lora_vision=True), FAMILIES[name])
    for weight, parameter in tower_of(model, name).named_parameters():
        if "lora_B" in weight:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    plain = gradients(model, rows("aab"), name)
    memory = FeatureMemory(2**20)
    assert not remember_features(model, FAMILIES[name], memory)
    counts = entered(tower_of(model, name))
    shared = gradients(model, rows("aab"), name)
    model(**rows("ab"))
    assert counts[0] == counts[1]
    assert memory.computed == 0
    assert plain
    assert plain.keys() == shared.keys()
    for weight, grad in plain.items():
        torch.testing.assert_close(shared[weight], grad, atol=1e-5, rtol=1e-4)


def test_other_weights_or_precision_have_features_of_their_own() -> None:
    family = FAMILIES["qwen2_5_vl"]
    memory = FeatureMemory(2**20)
    model, rows = make("qwen2_5_vl")
    other, _ = make("qwen2_5_vl", seed=1)
    for own in (model, other):
        remember_features(own, family, memory)
    first = model(**rows("a")).rewards
    assert not torch.equal(other(**rows("a")).rewards, first)
    assert memory.computed == 2
    with torch.autocast("cpu", torch.bfloat16):
        model(**rows("a"))
    assert memory.computed == 3
    with torch.no_grad():
        next(tower_of(model, "qwen2_5_vl").parameters()).add_(0.01)
    assert not torch.equal(model(**rows("a")).rewards, first)
    assert memory.computed == 4


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava"])
def test_what_a_trainer_passes_on_changes_nothing(name: str) -> None:
    model, rows = make(name)
    memory = FeatureMemory(2**20)
    remember_features(model, FAMILIES[name], memory)
    pixels = rows("ab")["pixel_values"]
    grid = {"grid_thw": rows("ab")["image_grid_thw"]} if name == "qwen2_5_vl" else {}
    needs = {"output_hidden_states": -2} if name == "llava" else {}
    for count in (3, torch.tensor(4), torch.tensor(5)):
        tower_of(model, name)(pixels, **grid, **needs, num_items_in_batch=count)
    assert memory.computed == 2


def test_features_made_while_scoring_can_be_learned_from() -> None:
    model, rows = make("llava")
    remember_features(model, FAMILIES["llava"], FeatureMemory(2**20))
    with torch.inference_mode():
        model(**rows("ab"))
    projector = model.get_submodule("model.multi_modal_projector").requires_grad_(True)
    model(**rows("ab")).rewards.sum().backward()
    assert all(p.grad is not None for p in projector.parameters())


def test_a_tower_that_joins_its_images_runs_as_it_is() -> None:
    model, _ = make("llava")
    tower_of(model, "llava").config.model_type = next(iter(ONE_SEQUENCE))
    assert not see_images_once(model, FAMILIES["llava"])
    assert not remember_features(model, FAMILIES["llava"], FeatureMemory(2**20))

"""Decoders that carry a state train on separate rows and score behind cached prefixes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from scorer.cases import broken_image, make_case
from tiny import make_tiny

import medrm
from medrm.config.options import AdapterOptions, ModelOptions
from medrm.models.adapter import save_adapter
from medrm.models.adapter_config import new_adapter_config
from medrm.models.base_model import load_base
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.prefix_sharing.batch import SHARED_PREFIX
from medrm.models.prefix_sharing.kv_cache import CachedPrefix, caches_answers, shares_cache
from medrm.models.processors import load_processor
from medrm.models.reward_model import HeadSpec, attach_head, without_adapter
from medrm.models.trainable import add_adapter
from medrm.scorer.collator import Collator
from medrm.scorer.self_check import prove

CASES = [
    make_case(0, answers=2),
    make_case(1, answers=4, sizes=((40, 90),)),
    make_case(2, answers=3, sizes=((28, 28), (64, 32))),
    make_case(3, answers=2, sizes=()),
    make_case(4, answers=2),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen3.5: gated delta layers, and full attention in every second layer."""
    qwen3_vl, processor = make_tiny("qwen3_vl")
    text = qwen3_vl.config.text_config.to_dict() | {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "model_type": "qwen3_5_text",
    }
    tower = qwen3_vl.config.vision_config.to_dict() | {"model_type": "qwen3_5_vision"}
    tokens = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config: Any = hf.Qwen3_5Config(
        text_config=text,
        vision_config=tower,
        **{name: getattr(qwen3_vl.config, name) for name in tokens},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForImageTextToText.from_config(config)
    folder = tmp_path_factory.mktemp("hybrid") / "base"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    """A reward model on it, as saved."""
    options = ModelOptions(str(base))
    model = attach_head(load_base(options), HeadSpec(("accuracy", "overall")), seed=1)
    processor = load_processor(str(base))
    adapted = add_adapter(model, AdapterOptions(lora_r=2), seed=2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(3))
    contract = new_adapter_config(adapted, processor, options, "bradley_terry", "reward")
    save_adapter(base.parent / "adapter", adapted, processor, contract)
    return base.parent / "adapter"


def test_it_is_proven(base: Path) -> None:
    model, processor = load_base(ModelOptions(str(base))), load_processor(str(base))
    assert not shares_prefix(model)
    assert not shares_cache(model)
    assert caches_answers(model)
    proof = prove(model, processor)
    assert "linear attention" in str(proof.sharing_problem)
    assert proof.cache_problem is None
    assert proof.differences["cached prefix"] < 1e-6
    assert not caches_answers(load_base(ModelOptions(str(base), shared_prefix="off")))


def test_cached_rewards_are_those_of_separate_rows(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_rows: list[int] = []
    read = CachedPrefix.read.__func__  # type: ignore[attr-defined]

    def count(cls: Any, model: Any, features: Any, mask: torch.Tensor) -> Any:
        read_rows.append(len(mask))
        return read(cls, model, features, mask)

    monkeypatch.setattr(CachedPrefix, "read", classmethod(count))
    cached: Any = medrm.load(adapter)
    read_rows.clear()
    rewards = [scores for _, scores in cached.score_cases(CASES)]
    assert sum(read_rows) == len(CASES)  # each prefix once
    separate: Any = medrm.load(adapter, shared_prefix="off")
    assert not caches_answers(without_adapter(separate.model))
    read_rows.clear()
    for scores, (_, expected) in zip(rewards, separate.score_cases(CASES), strict=True):
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
        assert len(np.unique(expected[:, 0])) == len(expected)
    assert not read_rows


def test_what_cannot_be_read_has_its_state(adapter: Path) -> None:
    broken = dataclasses.replace(CASES[3], images=(broken_image(),))
    scorer: Any = medrm.load(adapter)
    states = [response.state for response in scorer.respond([CASES[0], broken, CASES[1]])]
    assert states == ["ok", "bad_image", "ok"]


def test_a_state_that_padding_changes_is_found(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right padding between prefix and answer, as a cache of keys and values could bear."""
    model, processor = load_base(ModelOptions(str(base))), load_processor(str(base))
    read = CachedPrefix.read.__func__  # type: ignore[attr-defined]

    def padded_right(cls: Any, model: Any, features: Any, mask: torch.Tensor) -> Any:
        shifts = (-mask.sum(dim=1) + mask.shape[1]).tolist()
        rolled = {
            name: torch.stack([row.roll(-n, 0) for row, n in zip(tensor, shifts, strict=True)])
            if tensor.shape[:2] == mask.shape
            else tensor
            for name, tensor in features.items()
        }
        return read(cls, model, rolled, mask.flip(1))

    monkeypatch.setattr(CachedPrefix, "read", classmethod(padded_right))
    problem = prove(model, processor).cache_problem
    assert "a cached prefix changes the states" in str(problem)


def test_training_rows_are_separate(base: Path) -> None:
    processor = load_processor(str(base))
    model = attach_head(load_base(ModelOptions(str(base))), HeadSpec(("overall",)), seed=1)
    collator = Collator(processor)
    separate, shared = collator.rows(CASES[:2]), collator.shared_rows(CASES[:2])
    assert SHARED_PREFIX not in separate
    with torch.no_grad():
        difference = model(**separate).rewards - model(**shared).rewards
    assert difference.abs().max() < 1e-6

"""A type that transformers gets tomorrow needs no line of code, or the part that lacks is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from made_up import (
    BlindConfig,
    FlatConfig,
    MadeUpConfig,
    NoDecoderConfig,
    NoEmbeddingConfig,
    register,
    save_made_up,
)
from runs import check_two_steps, context_of
from tiny import tiny_image

import medrm
from medrm.config.options import ModelOptions
from medrm.data.phantom.phantom_set import write_phantom
from medrm.errors import ConfigError
from medrm.models.base_model import load_base
from medrm.models.families import family_of
from medrm.models.vision_tower import deduplicate_images
from medrm.pipeline.stages import train_adapter


@pytest.mark.parametrize(
    ("config_class", "objective"),
    [
        (MadeUpConfig, "bradley_terry"),
        (MadeUpConfig, "judge_sft"),
        (FlatConfig, "bradley_terry"),
    ],
)
def test_a_new_architecture_trains_and_scores(config_class, objective, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = save_made_up(tmp_path / "base", config_class)
    parts = family_of(load_base(ModelOptions(str(base))).config).parts
    if config_class is FlatConfig:
        assert (parts.backbone, parts.decoder) == (None, "language_model.model")
        assert (parts.lm_head, parts.vision) == ("language_model.lm_head", "eyes")
    else:
        assert (parts.backbone, parts.decoder) == ("model", "model.language_model")
        assert (parts.vision, parts.connectors) == ("model.eyes", ("model.bridge",))
    write_phantom(tmp_path / "data", cases=24, seed=3)
    context = context_of(base, tmp_path / "data" / "votes.jsonl", objective, tmp_path)
    train_adapter(context)
    check_two_steps(context.output)
    scorer: Any = medrm.load(context.output / "adapter")
    answers = ["Clear lungs.", "A nodule in the left lung."]
    if objective == "judge_sft":
        assert set(scorer.compare([tiny_image()], "What is seen?", answers)) == set(
            context.splits.dimensions
        )
        return
    rewards, with_other_image = (
        scorer.score([tiny_image(seed)], "What is seen?", answers) for seed in (0, 1)
    )
    assert np.abs(rewards - with_other_image).max() > 1e-6
    separate: Any = medrm.load(context.output / "adapter", shared_prefix="off")
    np.testing.assert_allclose(
        rewards, separate.score([tiny_image()], "What is seen?", answers), atol=2e-6
    )


def test_what_is_not_known_of_a_tower_is_left_as_it_is(tmp_path):
    """Batch norms stay as they were saved, and equal images are computed as often as they come."""
    model: Any = load_base(ModelOptions(str(save_made_up(tmp_path)))).train()
    before = {name: tensor.clone() for name, tensor in model.model.eyes.named_buffers()}
    assert "norm.running_mean" in before
    pixels = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    together = model.model.eyes(pixels).last_hidden_state
    assert all(torch.equal(tensor, before[n]) for n, tensor in model.model.eyes.named_buffers())
    torch.testing.assert_close(model.model.eyes(pixels[:1]).last_hidden_state, together[:1])
    assert model.training
    assert not deduplicate_images(model)


@pytest.mark.parametrize(
    ("config_class", "message"),
    [
        (BlindConfig, r"vision tower of .*'made_up_blind' was not found: looked for get_encoder"),
        (NoDecoderConfig, r"decoder of .*'made_up_no_decoder' was not found: looked for get_dec"),
        (NoEmbeddingConfig, r"token embedding of .*'made_up_no_embedding' was not found"),
    ],
)
def test_the_part_that_is_not_found_is_named(config_class, message, tmp_path):
    register()
    config_class().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_base(ModelOptions(str(tmp_path)))

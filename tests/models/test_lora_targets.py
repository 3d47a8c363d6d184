"""What LoRA adapts: the decoder's linear layers; routers when asked, packed experts never."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
import torch
from tiny_text import save_text_base

import medrm
from medrm.config.options import AdapterOptions, ModelOptions
from medrm.errors import ConfigError
from medrm.models.adapter import save_adapter
from medrm.models.adapter_config import new_adapter_config
from medrm.models.base_model import load_base
from medrm.models.lora_targets import lora_targets
from medrm.models.processors import load_processor
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.models.trainable import add_adapter

SMALL = AdapterOptions(lora_r=2)
ROUTERS = {"mixtral": {"mlp.gate"}, "qwen3_next": {"mlp.gate", "mlp.shared_expert_gate"}}
"""Type to what chooses the experts of a layer; `mlp.gate` is a parameter in a module of its own."""


def adapted(model: Any) -> set[str]:
    """The modules with LoRA layers, their layer's number left out."""
    names = (name for name, _ in model.named_parameters() if "lora_A" in name)
    return {
        name.partition(".lora_A")[0].partition("layers.")[2].partition(".")[2] for name in names
    }


@pytest.mark.parametrize("model_type", ROUTERS)
def test_routers_are_adapted_when_asked(model_type, tmp_path, caplog):
    options = ModelOptions(str(save_text_base(model_type, tmp_path / "base")))
    targets = lora_targets(load_base(options))
    assert targets.packed_experts
    assert load_base(options).config.router_aux_loss_coef == 0.0
    assert targets.vision == ()
    with caplog.at_level(logging.INFO, logger="medrm"):
        plain = add_adapter(load_base(options), SMALL)
    assert "leaves the experts of 2 layers as they are" in caplog.text
    assert "self_attn.q_proj" in adapted(plain)
    assert set(adapted(plain)) == {name.partition("layers.")[2][2:] for name in targets.decoder}
    assert not ROUTERS[model_type] & adapted(plain)
    assert not any("experts." in name for name in adapted(plain))
    asked = dataclasses.replace(SMALL, lora_routers=True)
    head = attach_head(load_base(options), HeadSpec(("overall",)), seed=0)
    model, processor = add_adapter(head, asked), load_processor(options.model_name_or_path)
    assert ROUTERS[model_type] <= adapted(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    config = new_adapter_config(model, processor, options, "bradley_terry", "reward")
    save_adapter(tmp_path / "adapter", model, processor, config)
    text = processor(text=["<|im_start|>user\nClear?<|im_end|>\n"], return_tensors="pt")
    loaded: Any = medrm.load(tmp_path / "adapter", shared_prefix="off")
    with torch.inference_mode():
        np.testing.assert_array_equal(loaded.model(**text).rewards, model.eval()(**text).rewards)


@pytest.mark.parametrize("change", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_what_routers_cannot_be_adapted_with_is_named(change, tmp_path):
    options = ModelOptions(str(save_text_base("mixtral", tmp_path)))
    asked = dataclasses.replace(SMALL, lora_routers=True, **change)
    with pytest.raises(ConfigError, match="lora_routers adapts parameters of Mixtral"):
        add_adapter(load_base(options), asked)

"""States and logits of models of several layouts are those that the model itself computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_up import FlatConfig, MadeUpConfig, save_made_up
from tiny import TINY_FAMILIES, make_tiny, tiny_image
from tiny_text import save_text_base

from medrm.config.options import ModelOptions
from medrm.models.backbone import final_states, output_logits
from medrm.models.base_model import load_base
from medrm.models.families import _parts_of, family_of
from medrm.models.processors import load_processor
from medrm.models.reward_model import HeadSpec, attach_head


def check(model, processor, pictured=True):
    """Compares the logits of all tokens of two rows with those of the model as a whole."""
    blocks = [{"type": "image"}] if pictured else []
    turn = {"role": "user", "content": [*blocks, {"type": "text", "text": "What is seen?"}]}
    text = processor.apply_chat_template([turn], tokenize=False)
    images = [[tiny_image(0)], [tiny_image(1)]] if pictured else None
    batch = processor(text=[text, text], images=images, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
        states = final_states(model, **batch, use_cache=False)
        computed = output_logits(model, states.flatten(0, 1))
    torch.testing.assert_close(computed, logits.flatten(0, 1), atol=1e-5, rtol=1e-5)
    return states, logits


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_logits_are_the_models_own(family):
    check(*make_tiny(family, shared_prefix=False))


@pytest.mark.parametrize("config_class", [MadeUpConfig, FlatConfig])
def test_logits_of_other_layouts(config_class, tmp_path: Path):
    base = str(save_made_up(tmp_path, config_class))
    check(load_base(ModelOptions(base)), load_processor(base))


@pytest.mark.parametrize("model_type", ["gemma3_text", "granite", "cohere2"])
def test_logits_that_are_scaled_or_capped(model_type, tmp_path: Path):
    base = str(save_text_base(model_type, tmp_path))
    model = load_base(ModelOptions(base))
    states, logits = check(model, load_processor(base), pictured=False)
    with torch.no_grad():
        head = model.get_output_embeddings()(states)
    assert (head - logits).abs().max() > 1e-3, "the LM head alone gives other numbers"


def test_a_head_or_a_trainers_forward_changes_no_logits():
    model, processor = make_tiny("llava", shared_prefix=False)
    states, logits = check(model, processor)
    attach_head(model, HeadSpec(("overall",)), seed=0)
    vars(model)["forward"] = None  # TRL puts one of its own there
    with torch.no_grad():
        torch.testing.assert_close(output_logits(model, states[0]), logits[0])


def test_asking_for_parts_leaves_the_generator_alone():
    model, _ = make_tiny("qwen2_5_vl")
    before = torch.get_rng_state()
    _parts_of.clear()
    family_of(model.config)
    assert torch.equal(torch.get_rng_state(), before)

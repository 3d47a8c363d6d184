"""Bases that read text alone: any causal language model with a chat template and a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import check_two_steps, context_of
from tiny import tiny_image
from tiny_text import TEXT_TYPES, save_text_base
from transformers import Gemma3TextConfig

import medrm
from medrm.config.options import AdapterOptions, ModelOptions
from medrm.data.phantom.phantom_set import write_phantom
from medrm.errors import ConfigError
from medrm.models.adapter import save_adapter
from medrm.models.adapter_config import new_adapter_config
from medrm.models.base_model import load_base
from medrm.models.families import family_of
from medrm.models.processors import TextProcessor, load_processor
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.models.trainable import add_adapter
from medrm.pipeline.evaluate import evaluate_model
from medrm.pipeline.requests import EvalRequest
from medrm.pipeline.stages import train_adapter

ANSWERS = ["Clear lungs.", "A nodule in the left lung.", "Clear"]


def write_votes(folder: Path, count: int = 30) -> Path:
    """Writes votes on cases without images."""
    lines = [
        {
            "case_id": f"case-{number}",
            "images": [],
            "question": f"Question {number}?",
            "answer_a": f"Clear lungs. {number}",
            "answer_b": f"A nodule {number}",
            "annotator": reader,
            "votes": {"overall": "A" if number % 3 else "B"},
        }
        for number in range(count)
        for reader in ("first", "second", "third")
    ]
    path = folder / "votes.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("model_type", TEXT_TYPES)
def test_a_reward_model_of_text_is_saved_and_gives_the_same_rewards(model_type, tmp_path):
    base = save_text_base(model_type, tmp_path / "base")
    options = ModelOptions(str(base))
    model, processor = load_base(options), load_processor(str(base))
    assert isinstance(processor, TextProcessor)
    parts = family_of(model.config).parts
    assert (parts.vision, parts.takes_images, parts.decoder) == (None, False, "model")
    reward = attach_head(model, HeadSpec(("overall",)), seed=0)
    adapted = add_adapter(reward, AdapterOptions(lora_r=4), seed=1)
    config = new_adapter_config(adapted, processor, options, "bradley_terry", "reward")
    save_adapter(tmp_path / "adapter", adapted, processor, config)
    shared: Any = medrm.load(tmp_path / "adapter")
    separate: Any = medrm.load(tmp_path / "adapter", shared_prefix="off")
    rewards = shared.score([], "What is seen?", ANSWERS)
    assert len(np.unique(rewards)) == len(ANSWERS)
    np.testing.assert_allclose(rewards, separate.score([], "What is seen?", ANSWERS), atol=2e-6)
    alone = [separate.score([], "What is seen?", [answer, answer])[0] for answer in ANSWERS]
    np.testing.assert_allclose(rewards, alone, atol=2e-6)
    with pytest.raises(ConfigError, match="reads text alone"):
        shared.score([tiny_image()], "What is seen?", ANSWERS)


@pytest.mark.parametrize("objective", ["bradley_terry", "judge_sft", "judge_dpo"])
def test_a_text_base_is_trained(objective, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = save_text_base("llama", tmp_path / "base")
    context = context_of(base, write_votes(tmp_path), objective, tmp_path)
    train_adapter(context)
    check_two_steps(context.output)
    scorer: Any = medrm.load(context.output / "adapter")
    verdicts = scorer.compare([], "What is seen?", ANSWERS[:2])
    assert set(verdicts) == {"overall"}


def test_a_turns_text_is_rendered_not_its_blocks(tmp_path):
    processor = load_processor(str(save_text_base("llama", tmp_path)))
    turn = {"role": "user", "content": [{"type": "text", "text": "Is it clear?"}]}
    text = processor.apply_chat_template([turn], tokenize=False)
    assert text == "<|im_start|>user\nIs it clear?<|im_end|>\n"


def test_cases_with_images_are_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = save_text_base("llama", tmp_path / "base")
    (base / "model.safetensors").unlink()
    (base / "tokenizer.json").unlink()
    pictured = tmp_path / "pictured"
    write_phantom(pictured, cases=24, seed=0)
    message = r"24 cases of [\s\S]*have images, and the model '.*base' reads text alone"
    with pytest.raises(ConfigError, match=message):
        context_of(base, pictured / "votes.jsonl", "bradley_terry", tmp_path)
    with pytest.raises(ConfigError, match=message):
        evaluate_model(EvalRequest(str(base), "phantom", tmp_path / "out", data_root=str(pictured)))


def test_parts_depend_on_the_values_of_the_config():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    assert family_of(Gemma3TextConfig(**sizes)).parts.causal
    with pytest.raises(ConfigError, match="attention of Gemma3TextModel is not causal"):
        family_of(Gemma3TextConfig(**sizes, use_bidirectional_attention=True))

"""Reward models of other people, made here with the files and names that their tools write.

Skywork-VL-Reward-7B's card reads `value_head.safetensors` beside whole weights, as LLaMA-Factory's
`fix_valuehead_checkpoint` (src/llamafactory/train/callbacks.py) writes it for whole weights and for
adapters: `v_head.summary.weight` and `.bias`. ms-swift's `_patch_sequence_classification`
(swift/llm/model/patcher.py) adds `score`, one linear layer without a bias, which PEFT saves among
the adapter's tensors.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import save_tiny
from torch import nn
from transformers import AutoModelForImageTextToText

import medrm
from medrm.chat import answer_messages
from medrm.cli import main
from medrm.config.options import ModelOptions
from medrm.errors import AdapterError, ConfigError
from medrm.models import mapped_model
from medrm.models.adapter_config import read_adapter_config
from medrm.models.base_model import load_base
from medrm.models.mapped_model import mapped_folder
from medrm.models.processors import load_processor

ANSWERS = ("A lesion on the left.", "Nothing is seen", "No")
IMAGE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8))
VALUE_HEAD = {
    "weights": "theirs",
    "head_file": "value_head.safetensors",
    "head_weight": "v_head.summary.weight",
    "head_bias": "v_head.summary.bias",
    "dimensions": ["overall"],
    "dtype": "float32",
}
SCORE = {
    "weights": "theirs",
    "base": "base",
    "head_weight": "base_model.model.score.weight",
    "dimensions": ["accuracy", "overall"],
    "dtype": "float32",
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen2_5_vl", tmp_path_factory.mktemp("mapped") / "base")


def write(folder: Path, **settings: object) -> Path:
    path = folder / "mapping.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def value_head(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes and returns the head as TRL's `ValueHead` names it."""
    torch.manual_seed(5)
    weight, bias = torch.randn(1, 32), torch.randn(1)
    tensors = {"v_head.summary.weight": weight, "v_head.summary.bias": bias}
    save_file(tensors, folder / "value_head.safetensors", metadata={"format": "pt"})
    return weight, bias


def last_states(model: nn.Module, base: Path, template: str = "turn_end") -> torch.Tensor:
    """Returns what their code reads: `hidden_states[-1]` at each row's last attended token."""
    processor = load_processor(str(base))
    states = []
    for answer in ANSWERS:
        messages = answer_messages("What is seen?", 1, answer)
        text = processor.apply_chat_template(messages, tokenize=False)
        if template == "end_token":
            assert text.endswith("<|im_end|>\n")
            text = text[:-1]
        inputs = processor(text=[text], images=[[IMAGE]], return_tensors="pt")
        with torch.no_grad():
            output = model(**inputs, output_hidden_states=True)
        states.append(output.hidden_states[-1][0, int(inputs["attention_mask"].sum()) - 1])
    return torch.stack(states)


def lora_of(base: Path, folder: Path, **modules: object) -> nn.Module:
    """Saves and returns an adapter as PEFT writes it for other tools."""
    torch.manual_seed(7)
    stock = AutoModelForImageTextToText.from_pretrained(base)
    if modules:
        stock.score = nn.Linear(32, 2, bias=False)
    pattern = r".*language_model.*\.(q_proj|v_proj|down_proj)"
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.05, target_modules=pattern, **modules)
    model = get_peft_model(stock, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    return model.eval()


def scored(path: Path) -> np.ndarray:
    return medrm.load(path).score([IMAGE], "What is seen?", ANSWERS)


@pytest.mark.parametrize("template", ["turn_end", "end_token"])
def test_whole_weights_with_a_value_head_as_skywork_has_them(template, tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "theirs")
    weight, bias = value_head(tmp_path / "theirs")
    path = write(tmp_path, **VALUE_HEAD, reward_template=template)
    stock = AutoModelForImageTextToText.from_pretrained(tiny).eval()
    expected = last_states(stock, tiny, template) @ weight.T + bias
    assert np.abs(scored(path) - expected.numpy()).max() < 1e-5
    monkeypatch.delattr(mapped_model, "_read_head")  # what was mapped before is not read again
    contract = read_adapter_config(mapped_folder(path))
    assert (contract.trained, contract.head.kind) == ("head", "affine")


def test_an_adapter_of_llama_factory_with_its_value_head(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "base")
    model = lora_of(tiny, tmp_path / "theirs")
    weight, bias = value_head(tmp_path / "theirs")
    path = write(tmp_path, **VALUE_HEAD, base="base")
    expected = last_states(model, tiny) @ weight.T + bias
    assert np.abs(scored(path) - expected.numpy()).max() < 1e-5


@pytest.mark.slow
def test_an_adapter_of_ms_swift_is_read_merged_and_exported(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "base")
    theirs = tmp_path / "theirs"
    model = lora_of(tiny, theirs, modules_to_save=["score"])
    head = load_file(theirs / "adapter_model.safetensors")["base_model.model.score.weight"]
    expected = (last_states(model, tiny) @ head.T).numpy()
    path = write(tmp_path, **SCORE)
    assert np.abs(scored(path) - expected).max() < 1e-5

    # Another base is another model, not the cached one.
    base = tmp_path / "base" / "model.safetensors"
    unchanged = base.read_bytes()
    stock = load_file(base)
    save_file({n: t * 1.1 if "down_proj" in n else t for n, t in stock.items()}, base)
    assert np.abs(scored(path) - expected).max() > 1e-3
    base.write_bytes(unchanged)

    # With names of an older transformers.
    tensors = load_file(theirs / "adapter_model.safetensors")
    new, old = "base_model.model.model.language_model.", "base_model.model.model."
    save_file(
        {name.replace(new, old): tensor for name, tensor in tensors.items()},
        theirs / "adapter_model.safetensors",
    )
    with pytest.raises(AdapterError, match="layers that the base has not"):
        scored(path)
    renamed = write(tmp_path, **SCORE, rename={f"{old}layers.": f"{new}layers."})
    assert np.abs(scored(renamed) - expected).max() < 1e-5

    # What another one's model becomes is medrm's, and a sequence classifier is read again.
    for command in (["merge"], ["export", "--to", "vllm"], ["export", "--to", "seq_cls"]):
        output = tmp_path / command[-1]
        assert main([command[0], str(renamed), *command[1:], "--output", str(output)]) == 0
    assert np.abs(scored(tmp_path / "merge") - expected).max() < 1e-5
    load_base(ModelOptions(str(tmp_path / "merge")))
    back = write(
        tmp_path,
        weights="seq_cls",
        head_weight="score.weight",
        dimensions=SCORE["dimensions"],
        dtype="float32",
    )
    assert np.abs(scored(back) - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_file": "value_head.bin"}, "Pickles"),
        ({"head_weight": "v_head.summary.weights"}, r"Did you mean 'v_head.summary.weight'\?"),
        ({"dimensions": ["accuracy", "overall"]}, "for 2 dimensions"),
        ({"head_bias": "v_head.summary.weight"}, r"\[D\]"),
        ({"base": "base"}, "no LoRA adapter"),
        ({"pooling": "mean"}, "pooling is 'mean'"),
        ({"template": "x"}, "unknown key 'template'"),
        ({"dimensions": []}, "a name for each output"),
        ({"weights": "./elsewhere"}, "There is no folder"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message, tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "theirs")
    value_head(tmp_path / "theirs")
    with pytest.raises((AdapterError, ConfigError), match=message):
        medrm.load(write(tmp_path, **{**VALUE_HEAD, **changes}))


def test_weights_that_are_no_numbers_or_other_things_are_refused(tiny, tmp_path):
    theirs = tmp_path / "theirs"
    shutil.copytree(tiny, tmp_path / "base")
    lora_of(tiny, theirs, modules_to_save=["score"])
    file = theirs / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, SCORE["head_weight"]: torch.full((2, 32), torch.nan)}, file)
    with pytest.raises(AdapterError, match="finite"):
        medrm.load(write(tmp_path, **SCORE))
    save_file({**tensors, "base_model.model.lm_head.weight": torch.ones(2, 2)}, file)
    with pytest.raises(AdapterError, match=r"lm_head.weight, neither LoRA"):
        medrm.load(write(tmp_path, **SCORE))
    save_file(tensors, file)
    settings = json.loads((theirs / "adapter_config.json").read_text())
    (theirs / "adapter_config.json").write_text(json.dumps({**settings, "peft_type": "IA3"}))
    with pytest.raises(AdapterError, match="only LoRA"):
        medrm.load(write(tmp_path, **SCORE))
    with pytest.raises(ConfigError, match="of which model"):
        medrm.load(write(tmp_path, **{**SCORE, "base": None}))

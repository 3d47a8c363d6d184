"""Base models whose files are torn, or written by somebody who means no good."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from medrm.config.options import ModelOptions
from medrm.errors import ConfigError
from medrm.models import parts
from medrm.models.base_model import load_base, load_config
from medrm.models.families import family_of
from medrm.models.parts import auto_class, empty_model
from medrm.models.processors import load_processor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return Path(shutil.copytree(tiny_folder("llava"), tmp_path / "base"))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder, message, **options):
    with pytest.raises(ConfigError, match=message):
        load_base(ModelOptions(str(folder), **options))


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("name", [None, "other.safetensors.index.json"])
@pytest.mark.parametrize("shard", ["shard.bin", "../outside.safetensors", "/outside.safetensors"])
def test_an_index_names_safetensors_of_its_own_folder_alone(
    folder, name, shard, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    weights = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_file(weights, tmp_path / "outside.safetensors")
    torch.save({"x": Code()}, folder / "shard.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, shard)}
    (folder / (name or INDEX)).write_text(json.dumps(index))
    if name is not None:
        edit(folder / "config.json", transformers_weights=name)
    refused(folder, f"names '{shard}'; accepted are safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_sharded_checkpoint_loads(folder):
    model = load_base(ModelOptions(str(folder)))
    shutil.rmtree(folder)
    model.save_pretrained(folder, max_shard_size="40KB")
    assert (folder / INDEX).exists()
    again = load_base(ModelOptions(str(folder)))
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(before, after) for before, after in pairs)


def test_an_adapter_beside_the_weights_is_refused(folder):
    target = "model.language_model.layers.0.self_attn.q_proj"
    model = load_base(ModelOptions(str(folder)))
    get_peft_model(model, LoraConfig(target_modules=[target])).save_pretrained(folder)
    refused(folder, r"holds an adapter \(adapter_config.json\)")
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match="Give the model that the adapter was trained on"):
        load_config(str(folder))


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "unheard-of"])
def test_quantised_weights_are_refused(folder, method):
    edit(folder / "config.json", quantization_config={"quant_method": method, "load_in_4bit": True})
    with pytest.raises(ConfigError, match=r"are quantised\. Give the checkpoint that was not"):
        load_config(str(folder))


def test_attention_from_the_hub_is_code(folder, tiny_folder):
    refused(folder, "is code from the hub", attn_implementation="somebody/kernel")
    refused(folder, "is code from the hub", attn_implementation="paged|somebody/kernel")
    with pytest.raises(ConfigError, match="cannot be used here") as error:
        load_base(
            ModelOptions(str(folder), attn_implementation="somebody/kernel", trust_remote_code=True)
        )
    assert "code from the hub" not in str(error.value)


def test_code_and_attention_that_a_config_names_are_left_alone(folder, monkeypatch):
    (folder / "own.py").write_text("raise SystemExit('ran')")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit(
        folder / "config.json",
        auto_map={"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model"},
        attn_implementation="somebody/kernel",
        _attn_implementation="somebody/kernel",
        text_config={**text, "_attn_implementation": "somebody/kernel"},
    )
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.T", "own.T"]})
    model = load_base(ModelOptions(str(folder), shared_prefix="off"))
    assert type(model).__module__.startswith("transformers.")
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    assert type(load_processor(str(folder)).tokenizer).__module__.startswith("transformers.")


AUTO_CLASSES = ("AutoModelForImageTextToText", "AutoModelForCausalLM")


def code_of_its_own(path, source, **changes):
    """Writes the code of a model, and the config of a tiny text-only type that names it."""
    path.mkdir()
    (path / "own.py").write_text(source)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 32}
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes, **changes}))
    return str(path)


@pytest.mark.parametrize("names", [AUTO_CLASSES, AUTO_CLASSES[:1], AUTO_CLASSES[1:]])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_stock_type_runs_no_code_that_its_config_names(names, trusted, tmp_path):
    auto_map = dict.fromkeys(names, "own.Model")
    source = "raise SystemExit('ran')"
    config = load_config(
        code_of_its_own(tmp_path / "llama", source, auto_map=auto_map), trust_remote_code=trusted
    )
    assert auto_class(config) is AutoModelForCausalLM
    assert type(empty_model(config)) is LlamaForCausalLM
    assert not family_of(config).parts.takes_images


def test_code_that_was_trusted_is_of_the_configs_revision(tmp_path, monkeypatch):
    source = """
from transformers import LlamaConfig, LlamaForCausalLM
class Config(LlamaConfig):
    model_type = "own"
class Model(LlamaForCausalLM):
    config_class = Config
"""
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    config = load_config(
        code_of_its_own(tmp_path / "own", source, model_type="own", auto_map=auto_map),
        trust_remote_code=True,
    )
    config._commit_hash = "a" * 40
    revisions = []
    real = parts.get_class_from_dynamic_module

    def get_class(*words, revision=None):
        revisions.append(revision)
        return real(*words)

    monkeypatch.setattr(parts, "get_class_from_dynamic_module", get_class)
    assert type(empty_model(config)).__name__ == "Model"
    assert revisions == ["a" * 40]


@pytest.mark.parametrize(
    "data", [b"", b"<html>Not found</html>", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_weights_that_are_none_are_refused(folder, data):
    (folder / WEIGHTS).write_bytes(data)
    refused(folder, "cannot be loaded: SafetensorError")


def test_torn_weights_are_refused(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])
    refused(folder, "cannot be loaded: SafetensorError")


def test_a_weight_of_another_shape_is_named(folder):
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if "down_proj" in name)
    tensors[name] = tensors[name][:1].contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    refused(folder, r"1 weights are missing or of another shape, such as \S+down_proj.weight\.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float999"}, "float999"),
        ({"text_config": 5}, "'text_config' with value 5"),
        ({"vision_feature_layer": "x"}, "'vision_feature_layer' with value 'x'"),
        ({"projector_hidden_act": "unheard-of"}, "KeyError: 'unheard-of'"),
        ({"quantization_config": 3}, "has no attribute"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(folder, changes, message):
    edit(folder / "config.json", **changes)
    refused(folder, message)


def test_an_index_without_a_map_is_refused(folder):
    (folder / INDEX).write_text("{}")
    refused(folder, "KeyError: 'weight_map'")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("processor_config.json", "{"),
        ("processor_config.json", "[]"),
        ("processor_config.json", '{"processor_class": 5}'),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", "[]"),
    ],
)
def test_a_processor_that_makes_no_sense_is_refused(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises(ConfigError, match=r"The processor of .* cannot be loaded: "):
        load_processor(str(folder))


@pytest.mark.parametrize("device", ["tpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(device):
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used here"):
        load_base(ModelOptions("./nowhere"), device)

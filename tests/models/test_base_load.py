"""Base models and processors: what loads, what is refused, and how clearly."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from rows import batch
from safetensors.torch import load_file, save_file
from tiny import PROCESSORS, TINY_FAMILIES, tiny_image
from transformers import BertConfig, PaliGemmaConfig
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)

from medrm.config.options import ModelOptions
from medrm.errors import ConfigError
from medrm.models.base_model import load_base, load_config, resolve_model
from medrm.models.families import FAMILIES, family_of
from medrm.models.prefix_sharing.batch import sharing_problem
from medrm.models.processors import load_processor

CONNECTORS = dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), ())
CONNECTORS |= dict.fromkeys(("idefics3", "smolvlm"), ("model.connector",))


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_family_and_its_modules_are_found(family, tiny_folder):
    model = load_base(ModelOptions(str(tiny_folder(family))))
    recognised = family_of(model.config)
    assert recognised.name == family
    parts = recognised.parts
    assert model.get_submodule(parts.decoder) is model.get_decoder()
    assert model.get_submodule(parts.vision) is model.get_encoder(modality="image")
    assert model.get_submodule(parts.embeddings) is model.get_input_embeddings()
    assert model.get_submodule(parts.lm_head) is model.get_output_embeddings()
    assert parts.backbone == "model"
    assert parts.connectors == CONNECTORS.get(family, ("model.multi_modal_projector",))
    modules = [parts.decoder, parts.vision, *parts.connectors]
    inside = [
        n for n, _ in model.named_parameters() if n.startswith(tuple(f"{p}." for p in modules))
    ]
    outside = {n for n, _ in model.named_parameters()} - set(inside)
    assert outside <= {"lm_head.weight", "model.image_newline"}
    assert not model.training
    assert model.dtype == torch.float32


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_processor_is_the_saved_one(family, tiny_folder, tmp_path):
    processor = load_processor(str(tiny_folder(family)))
    assert type(processor).__name__ == PROCESSORS[family]
    processor.save_pretrained(tmp_path)
    again = load_processor(str(tmp_path))
    first, second = batch(processor, family), batch(again, family)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_older_checkpoint_names_no_processor_class(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("qwen2_vl"), tmp_path / "old")
    settings = json.loads((folder / "processor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings["image_processor"]))
    (folder / "processor_config.json").unlink()
    processor = load_processor(str(folder))
    assert type(processor).__name__ == "Qwen2VLProcessor"
    processor(text=["<|image_pad|>"], images=[tiny_image()], return_tensors="pt")


def test_an_unknown_image_processor_is_refused(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder("qwen2_vl"), tmp_path / "base")
    path = tmp_path / "base" / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["image_processor_type"] = "NoSuchProcessor"
    path.write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="names the image processor 'NoSuchProcessor'"):
        load_processor(str(tmp_path / "base"))


def test_pixel_limits_scale_the_image(tiny_folder):
    folder = str(tiny_folder("qwen2_5_vl"))
    image = tiny_image(0, 300, 300)

    def patches(**limits):
        images = load_processor(folder, **limits).image_processor
        return len(images(images=[image], return_tensors="pt")["pixel_values"])

    assert patches(min_pixels=28 * 28, max_pixels=28 * 28) == 4
    assert patches(max_pixels=28 * 28 * 9) == 36
    assert patches(min_pixels=28 * 28 * 100, max_pixels=28 * 28 * 120) >= 400
    with pytest.raises(ConfigError, match="max_pixels cannot be set"):
        load_processor(str(tiny_folder("llava")), max_pixels=100)


def test_an_unknown_family_says_what_to_add():
    with pytest.raises(ConfigError, match=r"'bert'[\s\S]*FAMILIES in medrm/models/families.py"):
        family_of(BertConfig())


def test_an_unknown_processor_class_names_the_file_and_the_nearest(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("llava"), tmp_path / "adapter")
    (folder / "config.json").unlink()  # as an adapter folder, where no type says what is right
    for name in ("processor_config.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("LlavaProcessor", "LavaProcessor"))
    with pytest.raises(ConfigError, match=r"processor_config.json names[\s\S]*LlavaProcessor"):
        load_processor(str(folder))


def test_a_decoder_that_sees_what_follows_is_no_judge():
    config = PaliGemmaConfig()
    family = family_of(config)
    assert not family.parts.causal
    assert set(family.unsupported) == {"judge_sft", "judge_dpo", "judge_grpo"}
    assert "answers would see each other" in str(sharing_problem(config))


def test_an_entry_names_a_part_that_the_model_does_not(tiny_folder, monkeypatch):
    config = load_config(str(tiny_folder("llava_onevision")))
    monkeypatch.setitem(FAMILIES, "llava_onevision", {"lm_head": None, "backbone": "model"})
    assert family_of(config).parts.lm_head is None
    monkeypatch.setitem(FAMILIES, "llava_onevision", {"vision": "model.language_model"})
    assert family_of(config).parts.vision == "model.language_model"


def test_the_video_stand_in_has_the_name_that_was_saved(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("llava_onevision"), tmp_path / "base")
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["video_processor"]["video_processor_type"] = "ToyVideoProcessor"
    path.write_text(json.dumps(settings))
    processor = load_processor(str(folder))
    assert type(processor.video_processor).__name__ == "ToyVideoProcessor"
    again = pickle.loads(pickle.dumps(processor))  # as data workers get it
    assert again.video_processor.to_dict() == processor.video_processor.to_dict()


def test_an_unknown_family_is_refused_before_weights_load(tmp_path):
    BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="decoder of the base model's model_type 'bert' was not"):
        load_base(ModelOptions(str(tmp_path)))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_missing_folder_is_refused(name):
    with pytest.raises(ConfigError, match="There is no folder"):
        resolve_model(name)


def test_what_lies_there_and_is_no_model_is_refused(tmp_path):
    (tmp_path / "file").write_text("{}")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"is a file\. Give a folder with a whole model"):
        load_config(str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"is a folder without config\.json"):
        load_config(str(tmp_path / "folder"))


def test_a_hub_id_while_offline_is_refused():
    with pytest.raises(ConfigError, match="while offline"):
        load_config("Qwen/Qwen2.5-VL-7B-Instruct")
    with pytest.raises(ConfigError, match="while offline"):
        load_processor("Qwen/Qwen2.5-VL-7B-Instruct")


def test_a_checkpoint_with_a_missing_weight_is_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("llava"), tmp_path / "torn")
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if "down_proj" in name)]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 weights are missing[\s\S]*down_proj"):
        load_base(ModelOptions(str(folder)))


def test_pickled_weights_are_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("llava"), tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="safetensors"):
        load_base(ModelOptions(str(folder)))


def test_dropout_is_off_even_in_training_mode(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("llava"), tmp_path / "dropout")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["attention_dropout"] = 0.5
    config["vision_config"]["attention_dropout"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    model = load_base(ModelOptions(str(folder))).train()
    inputs = batch(load_processor(str(folder)), "llava")
    with torch.no_grad():
        first, second = (model(**inputs).logits.numpy() for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_weights_are_whole_although_zero3_is_on(tiny_folder):
    """Otherwise every parameter has shape (0,), and nothing runs before the engine is made."""
    pytest.importorskip("deepspeed")
    folder = str(tiny_folder("llava"))
    settings = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    try:
        model = load_base(ModelOptions(folder))
        assert is_deepspeed_zero3_enabled()
    finally:
        unset_hf_deepspeed_config()
    assert settings.is_zero3()
    assert all(parameter.numel() > 0 for parameter in model.parameters())

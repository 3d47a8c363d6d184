"""The adapter folder: exact round trips, and refusal of whatever does not belong together."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import pytest
import torch
from peft import PeftModel
from rows import SPEC, batch, reward_model, rewards, trained
from safetensors.torch import load_file, save_file
from tiny import TINY_FAMILIES

import medrm
from medrm.chat import answer_messages
from medrm.chat_template import render
from medrm.config.options import AdapterOptions, ModelOptions
from medrm.errors import AdapterError, ConfigError
from medrm.integrity import MANIFEST
from medrm.models.adapter import load_adapter, save_adapter
from medrm.models.adapter_config import (
    new_adapter_config,
    read_adapter_config,
    template_digest,
    update_adapter_config,
)
from medrm.models.adapter_files import check_undamaged
from medrm.models.base_model import load_base
from medrm.models.base_reference import weights_digest
from medrm.models.reward_model import head_of
from medrm.models.trainable import freeze_backbone

SMALL = AdapterOptions(lora_r=4, lora_alpha=8)


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_saved_rewards_are_bit_identical(family, tiny_folder, tmp_path):
    base = tiny_folder(family)
    model, processor, contract = trained(base, family)
    inputs = batch(processor, family)
    expected = rewards(model, inputs)
    folder = base.parent / f"adapter-{family}"
    save_adapter(folder, model, processor, contract)
    again, processor_again, contract_again = load_adapter(folder)
    inputs_again = batch(processor_again, family)
    assert inputs.keys() == inputs_again.keys()
    assert torch.equal(rewards(again, inputs_again), expected)
    assert torch.equal(again(**inputs).tie_logits, model(**inputs).tie_logits)
    assert contract_again == contract
    assert not any(p.requires_grad for p in again.parameters())

    # On the stock model, with plain PEFT: the same language model (the head needs medrm).
    stock = PeftModel.from_pretrained(load_base(ModelOptions(str(base))), str(folder))
    with torch.no_grad():
        stock_states = stock.get_base_model().model(**inputs, use_cache=False).last_hidden_state
        loaded_states = again.get_base_model().model(**inputs, use_cache=False).last_hidden_state
    assert torch.equal(stock_states, loaded_states)

    for path in folder.rglob("*"):
        assert str(base.parent).encode() not in path.read_bytes(), f"{path.name} tells a local path"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        base.name
    )


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("qwen2_5_vl", {"use_dora": True}),
        ("llava_onevision", {"use_rslora": True}),
        ("qwen2_5_vl", {"lora_vision": True}),
        ("gemma3", {"lora_vision": True}),
        ("internvl", {"use_peft": False}),
        ("qwen2_5_vl", {"use_peft": False}),
        ("mllama", {"use_peft": False}),
    ],
)
def test_other_ways_of_training_round_trip(family, change, tiny_folder, tmp_path):
    adapter = dataclasses.replace(SMALL, **change)
    model, processor, contract = trained(tiny_folder(family), family, adapter)
    folder = tiny_folder(family).parent / f"{family}-{next(iter(change))}"
    save_adapter(folder, model, processor, contract)
    again, _, _ = load_adapter(folder)
    inputs = batch(processor, family)
    assert torch.equal(rewards(again, inputs), rewards(model, inputs))
    assert contract.trained == ("full" if "use_peft" in change else "lora")


def test_full_fine_tuning_saves_a_stock_checkpoint(tiny_folder, tmp_path):
    model, processor, contract = trained(
        tiny_folder("gemma3"), "gemma3", AdapterOptions(use_peft=False)
    )
    save_adapter(tmp_path, model, processor, contract)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForConditionalGeneration"]
    stock = load_base(ModelOptions(str(tmp_path)))
    assert torch.equal(stock.lm_head.weight, model.lm_head.weight)
    assert not any(name.startswith("score") for name in stock.state_dict())


def test_frozen_probe_saves_the_head_alone(tiny_folder):
    base = tiny_folder("smolvlm")
    model, processor = reward_model(base)
    freeze_backbone(model)
    contract = new_adapter_config(
        model, processor, ModelOptions(str(base)), "bradley_terry", "reward"
    )
    assert contract.trained == "head"
    folder = base.parent / "probe"
    save_adapter(folder, model, processor, contract)
    again, _, _ = load_adapter(folder)
    inputs = batch(processor, "smolvlm")
    assert torch.equal(rewards(again, inputs), rewards(model, inputs))
    assert not (folder / "model.safetensors").exists()


def test_bf16_base_round_trips(tiny_folder):
    base = tiny_folder("qwen3_vl")
    model, processor, contract = trained(base, "qwen3_vl", dtype="bfloat16")
    assert contract.dtype == "bfloat16"
    assert all(p.dtype == torch.float32 for p in head_of(model).parameters())
    folder = base.parent / "bf16"
    save_adapter(folder, model, processor, contract)
    again, _, _ = load_adapter(folder)
    inputs = batch(processor, "qwen3_vl")
    assert torch.equal(rewards(again, inputs), rewards(model, inputs))


def test_the_attention_of_the_training_is_that_of_scoring(tiny_folder):
    base = tiny_folder("qwen2_5_vl")
    model, processor, contract = trained(base, "qwen2_5_vl", attn_implementation="eager")
    folder = base.parent / "eager"
    save_adapter(folder, model, processor, contract)
    again, _, _ = load_adapter(folder)
    inputs = batch(processor, "qwen2_5_vl")
    assert again.config._attn_implementation == "eager"
    assert torch.equal(rewards(again, inputs), rewards(model, inputs))
    assert medrm.load(folder, attn_implementation="sdpa").model.config._attn_implementation == (
        "sdpa"
    )
    with pytest.raises(ConfigError, match=r"cannot be used here.*attn_implementation='sdpa'"):
        load_adapter(folder, attn_implementation="flash_attention_3")


def _unseal(folder):
    """Leaves a folder as an earlier version or other software writes it: without a manifest."""
    (folder / MANIFEST).unlink(missing_ok=True)


def _edit(folder, **changes):
    path = folder / "medrm.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    _unseal(folder)


def _rewrite(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    names = json.dumps(read_adapter_config(folder).dimensions)
    save_file(tensors, path, metadata={"format": "pt", "dimensions": names})
    _unseal(folder)


def test_a_missing_head_is_refused(saved):
    def drop(tensors):
        for name in [name for name in tensors if ".score." in name]:
            del tensors[name]

    _rewrite(saved, drop)
    with pytest.raises(AdapterError, match=r"score.layers.0.weight is missing"):
        load_adapter(saved)


def test_a_missing_and_an_unexpected_tensor_are_reported_together(saved):
    def rename(tensors):
        name = next(name for name in tensors if "lora_A" in name)
        tensors["other"] = tensors.pop(name)

    _rewrite(saved, rename)
    with pytest.raises(AdapterError, match=r"lora_A.weight is missing[\s\S]*other is not expected"):
        load_adapter(saved)


def test_a_head_of_another_shape_is_refused(saved):
    def cut(tensors):
        name = "base_model.model.score.layers.2.weight"
        tensors[name] = tensors[name][:1].clone()

    _rewrite(saved, cut)
    with pytest.raises(AdapterError, match=r"has shape \[1, 32\], expected \[2, 32\]"):
        load_adapter(saved)


def test_other_dimensions_are_refused(saved):
    _edit(saved, dimensions=["overall", "accuracy"])
    with pytest.raises(AdapterError, match="saved for the dimensions"):
        load_adapter(saved)


def test_another_chat_template_is_refused(saved):
    path = saved / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "doctor"))
    _unseal(saved)
    with pytest.raises(AdapterError, match="chat template"):
        load_adapter(saved)


def test_a_template_that_writes_the_date_gives_the_same_prompt_every_day(saved):
    """An adapter of an earlier version, which recorded the template as it was published."""
    path = saved / "chat_template.jinja"
    path.write_text("{{ strftime_now('%d %B %Y') }}" + path.read_text())
    _edit(saved, chat_template_digest=template_digest(path.read_text()))
    _, processor, _ = load_adapter(saved)
    assert "strftime_now" not in processor.chat_template
    text = render(processor, answer_messages("What?", 0, "Yes"), "turn_end")
    assert text.startswith("26 July 2024")


@pytest.mark.parametrize("file", ["medrm.json", "adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_missing_or_torn_file_is_refused(saved, file, damage):
    if damage == "missing":
        (saved / file).unlink()
    else:
        (saved / file).write_bytes((saved / file).read_bytes()[:100])
    with pytest.raises(AdapterError, match=file):
        load_adapter(saved)


def test_missing_and_unknown_keys_of_the_contract_are_refused(saved):
    record = json.loads((saved / "medrm.json").read_text())
    del record["pooling"]
    (saved / "medrm.json").write_text(json.dumps(record | {"famly": "llava"}))
    with pytest.raises(AdapterError, match=r"pooling is missing[\s\S]*famly is not known"):
        read_adapter_config(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reward_template": "turn"},
            '"turn"; accepted: "turn_end", "end_token", "generation_prompt"',
        ),
        ({"trained": None}, 'trained is null; accepted: "lora", "full", "head"'),
        ({"readout": "verdict"}, 'accepted: "reward"'),
        ({"pooling": ["last"]}, 'accepted: "last_attended"'),
        ({"quantisation": "nf5"}, 'accepted: "nf4", "int8", null'),
        ({"dtype": "load"}, 'accepted: "float32", "bfloat16", "float16"'),
        ({"max_length": "512"}, "accepted: a whole number, null"),
        ({"max_length": True}, "accepted: a whole number, null"),
        ({"base_model": 3}, "base_model is 3; accepted: text"),
        ({"training_pixel_digests": "ab"}, "accepted: a list of: text"),
        ({"score_statistics": {"accuracy": 1}}, "accepted: an object"),
        ({"dimensions": "accuracy"}, 'dimensions is "accuracy"; accepted: a list of: text'),
        ({"head": "mlp"}, "accepted: an object, null"),
    ],
)
def test_wrong_values_of_the_contract_are_refused(saved, changes, message):
    _edit(saved, **changes)
    with pytest.raises(AdapterError, match=re.escape(message) if '"' in message else message):
        read_adapter_config(saved)


@pytest.mark.parametrize(("name", "value"), [("kind", "mpl"), ("ties", 1), ("hidden_size", "32")])
def test_wrong_values_of_the_head_are_refused(saved, name, value):
    head = json.loads((saved / "medrm.json").read_text())["head"]
    _edit(saved, head=head | {name: value})
    with pytest.raises(AdapterError, match=f"{name} is .*accepted: "):
        read_adapter_config(saved)


def test_statistics_are_added_to_a_saved_contract(saved):
    before = read_adapter_config(saved)
    statistics = {"accuracy": {"mean": 0.5, "std": 1.0}}
    update_adapter_config(saved, score_statistics=statistics)
    assert read_adapter_config(saved) == dataclasses.replace(before, score_statistics=statistics)
    check_undamaged(saved)


def test_another_family_is_refused(saved):
    _edit(saved, family="mllama")
    with pytest.raises(AdapterError, match="records the family 'mllama'"):
        load_adapter(saved)


def test_the_shipped_base_is_recorded_under_its_name(tiny_folder, tmp_path, monkeypatch):
    base = tiny_folder("qwen2_5_vl")
    monkeypatch.setattr("medrm.models.base_model.asset", lambda relative: base)
    model, processor = reward_model("phantom-base")
    freeze_backbone(model)
    options = ModelOptions("phantom-base")
    save_adapter(
        tmp_path,
        model,
        processor,
        new_adapter_config(model, processor, options, "bradley_terry", "reward"),
    )
    assert read_adapter_config(tmp_path).base_model == "phantom-base"
    inputs = batch(processor, "qwen2_5_vl")
    assert torch.equal(rewards(load_adapter(tmp_path)[0], inputs), rewards(model, inputs))


def test_a_hub_base_is_recorded_with_its_commit(tiny_folder, tmp_path, monkeypatch):
    commit = "0123456789" * 4
    cached = tmp_path / "models--clinic--base"
    shutil.copytree(tiny_folder("qwen2_5_vl"), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model, processor, contract = trained("clinic/base", "qwen2_5_vl")
    assert (contract.base_model, contract.base_revision) == ("clinic/base", commit)
    assert contract.base_digest == weights_digest(tiny_folder("qwen2_5_vl"))
    save_adapter(tmp_path / "adapter", model, processor, contract)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("clinic/base", commit)
    inputs = batch(processor, "qwen2_5_vl")
    again, _, _ = load_adapter(tmp_path / "adapter")
    assert torch.equal(rewards(again, inputs), rewards(model, inputs))


def test_contract_survives_json_with_every_field(saved):
    contract = dataclasses.replace(
        read_adapter_config(saved),
        score_statistics={"accuracy": {"mean": 0.1, "std": 2.5}},
        training_data_digest="ab" * 32,
        training_pixel_digests=("cd" * 32,),
        max_length=512,
        min_pixels=3136,
    )
    model, processor = reward_model(saved.parent / "llava-32")
    save_adapter(saved.parent / "again", freeze_backbone(model), processor, contract)
    assert read_adapter_config(saved.parent / "again") == contract
    assert contract.dimensions == SPEC.dimensions


def test_loading_leaves_the_global_generator_alone(saved):
    state = torch.random.get_rng_state()
    load_adapter(saved)
    assert torch.equal(state, torch.random.get_rng_state())


def test_gathered_weights_are_saved_in_place_of_the_models_own(tiny_folder):
    """Under ZeRO-3 the model holds empty tensors and the gathered state is passed in."""
    base = tiny_folder("llava")
    model, processor, contract = trained(base, "llava")
    inputs = batch(processor, "llava")
    expected = rewards(model, inputs)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.zero_()
    save_adapter(base.parent / "gathered", model, processor, contract, state)
    again, _, _ = load_adapter(base.parent / "gathered")
    assert torch.equal(rewards(again, inputs), expected)

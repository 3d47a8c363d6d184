"""`medrm export`: what vLLM's loader, PEFT and transformers' sequence classifiers take."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from models.rows import SPEC, batch, rewards, trained
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import save_tiny
from tiny_text import save_text_base
from transformers import AutoModelForImageTextToText, AutoModelForSequenceClassification

from medrm.cli import main
from medrm.config.options import AdapterOptions
from medrm.models.adapter import load_adapter, save_adapter
from medrm.models.reward_model import HeadSpec
from medrm.schema import DIMENSIONS

LINEAR = dataclasses.replace(SPEC, kind="linear")
LORA = AdapterOptions(lora_r=4, lora_alpha=8)

Export = Callable[..., Path]


@pytest.fixture
def export(tmp_path: Path) -> Export:
    """Exports a saved model by the command."""

    def run(folder: Path, to: str, *options: str) -> Path:
        output = tmp_path / to
        assert main(["export", str(folder), "--to", to, "--output", str(output), *options]) == 0
        return output

    return run


def save(
    base: Path,
    family: str,
    lora: AdapterOptions = LORA,
    spec: HeadSpec = LINEAR,
    name: str = "adapter",
) -> Path:
    folder = base.parent / name
    model, processor, contract = trained(base, family, lora, spec)
    save_adapter(folder, model, processor, contract)
    return folder


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of a family whose sequence classifier transformers has."""
    return save(save_tiny("gemma3", tmp_path_factory.mktemp("gemma") / "base"), "gemma3")


def scored(folder: Path, family: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Returns a batch and medrm's rewards of it."""
    model, processor, _ = load_adapter(folder)
    inputs = batch(processor, family)
    return inputs, rewards(model, inputs)


def accepted_by_vllm(folder: Path, max_rank: int, max_labels: int) -> dict[str, Any]:
    """Returns an adapter's settings where vLLM 0.33's rules take it, written out independently."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert set(config.get("modules_to_save") or ()) <= {"score", "classifier"}
    assert not config["use_dora"]
    assert config["bias"] == "none"
    assert not config["lora_bias"]
    assert config["init_lora_weights"] is True
    assert max([config["r"], *config["rank_pattern"].values()]) <= max_rank
    with safe_open(folder / "adapter_model.safetensors", framework="np") as weights:
        for name in weights.keys():  # noqa: SIM118
            assert name.startswith("base_model.model."), name
            if name.endswith((".lora_A.weight", ".lora_B.weight")):
                assert ".score." not in name
                continue
            assert name == "base_model.model.score.weight"
            rows, _ = weights.get_slice(name).get_shape()  # 2-D
            assert rows <= max_labels
    return config


def test_vllm_takes_an_adapter_with_its_linear_head(root, export):
    folder = root / "tests/golden/reward_adapter"
    output = export(folder, "vllm")
    command = (output / "README.md").read_text()
    rank = int(re.search(r"--max-lora-rank (\d+)", command)[1])
    labels = int(re.search(r"--max-lora-cls-labels (\d+)", command)[1])
    config = accepted_by_vllm(output, rank, labels)
    assert config["modules_to_save"] == ["score"]
    for words in ("--runner pooling --convert classify --enable-lora", "--lora-dtype float32"):
        assert words in command
    contract = json.loads((folder / "medrm.json").read_text())
    shown = contract["reward_template"] == "generation_prompt"
    assert f'"add_generation_prompt": {"true" if shown else "false"}' in command
    record = json.loads((output / "export.json").read_text())
    assert list(record["id2label"].values()) == contract["dimensions"]
    assert labels == len(contract["dimensions"])
    before, after = (load_file(f / "adapter_model.safetensors") for f in (folder, output))
    head = before.pop("base_model.model.score.layers.0.weight")
    assert torch.equal(after.pop("base_model.model.score.weight"), head)
    before.pop("base_model.model.score.tie_logit", None)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(AssertionError):  # the adapter as it is saved is not taken
        accepted_by_vllm(folder, rank, labels)


@pytest.mark.parametrize(
    ("family", "lora", "reason"),
    [
        ("qwen2_5_vl", AdapterOptions(lora_r=4, lora_alpha=8, use_dora=True), "DoRA"),
        ("llava_onevision", LORA, "llava_onevision takes none"),
    ],
)
def test_where_vllm_takes_no_adapter_it_is_merged(family, lora, reason, tmp_path, export):
    folder = save(save_tiny(family, tmp_path / "base"), family, lora)
    output = export(folder, "vllm")
    assert reason in (output / "README.md").read_text()
    assert json.loads((output / "export.json").read_text())["form"] == "seq_cls"
    assert not (output / "adapter_config.json").exists()
    assert load_file(output / "model.safetensors")["score.weight"].shape == (2, 32)


def test_vision_adapters_and_judges_go_to_vllm_as_they_are(root, tmp_path, export):
    lora = AdapterOptions(lora_r=20, lora_alpha=8, lora_vision=True)
    folder = save(save_tiny("qwen2_5_vl", tmp_path / "base"), "qwen2_5_vl", lora)
    command = (export(folder, "vllm") / "README.md").read_text()
    assert "--max-lora-rank 32" in command
    assert "--enable-tower-connector-lora" in command
    shutil.rmtree(tmp_path / "vllm")
    output = export(root / "tests/golden/0.3/judge_adapter", "vllm")
    assert not accepted_by_vllm(output, 512, 0)["modules_to_save"]
    assert "--runner" not in (output / "README.md").read_text()


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_peft_loads_the_lora_and_the_readmes_lines_give_the_rewards(
    kind, tmp_path, export, monkeypatch
):
    base = save_tiny("qwen2_5_vl", tmp_path / "base")
    spec = dataclasses.replace(LINEAR, kind=kind)
    folder = save(base, "qwen2_5_vl", LORA, spec)
    inputs, expected = scored(folder, "qwen2_5_vl")
    output = export(folder, "peft")
    code = re.search(r"```python\n(.*?)```", (output / "README.md").read_text(), re.S)[1]
    code = code.replace('from_pretrained("base"', f"from_pretrained({str(base)!r}")
    # Only the processor needs torchvision.
    code = re.sub(r"(?m)^processor = .*$", "", code)
    monkeypatch.chdir(output)
    names: dict[str, Any] = {}
    exec(code, names)
    with torch.no_grad():
        given = names["rewards"](inputs)
    assert isinstance(names["model"], peft.PeftModel)
    assert (given - expected).abs().max() < 1e-5
    status = peft.PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(base), output
    ).get_base_model()
    assert "lora_A" in "".join(name for name, _ in status.named_parameters())


def test_the_readme_of_a_base_without_images_loads_it(tmp_path, export, monkeypatch):
    base = save_text_base("granite", tmp_path / "base")
    tokens = {"input_ids": torch.tensor([[1, 2, 3], [3, 2, 1]])}
    monkeypatch.setattr(
        "models.rows.batch", lambda *_: tokens | {"attention_mask": torch.ones(2, 3, dtype=int)}
    )
    folder = save(base, "granite")
    output = export(folder, "peft")
    code = re.search(r"```python\n(.*?)```", (output / "README.md").read_text(), re.S)[1]
    monkeypatch.chdir(output)
    names: dict[str, Any] = {}
    exec(code.replace('from_pretrained("base"', f"from_pretrained({str(base)!r}"), names)
    inputs = names["processor"]("Is it clear?", return_tensors="pt")
    with torch.no_grad():
        given = names["rewards"](inputs)
    assert (given - rewards(load_adapter(folder)[0], inputs)).abs().max() < 1e-5


@pytest.mark.parametrize("count", [3, 6])
def test_a_sequence_classifier_of_transformers_gives_the_rewards(count, gemma, export):
    """Both configs say how many outputs there are: transformers builds some heads by the inner."""
    dimensions = DIMENSIONS[:count]
    spec = dataclasses.replace(LINEAR, dimensions=dimensions, tied_dimensions=())
    folder = save(gemma.parent / "base", "gemma3", spec=spec, name=f"adapter_{count}")
    inputs, expected = scored(folder, "gemma3")
    output = export(folder, "seq_cls")
    model, info = AutoModelForSequenceClassification.from_pretrained(
        output, output_loading_info=True
    )
    assert type(model).__name__ == "Gemma3ForSequenceClassification"
    assert not info["missing_keys"]
    assert model.config is not model.config.get_text_config()
    for config in (model.config, model.config.get_text_config()):
        assert config.num_labels == count
        assert config.id2label == dict(enumerate(dimensions))
        assert config.label2id == {name: index for index, name in enumerate(dimensions)}
        assert config.problem_type == "regression"
    with torch.no_grad():
        given = model.eval()(**inputs).logits
    assert np.abs((given - expected).numpy()).max() < 1e-5


def test_what_has_no_such_form_is_refused(root, gemma, tmp_path, capsys):
    def refused(folder: Path, to: str) -> str:
        capsys.readouterr()
        arguments = ["export", str(folder), "--to", to, "--output", str(tmp_path / "out")]
        assert main(arguments) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    mlp = save(save_tiny("mllama", tmp_path / "base"), "mllama", spec=SPEC)
    for to in ("vllm", "seq_cls"):
        message = refused(mlp, to)
        assert ("given up" if to == "vllm" else "--head linear") in message
    assert "is a judge" in refused(root / "tests/golden/0.3/judge_adapter", "seq_cls")
    merged = tmp_path / "merged"
    assert main(["merge", str(gemma), "--output", str(merged)]) == 0
    assert "no LoRA" in refused(merged, "peft")

"""`medrm merge`: whole weights that score as the adapter, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models.rows import trained
from PIL import Image
from tiny import save_tiny
from transformers import AutoModelForImageTextToText

import medrm
from medrm.cli import main
from medrm.config.options import AdapterOptions, ModelOptions
from medrm.models import adapter_files
from medrm.models.adapter import load_adapter, save_adapter
from medrm.models.adapter_config import new_adapter_config, read_adapter_config
from medrm.models.processors import load_processor
from medrm.models.trainable import freeze_backbone
from medrm.pipeline import merge

NEEDS_BITSANDBYTES = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
ANSWERS = ("A lesion on the left.", "Nothing is seen", "No")
IMAGE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """Returns what was printed since the last time."""
    return "".join(capsys.readouterr())


def rewards_of(folder: Path) -> np.ndarray:
    return medrm.load(folder).score([IMAGE], "What is seen?", ANSWERS)


def save(base: Path, family: str, lora: AdapterOptions | None = None, **options: object) -> Path:
    model, processor, contract = trained(base, family, lora, **options)
    folder = base.parent / "adapter"
    save_adapter(folder, model, processor, contract)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the decoder and the vision tower, with an MLP head."""
    base = save_tiny("llava", tmp_path_factory.mktemp("llava") / "base")
    return save(base, "llava", AdapterOptions(lora_r=4, lora_alpha=8, lora_vision=True))


def test_a_merged_reward_model_scores_as_its_adapter(folder, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(adapter_files, "SHARD_SIZE", "60KB")
    output = tmp_path / "merged"
    assert main(["merge", str(folder), "--output", str(output)]) == 0
    assert "scores of synthetic answers" in caplog.text
    names = {path.name for path in output.iterdir()}
    assert {"model.safetensors.index.json", "head.safetensors", "generation_config.json"} <= names
    assert {"medrm.json", "chat_template.jinja", "tokenizer.json"} <= names
    assert "adapter_config.json" not in names
    before, after = read_adapter_config(folder), read_adapter_config(output)
    assert (after.trained, after.dtype, after.base) == ("full", "float32", before.base)
    assert np.abs(rewards_of(output) - rewards_of(folder)).max() < 1e-5
    _, info = AutoModelForImageTextToText.from_pretrained(output, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert main(["merge", str(output), "--output", str(tmp_path / "again")]) == 2
    assert "whole weights" in told(capsys)


DORA = AdapterOptions(lora_r=4, lora_alpha=8, use_dora=True)
RSLORA = AdapterOptions(lora_r=4, lora_alpha=8, use_rslora=True)


@pytest.mark.parametrize(
    ("lora", "dtype", "options"),
    [
        pytest.param(DORA, "auto", {}, marks=pytest.mark.slow),
        (RSLORA, "auto", {"dtype": "bfloat16"}),
        pytest.param(RSLORA, "float32", {"dtype": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param(
            *(None, "auto", {"load_in_4bit": True, "dtype": "bfloat16"}), marks=NEEDS_BITSANDBYTES
        ),
        pytest.param(
            *(None, "float32", {"load_in_8bit": True, "dtype": "bfloat16"}),
            marks=(NEEDS_BITSANDBYTES, pytest.mark.slow),
        ),
    ],
)
def test_what_merges_with_rounding(lora, dtype, options, tmp_path):
    base = save_tiny("qwen2_5_vl", tmp_path / "base", hidden=64)
    folder, output = save(base, "qwen2_5_vl", lora, **options), tmp_path / "merged"
    assert main(["merge", str(folder), "--output", str(output), "--dtype", dtype]) == 0
    contract = read_adapter_config(output)
    written = read_adapter_config(folder).dtype if dtype == "auto" else dtype
    assert (contract.dtype, contract.quantisation) == (written, None)
    assert "quantization_config" not in json.loads((output / "config.json").read_text())
    expected, rounding = rewards_of(folder), 0.02 if options else 1e-5
    assert np.abs(rewards_of(output) - expected).max() < rounding * expected.std()


def test_a_merged_judge_is_a_checkpoint_of_transformers(root, tmp_path):
    judge, output = root / "tests/golden/0.3/judge_adapter", tmp_path / "judge"
    assert main(["merge", str(judge), "--output", str(output)]) == 0
    model, _, contract = load_adapter(judge)
    merged = AutoModelForImageTextToText.from_pretrained(output).eval()
    inputs = load_processor(str(output))(text=["Which is better?"], return_tensors="pt")
    with torch.no_grad():
        difference = merged(**inputs).logits - model(**inputs).logits
    assert difference.abs().max() < 1e-4
    opened = medrm.load(output)
    assert opened.dimensions == contract.dimensions
    assert opened.compare([IMAGE], "?", ["a", "b"]).keys() == set(contract.dimensions)


def test_a_head_alone_becomes_a_whole_model(folder, tmp_path):
    model, processor, _ = load_adapter(folder)
    stock = freeze_backbone(model.unload())
    probe = tmp_path / "probe"
    options = ModelOptions(str(folder.parent / "base"))
    save_adapter(
        probe, stock, processor, new_adapter_config(stock, processor, options, "probe", "reward")
    )
    assert read_adapter_config(probe).trained == "head"
    base = str(folder.parent / "base")
    assert main(["merge", str(probe), "--output", str(tmp_path / "whole"), "--base", base]) == 0
    expected = medrm.load(probe, base=base).score([IMAGE], "What is seen?", ANSWERS)
    assert np.array_equal(rewards_of(tmp_path / "whole"), expected)


def test_nothing_is_written_where_it_must_not_be(folder, root, tmp_path, capsys, monkeypatch):
    def refused(output: Path, *options: str, model: Path = folder) -> str:
        capsys.readouterr()
        assert main(["merge", str(model), "--output", str(output), *options]) == 2
        return told(capsys)

    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "mine.txt").write_text("mine")
    assert "not empty" in refused(notes)
    assert "has not written" in refused(notes, "--overwrite_output_dir")
    assert "is no folder" in refused(notes / "mine.txt")
    assert "overlaps" in refused(folder.parent, "--overwrite_output_dir")
    assert "overlaps" in refused(folder / "merged")
    output = tmp_path / "merged"
    monkeypatch.setattr(merge, "compare_scores", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merge.merge_adapter(merge.MergeRequest(str(folder), output))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes"]
    monkeypatch.undo()
    output.mkdir()
    (output / "medrm.json").write_text("of an earlier merge")
    (output / "model.safetensors.index.json").write_text("of an earlier merge")
    assert main(["merge", str(folder), "--output", str(output), "--overwrite_output_dir"]) == 0
    assert not (output / "model.safetensors.index.json").exists()
    assert read_adapter_config(output).trained == "full"
    assert (notes / "mine.txt").read_text() == "mine"


def test_a_merged_model_that_scores_otherwise_is_refused(folder, tmp_path, capsys, monkeypatch):
    real = merge.merged_model

    def broken(*arguments):
        loaded = real(*arguments)
        with torch.no_grad():
            loaded.model.get_input_embeddings().weight.mul_(1.1)
        return loaded

    monkeypatch.setattr(merge, "merged_model", broken)
    assert main(["merge", str(folder), "--output", str(tmp_path / "merged")]) == 2
    assert "does not score as the adapter" in told(capsys)
    assert not list(tmp_path.iterdir())

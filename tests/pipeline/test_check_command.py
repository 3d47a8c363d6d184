"""`medrm check` says what medrm makes of a model, with weights and without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny

from medrm.cli import main
from medrm.config.options import AdapterOptions, ModelOptions
from medrm.models.adapter import save_adapter
from medrm.models.adapter_config import new_adapter_config
from medrm.models.base_model import load_base
from medrm.models.processors import load_processor
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.models.trainable import add_adapter
from medrm.scorer.open import ScorerOptions, open_scorer
from medrm.scorer.proof_cache import check_loaded


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    return save_tiny("llava", tmp_path / "llava")


def without_weights(folder: Path) -> Path:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    return folder


def checked(capsys: Any, *words: str, status: int = 0) -> dict[str, Any]:
    """What the command says as JSON."""
    capsys.readouterr()
    assert main(["check", *words, "--json"]) == status
    record: dict[str, Any] = json.loads(capsys.readouterr().out)
    return record


def test_the_phantom_base_in_words(capsys: Any) -> None:
    assert main(["check", "phantom-base"]) == 0
    out = capsys.readouterr().out
    for text in (
        "qwen2_5_vl (Qwen2_5_VLForConditionalGeneration), 2.0 M parameters",
        "decoder: model.language_model (Qwen2_5_VLTextModel",
        "vision tower: model.visual",
        "LoRA (rank 16) adapts 28 linear layers",
        "  | <|im_start|>assistant⟦\\n⟧",
        "does not depend on the date",
        "'<|im_end|>' to '< |im_end|>'",
        "512 x 512: 16 tokens",
        "shared prefix: gives the numbers of separate rows",
        "weights in nf4",
    ):
        assert text in out


def test_numbers_are_those_of_the_loaded_model(llava: Path, capsys: Any) -> None:
    record = checked(capsys, str(llava))
    base = load_base(ModelOptions(str(llava)))
    weights = sum(parameter.nbytes for parameter in base.parameters())
    assert record["memory"]["weight_bytes"]["float32"] == weights
    assert record["model"]["parameters"] == base.num_parameters()
    adapted = add_adapter(attach_head(base, HeadSpec(("overall",), "linear"), 0), AdapterOptions())
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert record["model"]["lora_parameters"] + record["model"]["head_parameters"] == trained
    assert record["memory"]["training_bytes"] == 16 * trained
    assert record["self_check"]["proven"]
    assert record["self_check"]["sharing_problem"] is None
    assert record["problems"] == []
    text = record["prompt"]["text"]
    assert text.endswith("No effusion is seen.<|im_end|>\n<|im_start|>assistant\n")
    # Square images of any size become two by two patches.
    assert [size["tokens"] for size in record["images"]["sizes"]] == [4, 4, 4, 4]
    assert {part["role"]: part["module"] for part in record["model"]["parts"]} == {
        "decoder": "model.language_model",
        "vision tower": "model.vision_tower",
        "connector": "model.multi_modal_projector",
        "LM head": "lm_head",
    }


def test_without_weights_it_says_what_is_not_proven(llava: Path, capsys: Any) -> None:
    whole = checked(capsys, str(llava))
    record = checked(capsys, str(without_weights(llava)))
    assert record.pop("self_check") == {"proven": False, "reason": "the weights are not here"}
    whole.pop("self_check")
    for sections in (whole, record):
        for size in sections["images"]["sizes"]:
            del size["milliseconds"]
    assert record == whole
    assert main(["check", str(llava)]) == 0
    out = capsys.readouterr().out
    assert "not proven, the weights are not here" in out
    assert "that images reach the hidden states" in out


def test_weights_that_do_not_fit_are_not_loaded(
    llava: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medrm.pipeline.check._free_bytes", lambda device: 1000)
    record = checked(capsys, str(llava))
    assert not record["self_check"]["proven"]
    assert "1000" not in record["self_check"]["reason"]
    assert "are free on" in record["self_check"]["reason"]


def test_an_adapter_is_read_as_it_was_saved(llava: Path, capsys: Any) -> None:
    options = ModelOptions(str(llava), reward_template="turn_end", max_length=100)
    model = attach_head(load_base(options), HeadSpec(("accuracy", "overall")), seed=1)
    processor = load_processor(str(llava))
    adapted = add_adapter(model, AdapterOptions(lora_r=2), seed=2)
    contract = new_adapter_config(adapted, processor, options, "bradley_terry", "reward")
    save_adapter(llava.parent / "adapter", adapted, processor, contract)
    record = checked(capsys, str(llava.parent / "adapter"))
    assert record["prompt"]["text"].endswith("No effusion is seen.<|im_end|>\n")
    assert record["images"]["max_length"] == 100
    assert record["self_check"]["proven"]
    assert main(["check", str(llava.parent / "adapter")]) == 0
    out = capsys.readouterr().out
    assert "bradley_terry, read by reward, trained lora on llava, dimensions accuracy, over" in out


@pytest.mark.parametrize("asked", ["auto", "float32"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_adapter_is_proven_in_its_own_precision_or_the_given_one(
    dtype: str, asked: str, llava: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, precision = ModelOptions(str(llava)), getattr(torch, dtype)
    base = load_base(options, dtype=precision)
    model = attach_head(base, HeadSpec(("overall",), "linear"), seed=1)
    processor = load_processor(str(llava))
    adapted = add_adapter(model, AdapterOptions(lora_r=2), seed=2)
    contract = new_adapter_config(adapted, processor, options, "bradley_terry", "reward")
    assert contract.dtype == dtype
    folder = llava.parent / "adapter"
    save_adapter(folder, adapted, processor, contract)
    loaded = []

    def spy(model: Any, *words: Any, **options: Any) -> Any:
        loaded.append(model.dtype)
        return check_loaded(model, *words, **options)

    monkeypatch.setattr("medrm.pipeline.check.check_loaded", spy)
    assert checked(capsys, str(folder), "--dtype", asked)["self_check"]["proven"]
    assert loaded == [precision if asked == "auto" else torch.float32]


@pytest.mark.parametrize(
    ("readout", "expected"),
    [
        ("generate", "Reply with one JSON object"),
        ("verdict_probability", "Reply with one letter, A or B."),
        ("likelihood", "No effusion is seen."),
    ],
)
def test_the_prompt_is_that_of_the_readout(
    readout: str, expected: str, llava: Path, capsys: Any
) -> None:
    record = checked(capsys, str(without_weights(llava)), "--readout", readout)
    assert record["prompt"]["readout"] == readout
    assert expected in record["prompt"]["text"]
    assert (record["prompt"]["text"][-10:] == "assistant\n") == (readout != "likelihood")


def test_a_template_that_asks_for_the_date_is_told(
    llava: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_weights(llava)
    template = llava / "chat_template.jinja"
    plain = template.read_text()
    template.write_text("Today is {{ strftime_now('%d %B %Y') }}.\n" + plain)
    found = checked(capsys, str(llava))["template"]
    assert found["asks_for_date"]
    assert not found["depends_on_date"]
    monkeypatch.setattr("medrm.models.processors.fix_date", lambda processor: None)
    assert checked(capsys, str(llava))["template"]["depends_on_date"]
    template.write_text("Today is any day.\n" + plain)
    found = checked(capsys, str(llava))["template"]
    assert not found["asks_for_date"]
    assert not found["depends_on_date"]


def test_what_will_not_work_ends_with_status_2_after_all_else(
    llava: Path, capsys: Any, tmp_path: Path
) -> None:
    dead = shutil.copytree(llava, tmp_path / "dead")
    weights = load_file(dead / "model.safetensors")
    zeros = {
        name: tensor * 0 if "vision_tower" in name else tensor for name, tensor in weights.items()
    }
    save_file(zeros, dead / "model.safetensors", metadata={"format": "pt"})
    record = checked(capsys, str(dead), status=2)
    assert "same features for noise" in record["problems"][0]
    assert record["images"]["sizes"]
    assert "self_check" not in record
    silent = shutil.copytree(llava, tmp_path / "silent")
    (silent / "chat_template.jinja").unlink()
    assert main(["check", str(silent)]) == 2
    captured = capsys.readouterr()
    assert "chat template" in captured.err
    assert "decoder: model.language_model" in captured.out
    broken = shutil.copytree(llava, tmp_path / "broken")
    (broken / "chat_template.jinja").write_text("{{ messages[0].nothing.at.all }}")
    assert main(["check", str(broken)]) == 2
    assert "UndefinedError: " in capsys.readouterr().err
    assert main(["check", str(llava), "--max_length", "5"]) == 2
    assert "Raise max_length" in capsys.readouterr().err
    assert main(["check", "./nowhere"]) == 2
    assert main(["check", "mock:oracle"]) == 2
    assert "mock:oracle is a rule, not a model" in capsys.readouterr().err


def test_a_scorer_says_the_same_in_short(llava: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="medrm"):
        for _ in range(2):
            open_scorer(str(llava), "likelihood", options=ScorerOptions(most_images=1))
    (said,) = (record.getMessage() for record in caplog.records if "model:" in record.getMessage())
    assert 4 <= len(said.splitlines()) <= 6
    assert "llava (LlavaForConditionalGeneration), " in said
    assert "images reach the hidden states" in said
    assert "the reward is read at '\\n', where the rendered text ends, and depends on" in said
    assert "the answer's last word" in said
    assert "shared prefix: gives the numbers of separate rows" in said

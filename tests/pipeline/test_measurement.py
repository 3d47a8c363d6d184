"""What `medrm evaluate` knows before it loads a model: whose weights, and what cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medrm.config.options import JudgeOptions
from medrm.errors import ConfigError
from medrm.evaluation.report import read_report
from medrm.models.adapter import saved_identity
from medrm.pipeline import evaluate
from medrm.pipeline.evaluate import evaluate_model
from medrm.pipeline.requests import EvalRequest
from medrm.scorer.open import DEFAULTS
from medrm.scorer.open import identity_of as weights_of


def asked(model: str, **options: object) -> EvalRequest:
    return EvalRequest(model, "phantom", Path("unused"), **options)


def identity_of(request: EvalRequest) -> str:
    return weights_of(request.model, request.engine, DEFAULTS)


def test_identities_name_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    assert identity_of(asked("mock:longer")) == "mock:longer"
    monkeypatch.setenv("OPENAI_BASE_URL", "https://judges.example:8000/v1")
    assert identity_of(asked("big", engine="openai")) == "big at judges.example"
    base = identity_of(asked("phantom-base"))
    assert base.startswith("phantom-base sha256:")
    assert len(base) == len("phantom-base sha256:") + 64


def test_an_adapter_is_its_weights_and_how_much_they_count(adapter: Path) -> None:
    first = saved_identity(adapter)
    assert first == identity_of(asked(str(adapter)))
    assert str(adapter.parent) not in first
    for name, change in {
        "adapter_config.json": lambda text: text.replace('"lora_alpha": ', '"lora_alpha": 1'),
        "medrm.json": lambda text: text,
    }.items():
        path = adapter / name
        before = path.read_text()
        path.write_text(change(before))
        assert (saved_identity(adapter) != first) == (change(before) != before)
        path.write_text(before)
    weights = adapter / "adapter_model.safetensors"
    weight_bytes = weights.read_bytes()
    weights.write_bytes(weight_bytes[:-1] + bytes([weight_bytes[-1] ^ 1]))
    assert saved_identity(adapter) != first


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder with all that names a model, and few bytes of weights."""
    from tiny import make_tiny

    from medrm.config.options import ModelOptions
    from medrm.models.adapter_config import new_adapter_config, write_adapter_config
    from medrm.models.reward_model import HeadSpec, attach_head

    model, processor = make_tiny("qwen2_vl")
    headed = attach_head(model, HeadSpec(("accuracy",)), seed=0)
    headed.config.dtype = headed.dtype
    options = ModelOptions("phantom-base")
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_adapter_config(
        folder, new_adapter_config(headed, processor, options, "bradley_terry", "reward")
    )
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8}))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_the_official_protocol_is_refused_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*_: object, **options: object) -> object:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(evaluate, "open_scorer", load)
    judge = JudgeOptions(judge_prompt="json_per_dimension")
    with pytest.raises(ConfigError, match="one reply on all of accuracy"):
        evaluate_model(asked("phantom-base", judge=judge, protocol="official"))
    for readout in ("skeleton", "likelihood"):
        with pytest.raises(AssertionError, match="a model is loaded"):
            evaluate_model(asked("phantom-base", readout=readout, protocol="official"))


def test_copies_of_images_are_kept_unless_refused(tmp_path: Path) -> None:
    for no_images in (True, False):
        folder = tmp_path / str(no_images)
        evaluate_model(EvalRequest("mock:longer", "phantom", folder, no_images=no_images))
        assert (folder / "images").is_dir() != no_images
    report = read_report(folder)
    assert (report["weights"], report["leak_check"]) == ("mock:longer", "not_applicable")
    assert report["settings"]["engine"] == "mock"

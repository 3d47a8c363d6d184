"""The self-check is made once for a model and what runs it."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scorer.test_self_check import leaking
from tiny import make_tiny, save_tiny, tiny_image

import medrm.models.prefix_sharing.attention as attention_module
from medrm.config.options import AdapterOptions
from medrm.errors import ConfigError
from medrm.files import cache_dir
from medrm.models.trainable import add_adapter
from medrm.schema import Case
from medrm.scorer import proof_cache
from medrm.scorer.caller_cases import ANY_IMAGES
from medrm.scorer.open import ScorerOptions, open_scorer
from medrm.scorer.proof_cache import check_loaded
from medrm.scorer.self_check import prove


@pytest.fixture
def proofs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """A list that grows with each proof; the cache is empty."""
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "cache"))
    made: list[Any] = []

    def count(*inputs: Any) -> Any:
        made.append(prove(*inputs))
        return made[-1]

    monkeypatch.setattr(proof_cache, "prove", count)
    return made


def test_a_model_is_proven_once(proofs: list[Any]) -> None:
    model, processor = make_tiny("llava")
    first = check_loaded(model, processor, "weights")
    assert check_loaded(model, processor, "weights") == first  # a processor that was used
    assert check_loaded(*make_tiny("llava"), "weights") == first
    assert len(proofs) == 1
    for changes in (
        {"weights": "other weights"},
        {"weights": "weights", "template": "turn_end"},
        {"weights": "weights", "images": False},
    ):
        check_loaded(model, processor, **changes)
    check_loaded(model.to(torch.bfloat16), processor, "weights")
    check_loaded(make_tiny("llava", shared_prefix=False)[0], processor, "weights")
    processor.chat_template += " "
    check_loaded(make_tiny("llava")[0], processor, "weights")
    assert len(proofs) == 7


def test_what_runs_a_model_belongs_to_its_proof(
    proofs: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, processor = make_tiny("llava")

    def check(model: Any = model) -> int:
        check_loaded(model, processor, "weights")
        return len(proofs)

    assert check() == 1
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32)
        assert check() == 2
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert check() == 3
    finally:
        torch.set_float32_matmul_precision(precision)
    with monkeypatch.context() as patch:
        patch.setattr(proof_cache, "version", lambda name: f"{name} 0")
        assert check() == 4
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_name", lambda _: "H200")
        patch.setattr(type(model), "device", SimpleNamespace(type="cuda"))
        patch.setattr(proof_cache, "prove", lambda *_: proofs.append(proofs[0]) or proofs[0])
        assert check() == 5
        patch.setattr(torch.cuda, "get_device_name", lambda _: "A100")
        assert check() == 6
    assert check(add_adapter(make_tiny("llava")[0], AdapterOptions())) == 7
    assert check() == 7
    name = "transformers_modules.owned.modeling_owned"
    module = types.ModuleType(name)
    module.__file__ = str(tmp_path / "modeling_owned.py")
    monkeypatch.setitem(sys.modules, name, module)
    owned = make_tiny("llava")[0]
    owned.__class__ = type("Owned", (type(owned),), {"__module__": name})
    for count, file in enumerate(("modeling_owned.py", "helper.py"), 8):
        (tmp_path / file).write_text("number = 1\n")
        assert check(owned) == count
    assert check(owned) == 9


@pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"tolerance": 1}', "\x00\xff"])
def test_a_damaged_proof_is_made_again(text: str, proofs: list[Any]) -> None:
    check_loaded(*make_tiny("llava"), "weights")
    (path,) = (cache_dir() / "checks").iterdir()
    whole = path.read_text()
    path.write_text(text)
    check_loaded(*make_tiny("llava"), "weights")
    assert len(proofs) == 2
    assert json.loads(path.read_text()).keys() == json.loads(whole).keys()
    record = json.loads(whole)
    del record["sha256"]  # as earlier versions wrote it
    path.write_text(json.dumps({**record, "sharing_problem": 3}))
    check_loaded(*make_tiny("llava"), "weights")
    assert len(proofs) == 3


def test_a_refused_model_is_not_kept(proofs: list[Any]) -> None:
    model, processor = make_tiny("llava")
    for parameter in model.model.vision_tower.parameters():
        parameter.data.zero_()
    for _ in range(2):
        with pytest.raises(ConfigError, match="same features"):
            check_loaded(model, processor, "dead tower")
    assert not (cache_dir() / "checks").exists()


def test_without_a_cache_it_is_made_each_time(
    proofs: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        check_loaded(*make_tiny("llava"), "weights")
    assert len(proofs) == 2


def test_a_scorer_is_opened_with_what_was_proven(
    proofs: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = str(save_tiny("llava", tmp_path / "llava"))
    case = Case(
        "1", (ANY_IMAGES.images(tiny_image(0, 60, 40))[0],), "Is it?", ("Yes", "No, it is not")
    )

    def score() -> tuple[bool, Any]:
        scorer: Any = open_scorer(folder, "likelihood", options=ScorerOptions(most_images=1))
        (response,) = scorer.respond([case])
        return scorer.settings["shared_prefix"], np.array(response.rewards["overall"])

    shared, rewards = score()
    assert shared
    assert score()[0]
    assert len(proofs) == 1
    monkeypatch.setenv("MEDRM_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(attention_module, "_gather", leaking(0.5))
    shared, separate = score()
    assert not shared
    np.testing.assert_allclose(separate, rewards, atol=1e-5)

"""QLoRA with bitsandbytes on the CPU: trains, and loads back with the same scores."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch
from rows import batch, rewards, trained
from tiny import TINY_FAMILIES

from medrm.config.options import AdapterOptions, ModelOptions
from medrm.errors import ConfigError
from medrm.models.adapter import load_adapter, save_adapter
from medrm.models.base_model import load_base
from medrm.models.families import family_of
from medrm.models.reward_model import head_of, without_adapter

NEEDS_BITSANDBYTES = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
DEFAULT = {("qwen2_5_vl", "load_in_4bit"), ("llava", "load_in_8bit"), ("mllama", "load_in_8bit")}
EVERY = [
    pytest.param(family, option, marks=() if (family, option) in DEFAULT else pytest.mark.slow)
    for family in TINY_FAMILIES
    for option in ("load_in_4bit", "load_in_8bit")
]


@NEEDS_BITSANDBYTES
@pytest.mark.parametrize(("family", "option"), EVERY)
def test_qlora_trains_and_round_trips(family, option, tiny_folder):
    base = tiny_folder(family, hidden=64)
    options = {option: True, "dtype": "bfloat16"}
    model, processor, contract = trained(
        base, family, AdapterOptions(lora_r=4, lora_alpha=8), **options
    )
    assert contract.quantisation == ("nf4" if option == "load_in_4bit" else "int8")
    _check_what_is_quantised(without_adapter(model), family)
    inputs = batch(processor, family)
    folder = base.parent / f"{family}-{option}"
    save_adapter(folder, model, processor, contract)
    again, _, _ = load_adapter(folder)
    assert torch.equal(rewards(again, inputs), rewards(model, inputs))


def _check_what_is_quantised(model, family):
    """The decoder's linear layers and nothing else; all other weights are fp32."""
    defining_modules = {
        name: type(module).__module__
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and "lora_" not in name
    }
    quantised = {
        name
        for name, defining_module in defining_modules.items()
        if defining_module.startswith("bitsandbytes")
    }
    decoder = family_of(model.config).parts.decoder
    assert quantised == {name for name in defining_modules if name.startswith(f"{decoder}.")}
    unquantised = [p for name, p in model.named_parameters() if ".base_layer." not in name]
    assert {p.dtype for p in unquantised} == {torch.float32}
    assert all(p.dtype == torch.float32 for p in head_of(model).parameters())


def test_without_bitsandbytes_the_error_says_how_to_install(tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        load_base(ModelOptions(str(tiny_folder("llava")), load_in_4bit=True))

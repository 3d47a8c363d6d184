"""Reads `adapter_config.json` of a saved LoRA adapter: what medrm writes there, and nothing else.

PEFT's settings can replace modules, repeat layers, read other weights into the base or name code to
import. Of its LoRA, medrm trains a part; whatever else a file asks for is refused, not left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel

from medrm.errors import AdapterError, report, shortened
from medrm.files import PEFT_CONFIG, fits
from medrm.models.adapter_config import AdapterConfig
from medrm.models.adapter_files import LARGEST
from medrm.models.reward_model import HEAD
from medrm.models.strict_json import read_object

_SWITCHES = ("use_rslora", "use_dora")

_FREE = {"inference_mode": bool, "peft_version": str | None, "revision": str | None}
"""Settings that say nothing of what is computed, and their types."""

_LARGEST_ALPHA = 1e6


def read_lora(folder: Path, contract: AdapterConfig) -> LoraConfig:
    """Reads the settings of a LoRA adapter.

    Args:
        folder: of the adapter.
        contract: whose base and head they must be for.

    Raises:
        AdapterError: missing, unreadable, or with a setting that medrm does not write.
    """
    path = folder / PEFT_CONFIG
    settings = read_object(path, LARGEST[PEFT_CONFIG])
    used = _used(settings, contract.base_model)
    problems = [*_problems(used, contract), *_foreign(settings, used)]
    if problems:
        title = f"{path} is not as medrm writes it. Save the adapter again:"
        raise AdapterError(report(title, problems))
    # The base is named by medrm.json; PEFT warns when this name is not the path it sees.
    return LoraConfig(**{**used, "lora_dropout": 0.0, "base_model_name_or_path": None})


def _used(settings: Mapping[str, Any], base_model: str) -> dict[str, Any]:
    """Returns the settings of which a value other than PEFT's default is accepted."""
    names = ("r", "lora_alpha", "lora_dropout", *_SWITCHES, "target_modules", "target_parameters",
             "modules_to_save", "base_model_name_or_path")  # fmt: skip
    defaults = {field.name: field.default for field in dataclasses.fields(LoraConfig)}
    used = {name: settings.get(name, defaults[name]) for name in names}
    if "base_model_name_or_path" not in settings:
        used["base_model_name_or_path"] = base_model
    return used


def _problems(used: Mapping[str, Any], contract: AdapterConfig) -> list[str]:
    """Returns what is wrong with the settings that medrm writes."""
    rank, alpha, dropout = used["r"], used["lora_alpha"], used["lora_dropout"]
    head = [HEAD] if contract.head is not None else None
    accepted = {
        "r": (fits(rank, int) and 1 <= rank <= 2**16, "a whole number from 1 to 65536"),
        "lora_alpha": (
            fits(alpha, float) and math.isfinite(alpha) and 0 < alpha <= _LARGEST_ALPHA,
            "a number above 0, at most a million",
        ),
        "lora_dropout": (fits(dropout, float) and 0 <= dropout <= 1, "a number from 0 to 1"),
        **{name: (fits(used[name], bool), "true or false") for name in _SWITCHES},
        "target_modules": (
            fits(used["target_modules"], list[str]) and _are_paths(used["target_modules"]),
            "a list of names of layers; patterns are not read",
        ),
        "target_parameters": (
            used["target_parameters"] is None
            or used["target_parameters"] == []
            or (
                fits(used["target_parameters"], list[str]) and _are_paths(used["target_parameters"])
            ),
            "null, or a list of names of parameters",
        ),
        "modules_to_save": (
            used["modules_to_save"] == head,
            f"{head}, as {contract.readout} needs",
        ),
        "base_model_name_or_path": (
            used["base_model_name_or_path"] == contract.base_model,
            f"{contract.base_model!r}, the base in medrm.json",
        ),
    }
    return [
        f"{name} is {_shown(used[name])}; accepted: {text}"
        for name, (is_fit, text) in accepted.items()
        if not is_fit
    ]


def _are_paths(names: Sequence[str]) -> bool:
    return len(set(names)) == len(names) > 0 and all(
        part.isidentifier() or part.isdigit() for name in names for part in name.split(".")
    )


def _foreign(settings: Mapping[str, Any], used: Mapping[str, Any]) -> list[str]:
    """Returns the settings that medrm never gives another value than PEFT's default."""
    defaults = dataclasses.asdict(LoraConfig()) | {"peft_type": "LORA"}
    del defaults["runtime_config"]  # PEFT does not write it
    problems = [] if "peft_type" in settings else ["peft_type is missing"]
    for name in sorted(settings.keys() - used.keys()):
        value = settings[name]
        if name in _FREE:
            is_fit = fits(value, _FREE[name])
        else:  # what later versions of PEFT add is known to change nothing where it is off
            default = defaults.get(name)
            is_fit = value == default and type(value) is type(default)
            is_fit = is_fit or (name not in defaults and value in (None, False, {}, []))
        if not is_fit:
            problems.append(f"{name[:80]} is {_shown(value)}, which changes what is computed")
    return problems


def _shown(value: Any) -> str:
    return shortened(repr(value))[:80]


def check_targets(model: PreTrainedModel, lora: LoraConfig, path: Path) -> None:
    """Refuses settings that name what is no layer of a base, before PEFT looks for it.

    PEFT shortens the names: each is the end of one or of several paths.

    Raises:
        AdapterError: names the first.
    """
    modules = dict(model.named_modules())
    ends = {end for name in modules for end in _ends(name) if not isinstance(modules[name], _LISTS)}
    parameters = {end for name, _ in model.named_parameters() for end in _ends(name)}
    wanted = [*(name for name in lora.target_modules or () if name not in ends)]
    wanted += [name for name in lora.target_parameters or () if name not in parameters]
    if wanted:
        raise AdapterError(
            f"{path} adapts {len(wanted)} layers that the base does not have, such as "
            f"{sorted(wanted)[0][:80]!r}. Give the base it was trained on, or save the adapter "
            "again."
        )


_LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def _ends(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]

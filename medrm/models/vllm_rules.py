"""What vLLM takes of a LoRA adapter, by the rules of its loader; vLLM itself is not needed.

Read in vLLM 0.33: `lora/peft_helper.py` (features, ranks, `modules_to_save`), `lora/utils.py` and
`lora/model_manager.py` (the head: `*.score.weight`, one matrix of at most `--max-lora-cls-labels`
rows), and which models declare `SupportsLoRA`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from medrm.errors import AdapterError, first_line
from medrm.files import PEFT_CONFIG

VLLM_VERSION = "0.33"
"""The version whose rules these are; heads of adapters and towers' LoRA need it or a later one."""

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM accepts for `max_lora_rank`."""

WITHOUT_LORA = ("llava_onevision",)
"""Families that vLLM runs without adapters."""

NOT_RUN = ("mllama",)
"""Families that vLLM has given up."""

_HEADS = ("score", "classifier")
"""The only modules that vLLM takes whole from an adapter."""

_BESIDE_DECODER = (
    ".vision_tower.",
    ".visual.",
    ".vision_model.",
    ".vision_encoder.",
    ".image_tower.",
    ".multi_modal_projector.",
    ".connector.",
)
"""What transformers calls vision towers and what connects them with the decoder."""

_FRESH_BASES = ("pissa", "olora", "loftq", "corda", "eva")
"""Initialisations that may change the base's weights, which the adapter then needs."""


@dataclass(frozen=True)
class VllmAdapter:
    """What vLLM must be told of an adapter, and what it would refuse.

    Attributes:
        rank: the least `max_lora_rank` that holds it.
        adapts_tower: whether it needs `enable_tower_connector_lora`.
        labels: rows of its head; 0: it has none.
        problems: why vLLM would refuse it or run it without a part; none: it runs whole.
    """

    rank: int
    adapts_tower: bool
    labels: int
    problems: tuple[str, ...]


def read_vllm_adapter(folder: Path) -> VllmAdapter:
    """Reads an adapter as vLLM's loader does.

    Raises:
        AdapterError: the folder is no LoRA adapter.
    """
    try:
        config = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
        with safe_open(folder / "adapter_model.safetensors", framework="np") as weights:
            shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        rank = max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
        heads = {name: shape for name, shape in shapes.items() if _is_head(name)}
        problems = [*_unsupported(config, rank), *_head_problems(heads)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise AdapterError(f"{folder} is no LoRA adapter: {first_line(error)}") from error
    return VllmAdapter(
        next((accepted for accepted in RANKS if accepted >= rank), rank),
        any(module in name for name in shapes for module in _BESIDE_DECODER),
        max((shape[0] for shape in heads.values() if len(shape) == 2), default=0),
        tuple(problems),
    )


def _is_head(name: str) -> bool:
    return any(f".{head}." in name for head in _HEADS) and ".lora_" not in name


def _unsupported(config: dict[str, Any], rank: int) -> list[str]:
    problems = []
    if rank > RANKS[-1]:
        problems.append(f"its rank is {rank}; vLLM takes at most {RANKS[-1]}")
    if config.get("use_dora"):
        problems.append("it is a DoRA adapter")
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        problems.append("it adapts biases")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_FRESH_BASES):
        problems.append(f"it begins from other weights than its base's ({start})")
    if config.get("target_parameters"):
        problems.append("it adapts parameters that are no linear layers, such as a MoE's routers")
    if others := set(config.get("modules_to_save") or ()) - {*_HEADS}:
        problems.append(f"it holds whole modules ({', '.join(sorted(others))})")
    return problems


def _head_problems(heads: dict[str, tuple[int, ...]]) -> list[str]:
    names = tuple(f".{head}.weight" for head in _HEADS)
    if all(name.endswith(names) and len(shape) == 2 for name, shape in heads.items()):
        return []
    return ["its head is more than one linear layer without a bias"]

"""What medrm knows of a model type: its parts as they are found, and the exceptions of a few types.

Nothing is listed here that can be asked of the model (`parts.py`): a model type that nobody listed
works when its parts are found. `FAMILIES` holds the exceptions, by `model_type`; other code may put
an entry into that dict before a model is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import PreTrainedConfig

from medrm.models.parts import Parts, find_parts


@dataclass(frozen=True, slots=True)
class Family:
    """What medrm knows of a model type before any weights are loaded.

    Attributes:
        name: the `model_type` of its config.
        parts: where decoder, vision tower and the rest lie in the stock model.
        cross_attention: whether layers of their own look at the images of their row, so that each
            case of a shared-prefix batch is a row of its own.
        sliding_window: whether some layers see the last tokens alone; what they count in a cache
            includes padding.
        image_blocks: whether the tokens of an image see each other in both directions.
        unsupported: objective to the reason why the type cannot be trained by it.
        one_image_only: the same where it is so for cases of several images alone.
    """

    name: str
    parts: Parts
    cross_attention: bool = False
    sliding_window: bool = False
    image_blocks: bool = False
    unsupported: Mapping[str, str] = field(default_factory=dict, hash=False)
    one_image_only: Mapping[str, str] = field(default_factory=dict, hash=False)


FAMILIES: dict[str, Mapping[str, Any]] = {
    "llava_onevision": {
        "one_image_only": {
            "judge_grpo": "TRL's GRPOTrainer loses the input that says how many images a prompt "
            "has (batch_num_images)"
        },
    },
    "gemma3": {"image_blocks": True},
}
"""`model_type` to the exceptions of the type: fields of `Family`, and of `Parts` where the model
does not say rightly where a part lies."""

_SEES_ALL = "its tokens see those behind them, so a judge would see the verdict it is to write"

_PART_NAMES = frozenset(part.name for part in fields(Parts))

_parts_of: dict[Any, Parts] = {}
"""Parts by class and values of the config, and by the fields that `FAMILIES` names."""


def longest_row(config: PreTrainedConfig, max_length: int | None = None) -> int | None:
    """Returns how many tokens a model reads at most: those of its positions, or a lower limit.

    Args:
        config: of the model.
        max_length: the limit that was stated; None: none was.

    Returns:
        None where neither is known.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return min(filter(None, (positions, max_length)), default=None)


def family_of(config: PreTrainedConfig) -> Family:
    """Returns what is known of the model that a config describes.

    Raises:
        ConfigError: a part of it is not found; says which one.
    """
    name = str(config.model_type)
    exceptions = dict(FAMILIES.get(name, {}))
    overrides = {part: exceptions.pop(part) for part in _PART_NAMES & exceptions.keys()}
    # Values count, too: some say whether attention is causal, or whether there is a tower.
    values = json.dumps(config.to_dict(), default=str)
    key = (type(config), values, *sorted(overrides.items()))
    if key not in _parts_of:
        _parts_of[key] = find_parts(config, overrides)
    text: Any = config.get_text_config(decoder=True)
    layer_types = getattr(text, "layer_types", None) or ()
    facts: dict[str, Any] = {
        "cross_attention": bool(getattr(text, "cross_attention_layers", None)),
        "sliding_window": "sliding_attention" in layer_types
        or (not layer_types and bool(getattr(text, "sliding_window", None))),
    }
    if not _parts_of[key].causal:
        facts["unsupported"] = dict.fromkeys(("judge_sft", "judge_dpo", "judge_grpo"), _SEES_ALL)
    return Family(name, _parts_of[key], **{**facts, **exceptions})

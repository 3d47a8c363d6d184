"""What could change a number of a model in memory besides its weights and what it is asked."""

from __future__ import annotations

from typing import Any, cast

import torch
import transformers
from peft import PeftModel
from transformers import PreTrainedModel, ProcessorMixin

from medrm.models.adapter_config import template_digest
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.reward_model import without_adapter


def model_settings(model: PreTrainedModel | PeftModel, processor: ProcessorMixin) -> dict[str, Any]:
    """Returns precision, attention, chat template and library versions: the same for all readouts.

    Args:
        model: a stock model, or one with a head or an adapter.
        processor: of the model.
    """
    base = without_adapter(model)
    config = cast(Any, base.config)
    return {
        "dtype": str(base.dtype).removeprefix("torch."),
        "quantisation": _quantisation(config),
        "attn_implementation": config._attn_implementation,
        "shared_prefix": shares_prefix(base),
        "chat_template_digest": template_digest(processor),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _quantisation(config: Any) -> str | None:
    """Returns "nf4", "int8" or None, as a contract names it."""
    settings = vars(config).get("quantization_config")
    if settings is None:
        return None
    return "int8" if settings.load_in_8bit else str(settings.bnb_4bit_quant_type)

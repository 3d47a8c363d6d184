"""What trains: LoRA on exactly named linear layers, all of the language side, or the head alone."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import PreTrainedModel

from medrm.config.options import AdapterOptions
from medrm.errors import ConfigError
from medrm.models.adapter_config import read_adapter_config
from medrm.models.families import family_of
from medrm.models.lora_settings import read_lora
from medrm.models.lora_targets import lora_targets
from medrm.models.reward_model import HEAD, has_head, head_of

logger = logging.getLogger(__name__)


def lora_config(model: PreTrainedModel, options: AdapterOptions) -> LoraConfig:
    """Returns the LoRA settings: `lora_targets`, and the head in full.

    Raises:
        ConfigError: the decoder has no linear layer, or routers cannot be adapted so.
    """
    targets = lora_targets(model)
    if not targets.decoder:
        raise ConfigError(
            f"The decoder of {type(model).__name__} has no linear layer that LoRA could adapt. Set "
            "use_peft false, or give another model."
        )
    if (
        options.lora_routers
        and targets.router_weights
        and (options.lora_dropout or options.use_dora)
    ):
        raise ConfigError(
            f"lora_routers adapts parameters of {type(model).__name__}, which PEFT does without "
            "lora_dropout and use_dora alone. Leave these two out, or lora_routers."
        )
    if targets.packed_experts:
        logger.info(
            "LoRA leaves the experts of %d layers as they are: their weights are one parameter for "
            "all experts, no linear layers. Of other layers %d are left out, whose names PEFT "
            "would take for those of experts.",
            len(targets.packed_experts),
            len(targets.taken_for_experts),
        )
    modules = list(targets.decoder)
    modules += targets.vision if options.lora_vision else ()
    modules += targets.routers if options.lora_routers else ()
    return LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        target_modules=modules,
        target_parameters=list(targets.router_weights) if options.lora_routers else None,
        modules_to_save=[HEAD] if has_head(model) else None,
    )


class _SecondLoraLayer(nn.Linear):
    """LoRA's layer from rank r to the outputs, whose gradient a CPU computes faster.

    Of the stock layer autograd computes the weight's gradient as [outputs, L] x [L, r], for which
    MKL takes up to ten times as long as for [r, L] x [L, outputs], which it computes here.
    """

    def forward(self, states: Tensor) -> Tensor:  # LoRA has no bias
        """Returns [..., outputs] of [..., r]."""
        return states @ self.weight.t().contiguous()


def wrap(model: PreTrainedModel, config: LoraConfig, seed: int) -> PeftModel:
    """Puts fresh LoRA layers on a model; everything else but a reward head is frozen.

    A quantised model is prepared the same way for training and for scoring: its norms become
    fp32, and the scores of the two agree bit for bit.

    Args:
        model: a reward model with its head, or a stock model to be a judge.
        config: which layers, which rank.
        seed: of the new weights; the global generator is left as it was.
    """
    if getattr(model, "is_quantized", False):  # bitsandbytes holds the weights
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)
    if model.device.type == "cpu":
        for name, module in wrapped.named_modules():
            if ".lora_B." in name and type(module) is nn.Linear:
                module.__class__ = _SecondLoraLayer
    return wrapped


def add_adapter_like(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Returns a model with the layers of a saved LoRA adapter, whose weights are fresh.

    Raises:
        AdapterError: the folder has no readable settings of one.
    """
    return wrap(model, read_lora(folder, read_adapter_config(folder)), seed=0)


def add_adapter(
    model: PreTrainedModel, options: AdapterOptions, seed: int = 0
) -> PreTrainedModel | PeftModel:
    """Makes a model trainable: by LoRA, or as a whole without `use_peft`.

    Full fine-tuning trains all but the vision tower and a reward model's LM head, which is not run.

    Args:
        model: a reward model (`attach_head`), or a stock model to be a judge.
        options: what is trained.
        seed: of the adapter's initial weights.
    """
    if options.use_peft:
        return wrap(model, lora_config(model, options), seed)
    parts = family_of(model.config).parts
    model.requires_grad_(True)
    if parts.vision is not None:
        model.get_submodule(parts.vision).requires_grad_(False)
    if not has_head(model) or parts.lm_head is None:
        return model
    embedding = list(model.get_submodule(parts.embeddings).parameters())
    for parameter in model.get_submodule(parts.lm_head).parameters():
        # Where it shares the embedding's weights, it trains as the embedding.
        parameter.requires_grad_(any(parameter is shared for shared in embedding))
    return model


def freeze_backbone(model: PreTrainedModel) -> PreTrainedModel:
    """Freezes everything but the head: the frozen probe, the control for what LoRA adds."""
    model.requires_grad_(False)
    head_of(model).requires_grad_(True)
    return model

"""What trains: LoRA on exactly named linear layers, all of the language side, or the head alone."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from medrm.config import AdapterOptions
from medrm.models.families import Family
from medrm.models.reward_model import HEAD, has_head, head_of


def _linears(model: PreTrainedModel, prefix: str) -> list[str]:
    """Returns the full names of the linear layers below a module, quantised ones included.

    Bare suffixes such as `q_proj` would also match the vision tower.
    """
    modules = model.get_submodule(prefix).named_modules()
    return [f"{prefix}.{name}" for name, module in modules if isinstance(module, nn.Linear)]


def _first_unused_layer(config: PreTrainedConfig) -> int | None:
    """Returns the vision tower's first layer whose output nobody reads (LLaVA stops early)."""
    layer = getattr(config, "vision_feature_layer", None)
    if not isinstance(layer, int):
        return None
    depth = int(config.vision_config.num_hidden_layers)
    # Entry 0 of the tower's hidden states is the embedding, entry i the output of layer i - 1.
    return depth + 1 + layer if layer < 0 else layer


def _vision_linears(model: PreTrainedModel, family: Family) -> list[str]:
    """Returns the linear layers of the vision tower that the image features pass through.

    Left out: SigLIP's pooling head and layers above the one that is read; they get no gradient.
    """
    unused = _first_unused_layer(model.config)
    depth = getattr(model.config.vision_config, "num_hidden_layers", 0)
    skipped = [".head."]
    if unused is not None:
        skipped += [f".layers.{layer}." for layer in range(unused, depth)]
    names = _linears(model, family.vision)
    return [name for name in names if not any(fragment in name for fragment in skipped)]


def lora_config(model: PreTrainedModel, options: AdapterOptions, family: Family) -> LoraConfig:
    """Returns the LoRA settings: every linear layer of the language model, the head in full."""
    targets = _linears(model, family.decoder)
    if options.lora_vision:
        targets += _vision_linears(model, family)
    return LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        target_modules=targets,
        modules_to_save=[HEAD] if has_head(model) else None,
    )


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
        return get_peft_model(model, config)


def add_adapter(
    model: PreTrainedModel, options: AdapterOptions, family: Family, seed: int = 0
) -> PreTrainedModel | PeftModel:
    """Makes a model trainable: by LoRA, or as a whole without `use_peft`.

    Full fine-tuning trains all but the vision tower and a reward model's LM head, which is not run.

    Args:
        model: a reward model (`attach_head`), or a stock model to be a judge.
        options: what is trained.
        family: where the parts lie.
        seed: of the adapter's initial weights.
    """
    if options.use_peft:
        return wrap(model, lora_config(model, options, family), seed)
    model.requires_grad_(True)
    model.get_submodule(family.vision).requires_grad_(False)
    if not has_head(model):
        return model
    embedding = list(model.get_input_embeddings().parameters())
    for parameter in model.get_submodule("lm_head").parameters():
        # Where it shares the embedding's weights, it trains as the embedding.
        parameter.requires_grad_(any(parameter is shared for shared in embedding))
    return model


def freeze_backbone(model: PreTrainedModel) -> PreTrainedModel:
    """Freezes everything but the head: the frozen probe, the control for what LoRA adds."""
    model.requires_grad_(False)
    head_of(model).requires_grad_(True)
    return model

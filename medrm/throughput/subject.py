"""What is measured: a reward model with LoRA as recipes train it, and batches for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from medrm.config import AdapterOptions, ModelOptions
from medrm.errors import ConfigError
from medrm.models.adapter import add_adapter
from medrm.models.base_model import load_base, load_config, load_processor
from medrm.models.families import Family, family_of
from medrm.models.prefix_sharing.attention import enable_prefix_sharing
from medrm.models.prefix_sharing.batch import sharing_problem
from medrm.models.reward_model import HeadSpec, attach_head, without_adapter
from medrm.scorer.collator import Collator
from medrm.throughput.batches import Batches, collated_batches
from medrm.throughput.options import ThroughputOptions
from medrm.throughput.shapes import SHAPES, config_of, random_batches, random_model

DIMENSION = "overall"
"""What the head scores."""


@dataclass(frozen=True)
class Subject:
    """A model, and how cases are made for it.

    Attributes:
        name: of the checkpoint or the shape.
        model: a reward model with LoRA.
        family: of it.
        batches: from cases (B) and answers (K) to batches.
        device: of the model.
        dtype: of its weights.
    """

    name: str
    model: PreTrainedModel | PeftModel
    family: Family
    batches: Callable[[int, int], Batches]
    device: torch.device
    dtype: torch.dtype

    @property
    def base(self) -> PreTrainedModel:
        """The model inside the adapter."""
        return without_adapter(self.model)

    @property
    def tower(self) -> nn.Module:
        """The vision tower."""
        return self.base.get_submodule(self.family.vision)

    def decoder_parameters(self) -> int:
        """Returns the number of weights in the decoder's layers, embedding and LoRA left out."""
        layers = self.base.get_submodule(f"{self.family.decoder}.layers")
        return sum(
            parameter.numel()
            for name, parameter in layers.named_parameters()
            if "lora_" not in name
        )


def make_subject(options: ThroughputOptions) -> Subject:
    """Returns what the options ask for.

    Raises:
        ConfigError: no such device or model, or one whose rows cannot share their prefix.
    """
    device = _device(options)
    dtype = _dtype(options, device)
    batches: Callable[[int, int], Batches]
    if options.model is None:
        config: Any = config_of(SHAPES[options.shape])
        base = random_model(SHAPES[options.shape], dtype, device)
        batches = functools.partial(random_batches, config, options.tokens)
    else:
        _refuse_unshared(options.model, load_config(options.model))
        collator = Collator(load_processor(options.model))
        base = load_base(ModelOptions(options.model), device, dtype)
        batches = functools.partial(collated_batches, collator, options.tokens)
    family = family_of(base.config)
    _refuse_unshared(options.model or options.shape, base.config)
    enable_prefix_sharing(base)
    model = attach_head(base, HeadSpec((DIMENSION,)), seed=0)
    return Subject(
        options.model or options.shape,
        add_adapter(model, AdapterOptions(), family),
        family,
        batches,
        device,
        base.dtype,
    )


def _refuse_unshared(name: str, config: Any) -> None:
    config = config if config._attn_implementation else _with_sdpa(config)
    problem = sharing_problem(config)
    if problem is not None:
        raise ConfigError(
            f"{name!r}: its rows cannot share their prefix ({problem}), so there is nothing to "
            "compare. Give a model of another family."
        )


def _with_sdpa(config: Any) -> Any:
    config._attn_implementation = "sdpa"
    return config


def _device(options: ThroughputOptions) -> torch.device:
    given = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if given not in ("cpu", "cuda") or (given == "cuda" and not torch.cuda.is_available()):
        there = "cpu, cuda" if torch.cuda.is_available() else "cpu (torch sees no GPU)"
        raise ConfigError(f"device {given!r} cannot be used; accepted here: {there}")
    return torch.device(given)


def _dtype(options: ThroughputOptions, device: torch.device) -> torch.dtype:
    if options.dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return torch.float32 if options.dtype == "float32" else torch.bfloat16

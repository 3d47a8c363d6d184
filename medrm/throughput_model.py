"""What `medrm throughput` measures: a reward model with random cases, and its operations."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from torch.utils import benchmark
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForImageTextToText,
    BatchFeature,
    PreTrainedModel,
    Qwen2_5_VLConfig,
)

from medrm.config.options import AdapterOptions, ModelOptions
from medrm.data.images import bytes_image
from medrm.errors import ConfigError, without_paths
from medrm.files import PHANTOM_BASE
from medrm.models.backbone import decoder_of, tower_of
from medrm.models.base_model import default_device, load_base, load_config
from medrm.models.families import family_of
from medrm.models.prefix_sharing.attention import enable_prefix_sharing
from medrm.models.prefix_sharing.batch import SHARED_PREFIX, sharing_problem
from medrm.models.processors import has_pixel_limits, load_processor
from medrm.models.reward_model import HeadSpec, attach_head, without_adapter
from medrm.models.trainable import add_adapter
from medrm.models.vision_tower import stock_tower
from medrm.pipeline.manifest import git_commit, versions
from medrm.pipeline.requests import ThroughputOptions
from medrm.schema import Case
from medrm.scorer.collator import Collator

_WORDS = ("left", "right", "small", "large", "dark", "bright", "two", "three")
"""What texts are made of: each is one token, at the start of a text and within it."""

_BUSY_ROWS = 4096
"""Rows of a matrix product that keep any device busy."""

_DECODER_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
_TOWER_SIZES = ("hidden_size", "intermediate_size", "depth", "num_heads", "fullatt_block_indexes")

SHAPES: dict[str, tuple[tuple[int, ...], tuple[Any, ...]]] = {
    "tiny": ((64, 128, 2, 2, 1, 704), (32, 64, 2, 2, [1])),
    # The MLP is as wide beside the decoder as in the 7B model.
    "small": ((512, 2816, 5, 8, 2, 2048), (96, 256, 3, 3, [2])),
    # https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct/blob/main/config.json
    "qwen2_5_vl_7b": ((3584, 18944, 28, 28, 4, 152064), (1280, 3420, 32, 16, [7, 15, 23, 31])),
}
"""The sizes of Qwen2.5-VL models: of the decoder, and of the vision tower."""


def config_of(shape: str) -> Qwen2_5_VLConfig:
    """Returns the config of a shape, whose texts and images the processor of phantom-base makes.

    The weights are drawn so wide that attention moves the rewards of random tokens.
    """
    text, vision = (
        dict[str, Any](zip(names, sizes, strict=True))
        for names, sizes in zip((_DECODER_SIZES, _TOWER_SIZES), SHAPES[shape], strict=True)
    )
    hidden = text["hidden_size"]
    eighth = hidden // text["num_attention_heads"] // 8
    sections = [eighth, 3 * eighth // 2, 3 * eighth // 2]
    text |= {
        "bos_token_id": None,
        "eos_token_id": None,
        "initializer_range": hidden**-0.5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
    }
    vision |= {"out_hidden_size": hidden, "initializer_range": vision["hidden_size"] ** -0.5}
    special = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    phantom = load_config(PHANTOM_BASE)
    ids: Any = {name: getattr(phantom, name) for name in special}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)


def random_model(
    config: Qwen2_5_VLConfig, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    """Returns a stock model with random weights, made on its device."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        loader: Any = AutoModelForImageTextToText
        model = loader.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Subject:
    """What is measured: a reward model with LoRA as recipes train it, and batches for it.

    Attributes:
        options: of the command.
        model: a reward model with LoRA.
        collator: makes its batches.
    """

    options: ThroughputOptions
    model: PreTrainedModel | PeftModel
    collator: Collator

    @property
    def base(self) -> PreTrainedModel:
        """The model inside the adapter."""
        return without_adapter(self.model)

    @property
    def vision(self) -> str:
        """Module path of the vision tower."""
        return str(family_of(self.base.config).parts.vision)

    def decoder_parameters(self) -> int:
        """Returns the number of weights in the decoder's layers, embedding and LoRA left out."""
        layers = decoder_of(self.base).layers.named_parameters()
        return sum(parameter.numel() for name, parameter in layers if "lora_" not in name)

    def batches(self, cases: int, answers: int) -> tuple[BatchFeature, BatchFeature]:
        """Returns random cases twice: a row for each answer, and what they share standing once.

        All texts have equally many words of one token each, so that no row is padded.

        Args:
            cases: B.
            answers: K.
        """
        _, question_tokens, answer_tokens = self.options.tokens
        shortest = self.collator.shared_rows([self._case(0, 2, (1, 1))])
        images = int((shortest["input_ids"] == self.base.config.image_token_id).sum())
        question = 1 + question_tokens + images - shortest[SHARED_PREFIX].prefix_lengths[0]
        answer = 1 + answer_tokens - shortest[SHARED_PREFIX].branch_lengths[0][0]
        word_counts = (max(1, question), max(1, answer))
        random_cases = [self._case(index, answers, word_counts) for index in range(cases)]
        return self.collator.rows(random_cases), self.collator.shared_rows(random_cases)

    def _case(self, seed: int, answers: int, word_counts: tuple[int, int]) -> Case:
        """Returns a random case.

        Args:
            seed: of its pixels and words, and its name.
            answers: K.
            word_counts: of the question, and of each answer.
        """
        generator = np.random.default_rng(seed)
        tokens = self.options.tokens[0]
        height = next(rows for rows in range(math.isqrt(tokens), 0, -1) if tokens % rows == 0)
        size = (448, 448)  # for families that scale every image to sizes of their own
        if has_pixel_limits(self.collator.processor):
            images: Any = self.collator.processor.image_processor
            scale = int(images.patch_size * images.merge_size)
            size = (height * scale, tokens // height * scale)
        buffer = io.BytesIO()
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        counts = [word_counts[0], *[word_counts[1]] * answers]
        firsts = (_WORDS[0], *_WORDS)  # the answers differ from their first word
        question, *replies = (
            " ".join([first, *generator.choice(_WORDS, count - 1)])
            for first, count in zip(firsts, counts, strict=False)
        )
        image = bytes_image(f"random {seed}", buffer.getvalue)
        return Case(str(seed), (image,), question, tuple(replies))


def make_subject(options: ThroughputOptions) -> Subject:
    """Returns what the options ask for.

    Raises:
        ConfigError: no such device or model, or one whose rows cannot share their prefix.
    """
    device = _device(options.device)
    low = options.dtype == "bfloat16" or (options.dtype == "auto" and device.type == "cuda")
    dtype = torch.bfloat16 if low else torch.float32
    config: Any = load_config(options.model) if options.model else config_of(options.shape)
    config._attn_implementation = "sdpa"
    problem = sharing_problem(config)
    if problem is not None:
        raise ConfigError(
            f"{options.model or options.shape!r}: its rows cannot share their prefix ({problem}), "
            "so there is nothing to compare. Give a model of another family."
        )
    if options.model is None:
        base = random_model(config, dtype, device)
        processor = load_processor(PHANTOM_BASE, min_pixels=1, max_pixels=2**30)
    else:
        base = load_base(ModelOptions(options.model), device, dtype)
        processor = load_processor(options.model)
    tower = tower_of(base)
    tower.__class__ = stock_tower(tower)  # ours computes equal images of a call once
    enable_prefix_sharing(base)
    model = add_adapter(attach_head(base, HeadSpec(("overall",)), 0), AdapterOptions())
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Subject(options, model, Collator(processor))


def _device(name: str | None) -> torch.device:
    name = name or default_device()
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        accepted = "cpu, cuda" if torch.cuda.is_available() else "cpu (torch sees no GPU)"
        raise ConfigError(f"device {name!r} cannot be used; accepted here: {accepted}")
    return torch.device(name)


def facts(subject: Subject) -> dict[str, Any]:
    """Returns what was measured on what."""
    options, device = subject.options, subject.base.device
    layout = subject.batches(1, 2)[1][SHARED_PREFIX]
    return {
        "shape": {
            "name": without_paths(options.model or options.shape),
            "family": family_of(subject.base.config).name,
            "decoder_parameters": subject.decoder_parameters(),
            "prefix_tokens": layout.prefix_lengths[0],
            "answer_tokens": layout.branch_lengths[0][0],
            "gradient_checkpointing": options.gradient_checkpointing,
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(subject.base.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "git_commit": git_commit(),
        "rounds": options.rounds,
    }


def count_flops(step: Callable[[], Any], tower: str) -> tuple[int, int]:
    """Returns the operations of a step, and those of them that the vision tower takes.

    torch's own counter counts matrix products. Attention is counted by the products of its
    definition: two forward, five backward (the logits are computed again), half of the positions
    where it is causal; with a mask, masked positions are computed all the same and count in full.

    Args:
        step: runs once.
        tower: module path of the vision tower in the model that the step runs.
    """
    kernels = ("flash_attention_for_cpu", "flash_attention", "efficient_attention")
    operators = [
        (getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{suffix}"), products)
        for kernel in (*kernels, "cudnn_attention")
        for suffix, products in (("", 2), ("_backward", 5))
    ]
    formulas = {operator: _attention_flops(operator, products) for operator, products in operators}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        step()
    modules = counter.get_flop_counts().items()
    towers = [sum(flops.values()) for name, flops in modules if name.endswith(f".{tower}")]
    return counter.get_total_flops(), sum(towers)


def _attention_flops(operator: Any, products: int) -> Callable[..., int]:
    """Returns the formula of an attention kernel, from its arguments' shapes to operations."""
    names = [argument.name for argument in operator.default._schema.arguments]

    def flops(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        arguments = {**dict(zip(names, args, strict=False)), **kwargs}
        (batch, heads, queries, width), keys = arguments["query"], arguments["key"][2]
        causal = arguments.get("is_causal", False)
        pairs = causal_pairs(queries, keys) if causal else queries * keys
        return products * 2 * int(batch * heads * pairs * width)

    return flops


def causal_pairs(queries: int, keys: int) -> int:
    """Returns how many (query, key) are seen where query i sees keys 0 to i."""
    both = min(queries, keys)
    return both * (both + 1) // 2 + (queries - both) * keys


def matmul_rate(
    tokens: int, widths: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> float:
    """Returns the device's best measured operations per second in the products of an MLP.

    Args:
        tokens: rows of the product, if fewer than keep any device busy.
        widths: of the decoder, and of its MLP.
        dtype: of the weights.
        device: where.
    """
    rates = []
    rows = min(tokens, _BUSY_ROWS)
    generator = torch.Generator(device).manual_seed(0)
    for inputs, outputs in (widths, widths[::-1]):
        # Random, not ones: a GPU's clock depends on the power that the operands cost.
        states, weight = (
            torch.randn(size, inputs, dtype=dtype, device=device, generator=generator)
            for size in (rows, outputs)
        )
        product = benchmark.Timer(
            "linear(states, weight)",
            globals={"linear": torch.nn.functional.linear, "states": states, "weight": weight},
            num_threads=torch.get_num_threads(),
        )
        fastest = min(product.timeit(2).median for _ in range(3))
        rates.append(2 * rows * inputs * outputs / fastest)
    return max(rates)


def device_rate(model: PreTrainedModel, tokens: int) -> float:
    """Returns `matmul_rate` at the widths of a model's decoder."""
    text = model.config.get_text_config()
    widths = (int(text.hidden_size), int(text.intermediate_size))
    return matmul_rate(tokens, widths, model.dtype, model.device)

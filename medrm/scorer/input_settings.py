"""What turns a case into a model's input, as settings of an evaluation.

The values are those that act: a processor's own sizes count as much as those that an option set.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, cast

from transformers import ProcessorMixin

from medrm import chat_template
from medrm.models.adapter_config import template_digest
from medrm.models.processors import has_pixel_limits

_NO_SETTINGS = ("image_processor_type", "processor_class", "auto_map", "data_format")
"""What a processor's files say besides settings; the layout of pixels is the same for all."""

_COMPONENTS = ("image_processor", "video_processor", "tokenizer", "feature_extractor")


_LIMITS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
"""Limits of an image's pixels, and how processors name them in their size."""


def input_settings(processor: ProcessorMixin) -> dict[str, Any]:
    """Returns what a processor does to images, and the prompt that its template writes.

    `min_pixels` and `max_pixels` are the limits of processors that have such; `image_processing` is
    all else: class with its backend, sizes, tiling, normalisation. Both are None for texts alone.
    """
    images = getattr(processor, "image_processor", None)
    limits: dict[str, Any] = dict.fromkeys(_LIMITS)
    processing = None if images is None else {"class": type(images).__name__, **_stated(processor)}
    size = {} if processing is None else processing.get("size") or {}
    if processing and has_pixel_limits(processor) and size.keys() == {*_LIMITS.values()}:
        limits = {name: size[edge] for name, edge in _LIMITS.items()}
        del processing["size"]
    return {
        **limits,
        "image_processing": processing,
        "chat_template_digest": template_digest(processor.chat_template),
        "rendered_prompt_digest": rendered_digest(processor),
    }


def _stated(processor: ProcessorMixin) -> dict[str, Any]:
    """Returns the settings of a processor and of its image part, as JSON has them."""
    images = cast(Any, processor).image_processor.to_dict()
    parts = {name: value for name, value in processor.to_dict().items() if name not in _COMPONENTS}
    stated = {
        name: value
        for name, value in {**parts, **images}.items()
        if name not in (*_NO_SETTINGS, "chat_template") and value is not None
    }
    contents: dict[str, Any] = json.loads(json.dumps(stated, sort_keys=True, default=str))
    return contents


def rendered_digest(processor: ProcessorMixin) -> str:
    """Returns the SHA-256 of a question as it is rendered, without and with a system turn.

    So it covers what a template adds of its own: a system prompt, a date.
    """
    reads_images = bool(chat_template.image_placeholder(processor))
    question = chat_template.user_message("question", int(reads_images))
    texts = [
        chat_template.render(processor, [*opening, question], "generation_prompt")
        for opening in ([], [chat_template.system_message("instruction")])
    ]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()

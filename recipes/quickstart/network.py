"""The phantom base before training: tokenizer, model, and how both are saved with a processor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from exchanges import draw_exchanges
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from medrm.data.phantom.pictures import SIDE_PIXELS, draw_facts

Model = transformers.Qwen2_5_VLForConditionalGeneration
TextTokenizer = transformers.PreTrainedTokenizerFast

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = (
    "{% for m in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n' }}<|im_start|>assistant\n{% endif %}"
)
"""ChatML whose last turn ends with <|im_end|>: there, and not after a line break that follows it, a
frozen base says little about a finished answer (see the base's card)."""
VERDICT_WORDS = "\n".join(
    (
        "You are an expert in medical images who compares answers.",
        "Compare two answers to one question about the image. In each dimension "
        "one answer is better, A or B.",
        "- accuracy: fits the image",
        "- relevance: answers the question",
        "- comprehensiveness: covers the findings",
        "- creativity: adds insight",
        "- responsiveness: has the form asked for",
        "- overall: a clinician would prefer it",
        "Write one line for each dimension that says why, and which answer is "
        'better. Then reply with one JSON object with the keys "accuracy", '
        '"relevance", "comprehensiveness", "creativity", "responsiveness", '
        '"overall" and the values "A" or "B". First one dimension only.',
        "Question: ?",
        "",
        "Answer A: .",
        "",
        "Answer B: .",
        "",
        "Which answer is better in accuracy?",
        '{"accuracy": "A", "relevance": "A", "comprehensiveness": "B", '
        '"creativity": "A", "responsiveness": "B", "overall": "B"}',
    )
)
"""The words in which judges are asked, so that each is one token. It is all that the base has of
them: it is never asked to judge."""
PATCH, MERGE = 14, 2
HIDDEN = 128
INITIALIZER_RANGE = 0.04


def build_tokenizer() -> TextTokenizer:
    """Returns a byte-level BPE in which each word of the phantom texts is one token."""
    rng = np.random.default_rng(0)
    corpus = ["user assistant system A B"] * 50 + [VERDICT_WORDS] * 300
    for _ in range(4000):
        true = draw_facts(rng)
        for exchange in draw_exchanges(true, rng):
            corpus += [exchange.asked, exchange.answer]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(corpus, trainer)
    tokenizer = TextTokenizer(
        tokenizer_object=trained,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[token for token in SPECIAL[1:] if token != "<|im_end|>"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_model(
    tokenizer: TextTokenizer,
) -> Model:
    """Returns the untrained model."""
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    start, end, image, video = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names)
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": 320,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            # Theta 100: with 32 dimensions a head, 1e6 would leave the width no usable frequency.
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [4, 6, 6],
                "rope_theta": 100.0,
            },
            "initializer_range": INITIALIZER_RANGE,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 4,
            "hidden_size": HIDDEN,
            "intermediate_size": 320,
            "num_heads": 4,
            "patch_size": PATCH,
            "out_hidden_size": HIDDEN,
            "window_size": SIDE_PIXELS,
            "fullatt_block_indexes": [0, 1, 2, 3],
            "initializer_range": INITIALIZER_RANGE,
        },
        tie_word_embeddings=True,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    config.initializer_range = INITIALIZER_RANGE
    model = Model(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def save(
    output: Path,
    model: Model,
    tokenizer: TextTokenizer,
) -> None:
    """Writes model (bf16 safetensors), tokenizer, chat template and processor."""
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(output)
    tied = "lm_head.weight"
    state = {
        name: value.to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != tied
    }
    save_file(state, output / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(output)
    model.generation_config.save_pretrained(output)
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        min_pixels=SIDE_PIXELS**2,
        max_pixels=SIDE_PIXELS**2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    # Written by hand: the processor class cannot be built without torchvision's video processor.
    about = {
        "processor_class": "Qwen2_5_VLProcessor",
        "image_processor": images.to_dict() | {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_processor": {"video_processor_type": "Qwen2VLVideoProcessor"},
    }
    (output / "processor_config.json").write_text(json.dumps(about, indent=2) + "\n")

"""Chat templates and byte-level tokenizers of the tiny models, and tiny models of text alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

_TEXTS = [
    "The chest radiograph shows clear lungs.",
    "No acute cardiopulmonary abnormality is seen.",
    "What does the image show? Answer A or B.",
    "user assistant system response score chosen rejected",
    "Which answer is better in accuracy? Yes No",
    "0123456789",
] * 4

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type']=='image' %}IMAGE"
    "{% elif c['type']=='text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "TURN_END\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m['role']=='assistant' else 'user' }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type']=='image' %}<start_of_image>"
    "{% elif c['type']=='text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def chatml(image: str, turn_end: str = "<|im_end|>") -> str:
    return _CHATML.replace("IMAGE", image).replace("TURN_END", turn_end)


def train_tokenizer(
    special: list[str],
    template: str,
    *,
    eos: str,
    pad: str,
    bos: str | None = None,
    named: dict[str, str] | None = None,
    vocabulary: int = 400,
) -> Any:
    """Trains a byte-level BPE tokenizer on a few sentences."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        _TEXTS,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        extra_special_tokens=named or [s for s in special if s not in (bos, eos, pad)],
    )
    tokenizer.chat_template = template
    return tokenizer


# Turns are texts, as such templates have them; a list of blocks would be written as Python does.
TEXT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT_TYPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma3_text": {"head_dim": 8, "sliding_window": 16, "final_logit_softcapping": 0.1},
    "granite": {"logits_scaling": 4.0},
    "cohere2": {"logit_scale": 0.25},
    "mixtral": {"num_local_experts": 4},
    "qwen3_next": {
        "head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
}
"""Type to what its tiny model has beside the usual sizes."""


def save_text_base(model_type: str, folder: Path) -> Path:
    """Writes a tiny language model and its tokenizer."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = train_tokenizer(special, TEXT_TEMPLATE, eos="<|im_end|>", pad="<|endoftext|>")
    config = AutoConfig.for_model(
        model_type,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **TEXT_TYPES[model_type],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loader: Any = AutoModelForCausalLM
        loader.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

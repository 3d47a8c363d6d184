"""An architecture that no library has: its classes, registered with transformers' Auto classes.

The names of its parts are none that transformers looks for: the tower is found by its config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from tiny_text import chatml, train_tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BatchFeature,
    CLIPImageProcessorPil,
    GenerationMixin,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast

PATCHES = 4


class EyesConfig(PreTrainedConfig):
    model_type = "made_up_eyes"
    hidden_size: int = 16


class MadeUpConfig(PreTrainedConfig):
    model_type = "made_up"
    sub_configs: ClassVar[dict[str, Any]] = {
        "text_config": LlamaConfig,
        "vision_config": EyesConfig,
    }
    text_config: Any = None
    vision_config: Any = None
    image_token_id: int = 0

    def __post_init__(self, **settings: Any) -> None:
        for name, section in self.sub_configs.items():
            written = getattr(self, name)
            if not isinstance(written, section):
                setattr(self, name, section(**(written or {})))
        super().__post_init__(**settings)


class MadeUpPreTrained(PreTrainedModel):
    config_class = MadeUpConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer"]


class Eyes(PreTrainedModel):
    """A vision tower: 14 x 14 patches of a 28 x 28 image, their means kept while it trains."""

    config_class = EyesConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EyesConfig) -> None:
        super().__init__(config)
        self.look = nn.Conv2d(3, config.hidden_size, 14, stride=14)
        self.norm = nn.BatchNorm2d(config.hidden_size)
        self.post_init()

    def forward(self, pixel_values: Tensor, **_settings: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.norm(self.look(pixel_values)).flatten(2).mT)


class MadeUpModel(MadeUpPreTrained):
    language_model_class: type[PreTrainedModel] = LlamaModel

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        self.eyes: Any = Eyes(config.vision_config)
        self.bridge = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.language_model: Any = self.language_model_class(config.text_config)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, pixel_values: Tensor | None = None, **inputs: Any
    ) -> Any:
        embeddings = inputs.pop("inputs_embeds", None)
        if embeddings is None:
            embeddings = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            seen = self.bridge(self.eyes(pixel_values).last_hidden_state)
            at_image = (input_ids == self.config.image_token_id)[..., None].expand_as(embeddings)
            embeddings = embeddings.masked_scatter(at_image, seen.to(embeddings.dtype))
        return self.language_model(inputs_embeds=embeddings, **inputs)


class MadeUpForConditionalGeneration(MadeUpPreTrained, GenerationMixin):
    inner: type[nn.Module] = MadeUpModel

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        self.model = self.inner(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size)
        self.post_init()

    def forward(
        self, *, logits_to_keep: int = 0, labels: Any = None, **inputs: Any
    ) -> LlavaCausalLMOutputWithPast:
        output = self.model(**inputs)
        logits = self.lm_head(output.last_hidden_state[:, -logits_to_keep:])
        return LlavaCausalLMOutputWithPast(logits=logits, past_key_values=output.past_key_values)


class FlatForConditionalGeneration(MadeUpModel, GenerationMixin):
    """As Llama 4: no backbone, and the LM head lies in the language model."""

    base_model_prefix = ""
    language_model_class = LlamaForCausalLM


class MadeUpProcessor(ProcessorMixin):
    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: Any = None) -> None:
        self.image_token = "<image>"  # no secret
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(self, images: Any = None, text: Any = None, **settings: Any) -> BatchFeature:
        several = [line.replace(self.image_token, self.image_token * PATCHES) for line in text]
        batch = dict(self.tokenizer(several, **settings))
        if images is not None:
            flat = [image for row in images for image in row]
            batch |= self.image_processor(flat, return_tensors=settings["return_tensors"])
        return BatchFeature(batch)


class BlindModel(MadeUpModel):
    """What stands in the tower's place is no model of its own, and nothing says where it is."""

    def __init__(self, config: MadeUpConfig) -> None:
        super().__init__(config)
        self.eyes = nn.Conv2d(3, config.vision_config.hidden_size, 14, stride=14)


class BlindForConditionalGeneration(MadeUpForConditionalGeneration):
    inner = BlindModel


class WithoutDecoder(MadeUpForConditionalGeneration):
    def get_decoder(self) -> Any:
        return self


class WithoutEmbedding(MadeUpForConditionalGeneration):
    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError

    def get_decoder(self) -> Any:
        return self.model.language_model.norm


class FlatConfig(MadeUpConfig):
    model_type = "made_up_flat"


class BlindConfig(MadeUpConfig):
    model_type = "made_up_blind"


class NoDecoderConfig(MadeUpConfig):
    model_type = "made_up_no_decoder"


class NoEmbeddingConfig(MadeUpConfig):
    model_type = "made_up_no_embedding"


REGISTERED: dict[type[MadeUpConfig], type[MadeUpPreTrained]] = {
    MadeUpConfig: MadeUpForConditionalGeneration,
    FlatConfig: FlatForConditionalGeneration,
    BlindConfig: BlindForConditionalGeneration,
    NoDecoderConfig: WithoutDecoder,
    NoEmbeddingConfig: WithoutEmbedding,
}


def register() -> None:
    """Makes the Auto classes know the architecture, as its author's package would."""
    for config_class, model_class in REGISTERED.items():
        model_class.config_class = config_class
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        loader: Any = AutoModelForImageTextToText
        loader.register(config_class, model_class, exist_ok=True)
        AutoProcessor.register(config_class, MadeUpProcessor, exist_ok=True)


def save_made_up(folder: Path, config_class: type[MadeUpConfig] = MadeUpConfig) -> Path:
    """Writes a tiny model of the architecture and its processor."""
    register()
    tokenizer = train_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"],
        chatml("<image>"),
        eos="<|im_end|>",
        pad="<|endoftext|>",
    )
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = config_class(text_config=text, image_token_id=image_token)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        REGISTERED[config_class](config).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size)
    processor = MadeUpProcessor(images, tokenizer, chat_template=tokenizer.chat_template)
    processor.save_pretrained(folder)
    return folder

"""The model families medrm knows: where the parts of each lie and what is particular to it.

A family is one entry of `FAMILIES`, here or put into that dict by other code before a model is
loaded; nothing else in the package names a family. A checkpoint belongs to a family by the
`model_type` of its config, so fine-tuned descendants of a family load without a line of code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from transformers import PreTrainedConfig

from medrm.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True)
class Family:
    """What differs between families of image-and-text models in transformers.

    Attributes:
        name: the name of the family, one of the keys of `FAMILIES`.
        model_types: values of `config.model_type` that belong to it.
        processor: class name of its processor in transformers.
        video_processor: class name of the processor's video part, None where it has none.
        decoder: module path of the language model.
        vision: module path of the vision tower.
        projector: module path of what maps image features into the language model; None where the
            vision tower contains it.
        pixel_limits: whether the processor keeps the image's own size within `min_pixels` and
            `max_pixels`.
        packed_patches: whether the processor gives one tensor with the patches of all images and a
            grid for each image, from which the tower's input of one image can be cut.
        features: the fields of the vision tower's output that the model reads.
        joining_towers: vision towers (`model_type`) that some checkpoints have, whose output is one
            sequence of all images, padded apart; their images cannot be told apart in it.
        sharing_decoders: language models (`model_type`) whose attention is proven to give the
            numbers of separate rows where the answers of a case share their prefix.
        shared_cache: whether prompts may continue one cached prefix with numbers that stay exact.
        rows_apart: whether each case of a shared-prefix batch is a row of its own: layers beside
            the self-attention look at the row's image.
        images_by_row: whether `pixel_values` is [rows, images, ...].
        image_blocks: whether the tokens of an image see each other in both directions.
        unsupported: objective to the reason why TRL cannot train the family by it.
        one_image_only: the same where it is so for cases of several images alone.
    """

    name: str
    model_types: tuple[str, ...]
    processor: str
    video_processor: str | None = None
    decoder: str = "model.language_model"
    vision: str = "model.vision_tower"
    projector: str | None = "model.multi_modal_projector"
    pixel_limits: bool = False
    packed_patches: bool = False
    features: tuple[str, ...] = ("last_hidden_state",)
    joining_towers: tuple[str, ...] = ()
    sharing_decoders: tuple[str, ...] = ("llama", "mistral", "qwen2", "qwen3")
    shared_cache: bool = True
    rows_apart: bool = False
    images_by_row: bool = False
    image_blocks: bool = False
    unsupported: Mapping[str, str] = field(default_factory=dict, hash=False)
    one_image_only: Mapping[str, str] = field(default_factory=dict, hash=False)


def _qwen(
    name: str,
    processor: str,
    video_processor: str,
    features: tuple[str, ...] = ("pooler_output",),
) -> Family:
    """Returns a Qwen-VL entry: images of any size, the merger is part of the vision tower."""
    return Family(
        name=name,
        model_types=(name,),
        processor=processor,
        video_processor=video_processor,
        vision="model.visual",
        projector=None,
        pixel_limits=True,
        packed_patches=True,
        features=features,
        sharing_decoders=(f"{name}_text",),
    )


_idefics = partial(
    Family,
    decoder="model.text_model",
    vision="model.vision_model",
    projector="model.connector",
    images_by_row=True,
)
"""An Idefics3-like entry: other module names."""

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _qwen("qwen2_vl", "Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
        _qwen("qwen2_5_vl", "Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
        _qwen(
            "qwen3_vl",
            "Qwen3VLProcessor",
            "Qwen3VLVideoProcessor",
            ("pooler_output", "deepstack_features"),
        ),
        Family(
            "llava",
            ("llava",),
            "LlavaProcessor",
            features=("hidden_states",),
            joining_towers=("pixtral",),
        ),
        Family("llava_next", ("llava_next",), "LlavaNextProcessor", features=("hidden_states",)),
        Family(
            "llava_onevision",
            ("llava_onevision",),
            "LlavaOnevisionProcessor",
            video_processor="LlavaOnevisionVideoProcessor",
            features=("hidden_states",),
            one_image_only={
                "judge_grpo": "TRL's GRPOTrainer loses the input that says how many images a "
                "prompt has (batch_num_images)"
            },
        ),
        Family(
            "internvl",
            ("internvl",),
            "InternVLProcessor",
            video_processor="InternVLVideoProcessor",
            # Which of the two depends on the checkpoint's vision_feature_layer.
            features=("last_hidden_state", "hidden_states"),
        ),
        Family(
            "gemma3",
            ("gemma3",),
            "Gemma3Processor",
            sharing_decoders=("gemma3_text",),
            # Its sliding window counts the tokens of the cache, padding included.
            shared_cache=False,
            image_blocks=True,
        ),
        Family(
            "mllama",
            ("mllama",),
            "MllamaProcessor",
            vision="model.vision_model",
            sharing_decoders=("mllama_text_model",),
            # Layers of its own attend to the image and would need the prefix's mask.
            shared_cache=False,
            rows_apart=True,
            unsupported={
                "judge_grpo": "TRL's GRPOTrainer loses the inputs that say where its images are "
                "(aspect_ratio_ids, cross_attention_mask)"
            },
        ),
        _idefics("idefics3", ("idefics3",), "Idefics3Processor"),
        _idefics("smolvlm", ("smolvlm",), "SmolVLMProcessor", "SmolVLMVideoProcessor"),
    )
}
"""Name to family."""


def family_of(config: PreTrainedConfig) -> Family:
    """Returns the family of a model config.

    Raises:
        ConfigError: the `model_type` belongs to no family.
    """
    families = {name: family for family in FAMILIES.values() for name in family.model_types}
    return _look_up("model_type", str(config.model_type), families)


def family_of_processor(class_name: str) -> Family:
    """Returns the family whose processor class has that name.

    Raises:
        ConfigError: no family has that processor.
    """
    families = {family.processor: family for family in FAMILIES.values()}
    return _look_up("processor class", class_name, families)


def _look_up(attribute: str, name: str, families: Mapping[str, Family]) -> Family:
    if name not in families:
        raise ConfigError(
            f"The base model's {attribute} {name!r} belongs to no known family."
            f"{nearest(name, families)} Accepted: {', '.join(sorted(families))}. To add a family, "
            "write its entry into FAMILIES in medrm/models/families.py and a tiny model of it into "
            "tests/tiny.py."
        )
    return families[name]

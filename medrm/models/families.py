"""The model families medrm knows, one table entry each: where their parts lie and what they need.

A checkpoint belongs to a family by the `model_type` of its config, so fine-tuned descendants of a
family load without a line of code.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        packed_patches: whether the processor gives one tensor with the patches of all images and a
            grid for each image, from which the tower's input of one image can be cut.
        pixel_limits: whether the processor keeps the image's own size within `min_pixels` and
            `max_pixels`.
        features: the fields of the vision tower's output that the model reads.
        joining_towers: vision towers (`model_type`) that some checkpoints have, whose output is one
            sequence of all images, padded apart.
        shared_cache: whether prompts may continue one cached prefix with numbers that stay exact.
        rows_apart: whether each case of a forked batch is a row of its own: layers beside the
            self-attention look at the row's image.
        images_by_row: whether `pixel_values` is [rows, images, ...].
        image_blocks: whether the tokens of an image see each other in both directions.
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
    shared_cache: bool = True
    rows_apart: bool = False
    images_by_row: bool = False
    image_blocks: bool = False


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
    )


def _idefics(name: str, processor: str, video_processor: str | None) -> Family:
    """Returns an Idefics3-like entry: other module names."""
    return Family(
        name=name,
        model_types=(name,),
        processor=processor,
        video_processor=video_processor,
        decoder="model.text_model",
        vision="model.vision_model",
        projector="model.connector",
        images_by_row=True,
    )


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
        ),
        Family(
            "internvl",
            ("internvl",),
            "InternVLProcessor",
            video_processor="InternVLVideoProcessor",
            # Which of the two depends on the checkpoint's vision_feature_layer.
            features=("last_hidden_state", "hidden_states"),
        ),
        # Its sliding window counts places in the cache, padding included.
        Family("gemma3", ("gemma3",), "Gemma3Processor", shared_cache=False, image_blocks=True),
        Family(
            "mllama",
            ("mllama",),
            "MllamaProcessor",
            vision="model.vision_model",
            # Layers of its own attend to the image and would need the prefix's mask.
            shared_cache=False,
            rows_apart=True,
        ),
        _idefics("idefics3", "Idefics3Processor", None),
        _idefics("smolvlm", "SmolVLMProcessor", "SmolVLMVideoProcessor"),
    )
}
"""Name to family."""

_BY_MODEL_TYPE = {kind: family for family in FAMILIES.values() for kind in family.model_types}
_BY_PROCESSOR = {family.processor: family for family in FAMILIES.values()}


def _unknown(what: str, given: str, accepted: list[str]) -> ConfigError:
    return ConfigError(
        f"The base model's {what} {given!r} belongs to no known family.{nearest(given, accepted)} "
        f"Accepted: {', '.join(sorted(accepted))}. To add a family, write its entry into FAMILIES "
        "in medrm/models/families.py and a tiny model of it into tests/tiny.py."
    )


def family_of(config: PreTrainedConfig) -> Family:
    """Returns the family of a model config.

    Raises:
        ConfigError: the `model_type` belongs to no family.
    """
    kind = str(config.model_type)
    if kind not in _BY_MODEL_TYPE:
        raise _unknown("model_type", kind, list(_BY_MODEL_TYPE))
    return _BY_MODEL_TYPE[kind]


def family_of_processor(class_name: str) -> Family:
    """Returns the family whose processor class has that name.

    Raises:
        ConfigError: no family has that processor.
    """
    if class_name not in _BY_PROCESSOR:
        raise _unknown("processor class", class_name, list(_BY_PROCESSOR))
    return _BY_PROCESSOR[class_name]

"""An image that does not reach the model is detected, for every family."""

from __future__ import annotations

import pytest
import torch
from rows import batch, reward_model, rewards
from tiny import TINY_FAMILIES, make_tiny, tiny_image
from transformers import BatchFeature

from medrm.config.options import AdapterOptions
from medrm.errors import ConfigError
from medrm.models.trainable import add_adapter
from medrm.models.vision_tower import check_image_reaches


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_images_reach_the_model(family, tiny_folder):
    model, processor = reward_model(tiny_folder(family))
    model.train()
    check_image_reaches(model, processor)
    assert model.training
    adapted = add_adapter(model, AdapterOptions(lora_r=2))
    check_image_reaches(adapted, processor)
    answers = ("Yes", "Yes")
    first, second = (rewards(model, batch(processor, family, answers, s)) for s in ((0, 1), (0, 2)))
    torch.testing.assert_close(first[0], second[0])
    assert (first[1] - second[1]).abs().min() > 1e-6, "the second row's image makes no difference"


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_each_of_two_images_changes_the_reward(family, tiny_folder):
    model, processor = reward_model(tiny_folder(family))
    question = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is seen?"}]
    text = processor.apply_chat_template([{"role": "user", "content": question}], tokenize=False)

    def score(first, second):
        images = [tiny_image(first, 60, 40), tiny_image(second, 40, 60)]
        return rewards(model, processor(text=[text], images=[images], return_tensors="pt"))

    reference = score(0, 1)
    assert (reference - score(2, 1)).abs().max() > 1e-5
    assert (reference - score(0, 2)).abs().max() > 1e-5


class WithoutPixels:
    """A processor whose caller forgets the image tensors, as a list of accepted keys would."""

    def __init__(self, processor):
        self.apply_chat_template = processor.apply_chat_template
        self._processor = processor

    def __call__(self, **inputs):
        text_keys = ("input_ids", "attention_mask")
        batch = self._processor(**inputs)
        return BatchFeature({key: batch[key] for key in text_keys})


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_dropped_pixels_stop_the_run(family):
    model, processor = make_tiny(family)
    with pytest.raises(ConfigError, match="vision tower did not run"):
        check_image_reaches(model, WithoutPixels(processor))


def test_a_dead_tower_stops_the_run():
    model, processor = make_tiny("llava")
    for parameter in model.model.vision_tower.parameters():
        parameter.data.zero_()
    with pytest.raises(ConfigError, match="same features"):
        check_image_reaches(model, processor)


def test_a_dead_projector_stops_the_run():
    model, processor = make_tiny("llava")
    for parameter in model.model.multi_modal_projector.parameters():
        parameter.data.zero_()
    with pytest.raises(ConfigError, match="do not change the hidden state"):
        check_image_reaches(model, processor)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("model.vision_tower", "vision tower gives numbers that are not finite"),
        ("model.multi_modal_projector", "decoder gives numbers that are not finite"),
        ("model.language_model", "decoder gives numbers that are not finite"),
    ],
)
def test_numbers_that_are_none_stop_the_run(module, message):
    model, processor = make_tiny("llava")
    next(model.get_submodule(module).parameters()).data.fill_(float("nan"))
    with pytest.raises(ConfigError, match=message):
        check_image_reaches(model, processor)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "does not have a chat template"),
        ("{{ messages[0].role }}", "Found total 0 <image> tokens and 1 images"),
        ("{{ messages[0].nothing.at.all }}", "has no attribute 'nothing'"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_template_without_the_image_stops_the_run(template, message):
    model, processor = make_tiny("llava")
    processor.chat_template = template
    model.train()
    with pytest.raises(ConfigError, match=message):
        check_image_reaches(model, processor)
    assert model.training


def test_the_processor_of_another_model_stops_the_run():
    model, _ = make_tiny("llava")
    _, processor = make_tiny("gemma3")
    with pytest.raises(ConfigError, match="features and image tokens do not match"):
        check_image_reaches(model, processor)

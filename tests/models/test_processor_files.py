"""Folders as they lie on the hub: other files, older names, parts that lack. Read, or explained."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_image
from tiny_text import chatml, train_tokenizer
from transformers import AutoConfig

from medrm.errors import ConfigError
from medrm.models.processors import load_processor


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None takes them out."""
    settings = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in settings.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def without_processor_config(folder: Path) -> None:
    """Qwen2-VL to Qwen3-VL: the image part has a file of its own, and the class is named there."""
    settings = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    images = {**settings["image_processor"], "processor_class": settings["processor_class"]}
    (folder / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    (folder / "processor_config.json").unlink()


def of_the_image_part(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        without_processor_config(folder)
        edit(folder / "preprocessor_config.json", **changes)

    return change


def without_image_part(folder: Path) -> None:
    without_processor_config(folder)
    (folder / "preprocessor_config.json").unlink()


def with_an_old_processor_class(folder: Path) -> None:
    of_the_image_part(processor_class="QwenVLProcessorOfOld")(folder)
    edit(folder / "tokenizer_config.json", processor_class="QwenVLProcessorOfOld")


def with_the_template_in(name: str) -> Callable[[Path], None]:
    def move(folder: Path) -> None:
        path = folder / "chat_template.jinja"
        template = path.read_text(encoding="utf-8")
        path.unlink()
        if not (folder / name).is_file():
            (folder / name).write_text("{}", encoding="utf-8")
        edit(folder / name, chat_template=template)

    return move


def with_vocabulary_and_merges(folder: Path) -> None:
    """granite-docling: no tokenizer.json, but the two files of which it is made."""
    path = folder / "tokenizer.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    model = written["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    added = {str(token.pop("id")): token for token in written["added_tokens"]}
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="GPT2Tokenizer",
        added_tokens_decoder=added,
        add_prefix_space=False,
    )
    path.unlink()


READ: dict[str, Callable[[Path], None]] = {
    "as medrm saves it": lambda folder: None,
    "no processor_config.json": without_processor_config,
    "the class of another backend": of_the_image_part(
        image_processor_type="Qwen2VLImageProcessorFast"
    ),
    "no image processor type": of_the_image_part(image_processor_type=None),
    "no class in the image part": of_the_image_part(processor_class=None),
    "a processor class of old": with_an_old_processor_class,
    "the template in tokenizer_config.json": with_the_template_in("tokenizer_config.json"),
    "the template in chat_template.json": with_the_template_in("chat_template.json"),
    "vocab.json and merges.txt": with_vocabulary_and_merges,
}


@pytest.mark.parametrize("kind", READ)
def test_a_folder_is_read(kind, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("qwen2_5_vl"), tmp_path / "base")
    expected = load_processor(str(folder))
    READ[kind](folder)
    processor = load_processor(str(folder))
    assert type(processor) is type(expected)
    assert type(processor.image_processor) is type(expected.image_processor)
    question = [{"type": "image"}, {"type": "text", "text": "What does it show?"}]
    batches = []
    for each in (expected, processor):
        text = each.apply_chat_template([{"role": "user", "content": question}], tokenize=False)
        batches.append(each(text=[text], images=[[tiny_image()]], return_tensors="pt"))
    first, second = batches
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


EXPLAINED: dict[str, tuple[Callable[[Path], None], str]] = {
    "an image processor of old": (
        of_the_image_part(image_processor_type="Qwen2_5_VLImageProcessor"),
        r"preprocessor_config.json names .*'Qwen2_5_VLImageProcessor'[\s\S]*write "
        r'"image_processor_type": "Qwen2VLImageProcessor" into preprocessor_config.json',
    ),
    "no image part": (without_image_part, r"no preprocessor_config.json[\s\S]*Copy the file"),
    "no tokenizer": (without("tokenizer.json"), r"no tokenizer \(tokenizer.json"),
    "no template": (without("chat_template.jinja"), "no chat template[\\s\\S]*chat_template.jinja"),
    "a type of tomorrow": (
        lambda folder: edit(folder / "config.json", model_type="qwen9_vl"),
        "model type `qwen9_vl`",
    ),
}


@pytest.mark.parametrize("kind", EXPLAINED)
def test_what_lacks_is_named_with_what_to_write(kind, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder("qwen2_5_vl"), tmp_path / "base")
    change, message = EXPLAINED[kind]
    change(folder)
    with pytest.raises(ConfigError, match=message):
        load_processor(str(folder))


@pytest.mark.parametrize(
    ("model_type", "image_processor", "processor", "package"),
    [
        ("llama4", "Llama4ImageProcessor", "Llama4Processor", "torchvision"),
        ("cohere2_vision", "Cohere2VisionImageProcessor", "Cohere2VisionProcessor", "torchvision"),
        ("mistral3", "PixtralImageProcessor", "PixtralProcessor", "torchvision"),
        ("gemma3n", "SiglipImageProcessor", "Gemma3nProcessor", "timm"),
    ],
)
def test_a_package_that_is_not_there_is_named(
    model_type, image_processor, processor, package, tmp_path
):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is there")
    train_tokenizer(["<e>"], chatml("<image>"), eos="<e>", pad="<e>").save_pretrained(tmp_path)
    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    for name, key, value in (
        ("preprocessor_config.json", "image_processor_type", image_processor),
        ("processor_config.json", "processor_class", processor),
    ):
        (tmp_path / name).write_text(json.dumps({key: value}), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"needs {package}[\\s\\S]*Install the {package}"):
        load_processor(str(tmp_path))

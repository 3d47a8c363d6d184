"""The phantom base: what ships, what it knows, and that its training passes are exact."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from medrm.data.phantom.pictures import draw_facts, render
from medrm.models.processors import load_processor

QUICKSTART = Path(__file__).resolve().parent.parent / "recipes" / "quickstart"
BASE = QUICKSTART / "phantom-base"


@pytest.fixture(scope="module")
def training() -> ModuleType:
    """The training script, imported as it runs: from its own folder."""
    sys.path.insert(0, str(QUICKSTART))
    try:
        import make_base
    finally:
        sys.path.remove(str(QUICKSTART))
    return make_base


@pytest.fixture(scope="module")
def base():
    return AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32)


def test_the_base_is_small_and_complete():
    weights = BASE / "model.safetensors"
    assert weights.stat().st_size <= 8_000_000
    stored = AutoModelForImageTextToText.from_pretrained(BASE, output_loading_info=True)
    model, info = stored
    assert model.dtype == torch.bfloat16
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys"))


def test_the_training_passes_equal_the_stock_forward(training, base):
    """One exchange about one image through the real processor, and through cache and groups."""
    processor = load_processor(str(BASE))
    rng = np.random.default_rng(4)
    true = draw_facts(rng)
    pixels = render(true, rng).pixels
    forward = sys.modules["forward"]
    exchange = sys.modules["exchanges"].draw_exchanges(true, rng)[0]
    message = [{"type": "image"}, {"type": "text", "text": exchange.asked}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    row = processor(
        text=[f"{text}{exchange.answer}<|im_end|>"],
        images=[Image.fromarray(pixels)],
        return_tensors="pt",
    )
    reader = forward.Reader(processor.tokenizer, 0)
    asked, answer = reader._tokens(exchange)
    group = reader._group([(0, exchange.kind, asked, answer)])
    empty = torch.zeros(0)
    batch = forward.Batch(forward.patches(pixels[None]), empty, [group])
    with torch.no_grad():
        stock = base(**row).logits[0, -len(answer) - 1 : -1]
        _, (ours,) = forward.forward(base, reader.encode(forward.OPENING), batch)
    assert torch.allclose(ours, stock, atol=2e-5)


def test_the_base_describes_and_checks_and_needs_the_image(training, base):
    tokenizer = load_processor(str(BASE)).tokenizer
    seen = training.measure(base, tokenizer, images=64)
    blank = training.measure(base, tokenizer, images=64, blank=True)
    assert seen["description"] > 0.9
    assert seen["check long"] > 0.9
    assert seen["check short"] > 0.9
    assert seen["json"] > 0.9
    assert seen["pair"] > 0.65
    assert blank["pair"] < 0.6
    assert blank["description"] < 0.1
    assert blank["check long"] < 0.65


def test_no_exchange_asks_which_is_better_or_names_a_dimension(training):
    exchanges = sys.modules["exchanges"]
    rng = np.random.default_rng(8)
    for _ in range(200):
        for exchange in exchanges.draw_exchanges(draw_facts(rng), rng):
            kinds = {"description", "word", "json", "check", "letter", "pair", "choice"}
            assert exchange.kind.split()[0] in kinds
            assert exchange.asked.count("This is a") <= 1 + (exchange.kind == "pair")
            if exchange.kind == "pair":  # about one of the two texts, never about both
                assert exchange.asked.endswith(("Is text 1 right?", "Is text 2 right?"))
                assert exchange.answer in ("Yes", "No")
            for word in (
                "better",
                "best",
                "prefer",
                "accura",
                "relevan",
                "comprehens",
                "creativ",
                "overall",
            ):
                assert word not in exchange.asked


def test_training_is_deterministic_and_learns(training, monkeypatch):
    monkeypatch.setattr(training, "WARM_UP_STEPS", 2)
    monkeypatch.setattr(training, "WARM_UP_IMAGES", 4)
    monkeypatch.setattr(training, "IMAGES", 2)
    network, forward = sys.modules["network"], sys.modules["forward"]
    tokenizer = load_processor(str(BASE)).tokenizer
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        model = network.build_model(tokenizer)
        start = model.lm_head.weight.detach().clone()
        head = torch.nn.Linear(network.HIDDEN, forward.CELL_TARGETS)
        reader = forward.Reader(tokenizer, 0)
        training.warm_up(model, head, reader)
        assert list(training.train(model, head, reader, steps=2, rate=1e-3)) == [1, 2]
        weights.append(model.lm_head.weight.detach())
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], start)

"""A forked batch gives the numbers of separate rows: scores, loss and gradients, in every family.

Tolerance: both sides sum the same fp32 products in another order. A state of a few hundred terms
differs by some units of 2^-24 relative, so 1e-5 absolute on rewards below 1 is a hundred times what
was seen (at most 3e-7), and gradients are compared relative to the largest one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from prefix_cases import (
    CASES,
    DENSE,
    GRADIENTS,
    case,
    dense_rewards,
    equal_pairs,
    loss,
    reward_model,
)
from tiny import TINY_FAMILIES, make_tiny

from medrm.config.options import AdapterOptions, ModelOptions
from medrm.errors import ConfigError
from medrm.models.base_model import load_base
from medrm.models.prefix_sharing import attention as attention_module
from medrm.models.prefix_sharing.attention import enable_prefix_sharing, shares_prefix
from medrm.models.prefix_sharing.batch import SHARED_PREFIX, SharedPrefixBatch, sharing_problem
from medrm.models.processors import load_processor
from medrm.models.reward_model import attach_head, without_adapter
from medrm.models.trainable import add_adapter
from medrm.scorer.collator import Collator
from medrm.scorer.logprobs import token_positions

EVERY_FAMILY = pytest.mark.parametrize("family", TINY_FAMILIES)


def check(model: Any, separate: Any, shared: Any, tolerance: float = 1e-5) -> None:
    """Compares rewards, loss and all gradients of one batch made in two ways."""
    expected_rewards, expected_gradients = loss(model, separate)
    rewards, gradients = loss(model, shared)
    assert rewards.dtype == torch.float32
    torch.testing.assert_close(rewards, expected_rewards, rtol=0, atol=tolerance)
    assert expected_gradients
    assert expected_gradients.keys() == gradients.keys()
    largest = max(gradient.abs().max() for gradient in expected_gradients.values())
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(
            gradients[name], gradient, rtol=0, atol=float(tolerance * largest), msg=name
        )


@EVERY_FAMILY
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["kept", "saved", "reentrant"])
def test_scores_loss_and_gradients_are_those_of_separate_rows(family, checkpointing):
    """Several cases with K = 2, 3 and 4, images of mixed sizes, LoRA on the language model."""
    model, collator = reward_model(family)
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        if checkpointing:
            model.enable_input_require_grads()
    model.train()
    for cases in (CASES, CASES[:1] * 2, CASES[1:2]):
        check(model, collator.rows(cases), collator.shared_rows(cases))


@EVERY_FAMILY
def test_answers_of_one_length_agree(family):
    model, collator = reward_model(family)
    pairs = equal_pairs()
    shared = collator.shared_rows(pairs)[SHARED_PREFIX]
    assert len(set(shared.prefix_lengths)) == 1
    assert len({length for lengths in shared.branch_lengths for length in lengths}) == 1
    check(model, collator.rows(pairs), collator.shared_rows(pairs))


@pytest.mark.parametrize("gradients", [True, False])
def test_all_layers_share_one_mask(gradients, monkeypatch):
    """Made once in a forward; no layer keeps one of its own for its backward."""
    model, collator = reward_model("llava")
    masks_seen = []
    attention = attention_module.scaled_dot_product_attention

    def spied(*heads, **settings):
        masks_seen.append(settings["attn_mask"])
        return attention(*heads, **settings)

    monkeypatch.setattr(attention_module, "scaled_dot_product_attention", spied)
    saved = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with torch.set_grad_enabled(gradients), keep:
        model(**collator.shared_rows(CASES))
    assert len(masks_seen) == 2
    assert masks_seen[0] is masks_seen[1]
    assert (masks_seen[0].dtype == torch.bool) == (not gradients)
    masks = [tensor for tensor in saved if tensor.shape == masks_seen[0].shape]
    assert len(masks) == 2 * gradients
    assert len({tensor.data_ptr() for tensor in masks}) == gradients


@EVERY_FAMILY
def test_text_only_cases(family):
    model, collator = reward_model(family)
    cases = [dataclasses.replace(pictured, images=()) for pictured in CASES]
    check(model, collator.rows(cases), collator.shared_rows(cases))


@EVERY_FAMILY
def test_whole_model_and_vision_tower_get_the_same_gradients(family):
    stock, processor = make_tiny(family)
    model = attach_head(stock, GRADIENTS, seed=1).requires_grad_(True)
    collator = Collator(processor)
    check(model, collator.rows(CASES), collator.shared_rows(CASES))


@EVERY_FAMILY
def test_bf16_agrees_within_its_rounding(family):
    """bf16 keeps 8 bits: states of order 1 differ by some 2^-8, and so do rewards."""
    model, collator = reward_model(family)
    model.to(torch.bfloat16)
    separate, shared = (
        model(**make(CASES)).rewards.detach() for make in (collator.rows, collator.shared_rows)
    )
    assert (separate - shared).abs().max() <= 2**-4
    assert (separate - shared).abs().mean() <= 2**-6


@EVERY_FAMILY
def test_other_batches_are_read_as_before_to_the_bit(family):
    plain, processor = make_tiny(family, shared_prefix=False)
    sharing, _ = make_tiny(family)
    assert not shares_prefix(plain)
    assert shares_prefix(sharing)
    inputs = Collator(processor).rows(CASES[:2])
    with torch.inference_mode():
        plain_states, states = (
            stock.model(**inputs).last_hidden_state for stock in (plain, sharing)
        )
    assert torch.equal(states, plain_states)


@pytest.mark.parametrize("family", DENSE)
def test_one_row_under_a_dense_mask_agrees(family):
    """An oracle of another kind: stock attention under a mask over the whole row."""
    model, collator = reward_model(family)
    with torch.inference_mode():
        expected = dense_rewards(model, collator.shared_rows(CASES[:1]))
        rewards = model(**collator.shared_rows(CASES[:1])).rewards
    torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-5)


def test_sliding_window_counts_the_tokens_of_a_branchs_own_path():
    """The window (16) is shorter than prefix and branches: it ends before, at and after a fork."""
    model, collator = reward_model("gemma3")
    assert without_adapter(model).config.get_text_config().sliding_window == 16
    long = [case(9, ("word " * 40 + "end", "a", "other " * 6))]
    assert max(collator.shared_rows(long)[SHARED_PREFIX].branch_lengths[0]) > 32
    check(model, collator.rows(long), collator.shared_rows(long))


def rewritten(family: str, user: str) -> tuple[Any, Collator]:
    """A reward model whose chat template writes only a user's turn so, and an answer as it is."""
    model, collator = reward_model(family)
    turns = "{% for m in messages %}{% if m['role'] == 'user' %}USER{% else %}ANSWER{% endif %}"
    text = "{{ m['content'][-1]['text'] }}"
    template = turns.replace("USER", user.replace("TEXT", text)).replace("ANSWER", text)
    collator.processor.chat_template = template + "{% endfor %}"
    return model, collator


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("size", [(60, 40), (56, 112), (112, 56), (28, 28)])
def test_a_prefix_may_end_in_an_image(family, size):
    """Nothing closes the image: M-RoPE goes on from its longer side, not from its last token."""
    model, collator = rewritten(family, "TEXT<|vision_start|><|image_pad|>")
    cases = [case(seed, ("Yes", "no", "7 words of it"), *size) for seed in range(2)]
    fork = collator.shared_rows(cases)
    image = collator.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert fork["input_ids"][0, fork[SHARED_PREFIX].prefix_lengths[0] - 1] == image
    check(model, collator.rows(cases), fork)


@pytest.mark.parametrize("side", [28, 56])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_an_image_behind_an_answer_is_refused(family, side):
    """Of one token or of several; there is no prefix that holds it."""
    placeholder = {"qwen2_5_vl": "<|vision_start|><|image_pad|>", "llava": "<image>"}[family]
    _, collator = reward_model(family)
    collator.processor.chat_template = (
        "{{ messages[0]['content'][-1]['text'] }}{% for m in messages[1:] %}"
        "{{ m['content'][0]['text'] }}{% endfor %}" + placeholder + " Is it?"
    )
    pair = [case(0, ("Yes", "No"), side, side)]
    assert len(collator.rows(pair)["input_ids"]) == 2
    with pytest.raises(ConfigError, match="puts the images first, or shared_prefix off"):
        collator.shared_rows(pair)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3", "mllama", "idefics3"])
def test_qlora(family, tiny_folder):
    pytest.importorskip("bitsandbytes")
    folder = str(tiny_folder(family, hidden=64))
    base = load_base(ModelOptions(folder, load_in_4bit=True, dtype="float32"))
    assert shares_prefix(base)
    model = add_adapter(attach_head(base, GRADIENTS, seed=1), AdapterOptions(lora_r=4), seed=2)
    collator = Collator(load_processor(folder))
    # NF4 weights are multiplied in bf16 (bnb_4bit_compute_dtype).
    check(model, collator.rows(CASES), collator.shared_rows(CASES), tolerance=2e-2)


@EVERY_FAMILY
def test_indices_name_the_tokens_of_each_row(family):
    _, collator = reward_model(family)
    separate, shared = collator.rows(CASES), collator.shared_rows(CASES)
    rows = [
        features["input_ids"].flatten()[indices].tolist()
        for features in (separate, shared)
        for indices in token_positions(features)
    ]
    count = len(rows) // 2
    assert rows[:count] == rows[count:]
    assert shared["input_ids"].numel() < separate["input_ids"].numel() / 1.5


def test_a_packed_batch_holds_each_token_once():
    shared = SharedPrefixBatch((3, 2), ((2, 1), (1, 4)), row_length=13, packed=True)
    indices = [index for row in shared.branch_rows for index in row]
    assert set(indices) == set(range(13))
    assert shared.branch_rows[0] == [0, 1, 2, 5, 6]
    assert shared.branch_rows[3] == [3, 4, 9, 10, 11, 12]
    assert shared.reward_indices == [[6], [7], [8], [12]]


def test_a_model_without_prefix_sharing_refuses_its_batches():
    """Its attention would look past the fork without a word."""
    model, processor = make_tiny("qwen2_5_vl", shared_prefix=False)
    attach_head(model, GRADIENTS, seed=1)
    with pytest.raises(ConfigError, match="shared_prefix off"):
        model(**Collator(processor).shared_rows(CASES))


def test_what_cannot_share_has_a_reason_and_runs_separately(tiny_folder, caplog):
    for family in TINY_FAMILIES:
        assert sharing_problem(make_tiny(family)[0].config) is None
    config = make_tiny("llava")[0].config
    config.text_config.layer_types = ["linear_attention", "full_attention"]
    assert "linear" in str(sharing_problem(config))
    folder = str(tiny_folder("llava"))
    with caplog.at_level("INFO", logger="medrm"):
        eager = load_base(ModelOptions(folder, attn_implementation="eager"))
    assert not shares_prefix(eager)
    assert "separate rows: attention 'eager'" in caplog.text
    assert not shares_prefix(load_base(ModelOptions(folder, shared_prefix="off")))
    assert shares_prefix(load_base(ModelOptions(folder)))


def test_a_saved_model_names_no_attention_of_ours(tmp_path):
    model, _ = make_tiny("llava")
    enable_prefix_sharing(model)
    model.save_pretrained(tmp_path)
    assert "medrm" not in (tmp_path / "config.json").read_text()

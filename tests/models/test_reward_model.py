"""The reward model itself: head, pooling, padding, precision, what of it runs and trains."""

from __future__ import annotations

import pickle

import pytest
import torch
from rows import ANSWERS, SPEC, batch, reward_model, rewards
from tiny import TINY_FAMILIES, make_tiny

from medrm.models.reward_model import (
    HeadSpec,
    RewardHead,
    attach_head,
    head_of,
    last_attended,
)

EVERY_FAMILY = pytest.mark.parametrize("family", TINY_FAMILIES)


@EVERY_FAMILY
def test_batch_and_padding_side_do_not_change_rewards(family, tiny_folder):
    model, processor = reward_model(tiny_folder(family))
    alone = torch.cat(
        [
            rewards(model, batch(processor, family, (answer,), (seed,)))
            for seed, answer in enumerate(ANSWERS)
        ]
    )
    for side in ("right", "left"):
        batched = rewards(model, batch(processor, family, side=side))
        assert batched.shape == (2, 2)
        assert batched.dtype == torch.float32
        torch.testing.assert_close(batched, alone, rtol=0, atol=1e-5)
    assert (alone[0] - alone[1]).abs().min() > 1e-4


@EVERY_FAMILY
def test_every_processor_key_is_used_and_lm_head_is_not_run(family, tiny_folder):
    model, processor = reward_model(tiny_folder(family))
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("the LM head ran"))
    inputs = batch(processor, family)
    expected = model.score(model.reward_states(**inputs)[:, 0])[0]
    torch.testing.assert_close(rewards(model, inputs), expected, rtol=0, atol=0)


@EVERY_FAMILY
def test_processor_survives_pickling(family, tiny_folder):
    _, processor = reward_model(tiny_folder(family))
    again = pickle.loads(pickle.dumps(processor))
    first, second = batch(processor, family), batch(again, family)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("mask", [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
def test_pooling_reads_the_last_attended_position(mask):
    states = torch.arange(5.0)[None, :, None].expand(1, 5, 3)
    last = max(index for index, attended in enumerate(mask) if attended)
    assert last_attended(states, torch.tensor([mask])).tolist() == [[float(last)] * 3]


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_head_is_seeded_and_leaves_the_global_generator_alone(kind):
    state = torch.random.get_rng_state()
    spec = HeadSpec(("accuracy",), kind=kind)
    heads = [RewardHead(16, spec, seed) for seed in (3, 3, 4)]
    assert torch.equal(state, torch.random.get_rng_state())
    states = torch.ones(2, 16)
    same, again, other = (head(states)[0] for head in heads)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)
    width = 16 if kind == "mlp" else None
    assert heads[0].spec.hidden_size == width


def test_head_stays_fp32_in_a_bf16_model():
    model, _ = make_tiny("qwen2_5_vl")
    head = head_of(attach_head(model, SPEC, seed=0))
    before = [parameter.clone() for parameter in head.parameters()]
    model.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(before, head.parameters(), strict=True))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values, _ = head(torch.randn(512, 32, generator=torch.Generator().manual_seed(0)))
    assert values.dtype == torch.float32
    assert len(values.flatten().unique()) > 1000, "bf16 products would collapse to fewer values"


def test_tie_parameter_is_fixed_at_no_tie_where_the_data_has_none():
    head = RewardHead(8, SPEC, seed=0)
    _, ties = head(torch.zeros(1, 8))
    assert ties.tolist() == [float("-inf"), 0.0]
    ties.exp().sum().backward()
    assert head.tie_logit.grad.tolist() == [0.0, 1.0]
    assert RewardHead(8, HeadSpec(("accuracy",)), seed=0)(torch.zeros(1, 8))[1] is None


def test_the_class_keeps_the_stock_name():
    model, _ = make_tiny("gemma3")
    stock = type(model)
    attach_head(model, SPEC, seed=0)
    assert type(model).__name__ == stock.__name__
    assert isinstance(model, stock)

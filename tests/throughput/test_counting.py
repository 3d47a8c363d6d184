"""What `medrm throughput` counts: operations, memory, and the device's rate."""

from __future__ import annotations

import pytest
import torch

from medrm.throughput.flops import causal_pairs, count_flops, matmul_rate
from medrm.throughput.memory import growth


def test_the_rate_needs_no_more_rows_than_keep_a_device_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: set[int] = set()

    def linear(states: torch.Tensor, weight: torch.Tensor) -> None:
        assert not torch.equal(states[0], states[1])
        rows.add(len(states))

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    for tokens in (100, 10_000):
        matmul_rate(tokens, (4, 8), torch.float32, torch.device("cpu"))
    assert rows == {100, 4096}


def test_causal_pairs_are_those_of_the_mask() -> None:
    for queries, keys in ((5, 5), (3, 7), (7, 3)):
        mask = torch.ones(queries, keys).tril()
        assert causal_pairs(queries, keys) == int(mask.sum())


def test_attention_is_counted_by_its_formula() -> None:
    query = torch.randn(2, 4, 6, 8, requires_grad=True)
    key = torch.randn(2, 4, 10, 8, requires_grad=True)

    def attend(causal: bool, backward: bool = False) -> int:
        def step() -> None:
            attention = torch.nn.functional.scaled_dot_product_attention
            out = attention(query, query if causal else key, query if causal else key,
                            is_causal=causal)  # fmt: skip
            if backward:
                out.sum().backward()

        return count_flops(step, torch.nn.Identity())[0]

    assert attend(causal=False) == 2 * (2 * 2 * 4 * 6 * 10 * 8)
    assert attend(causal=True) == 2 * (2 * 2 * 4 * 21 * 8)
    assert attend(causal=False, backward=True) == 7 * (2 * 2 * 4 * 6 * 10 * 8)


def test_growth_is_the_peak_of_what_lives() -> None:
    kept: list[torch.Tensor] = []

    def step() -> None:
        first = torch.ones(1000)
        second = first + 1
        del first
        kept.append(second + 1)
        kept.append(kept[0] + 1)

    most, left = growth(step)
    assert 3 * 4000 <= most < 3 * 4000 + 1000
    assert 2 * 4000 <= left < 2 * 4000 + 100

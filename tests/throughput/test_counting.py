"""What `medrm throughput` counts: operations, memory, and the device's rate."""

from __future__ import annotations

import pytest
import torch

from medrm.throughput_model import causal_pairs, count_flops, matmul_rate


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

        return count_flops(step, "tower")[0]

    assert attend(causal=False) == 2 * (2 * 2 * 4 * 6 * 10 * 8)
    assert attend(causal=True) == 2 * (2 * 2 * 4 * 21 * 8)
    assert attend(causal=False, backward=True) == 7 * (2 * 2 * 4 * 6 * 10 * 8)

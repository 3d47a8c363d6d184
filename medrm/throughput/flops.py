"""What a step computes, in floating-point operations, and how fast the device multiplies matrices.

Matrix products are counted by torch's own counter, attention by the products of its definition: two
forward, five backward (the scores are computed again), half of the places where it is causal. A
call with a mask computes masked places all the same and is counted in full.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_FORWARD, _BACKWARD = 2, 5
"""Matrix products of attention; each is 2 x queries x keys x width of a head."""

_TRIES = 3
_PRODUCTS = 2
"""Matrix products of one timed try."""

_MOST_ROWS = 4096
"""Rows of a product that keep any device busy."""


def _counter(op: Any, products: int) -> Callable[..., int]:
    """Returns the formula of one attention kernel, whose arguments come as shapes."""
    names = [argument.name for argument in op.default._schema.arguments]

    def count(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        batch, heads, queries, width = given["query"]
        pairs = queries * given["key"][2]
        if given.get("is_causal", False):
            pairs = causal_pairs(queries, given["key"][2])
        return products * 2 * int(batch * heads * pairs * width)

    return count


def causal_pairs(queries: int, keys: int) -> int:
    """Returns how many (query, key) are seen where query i sees keys 0 to i."""
    both = min(queries, keys)
    return both * (both + 1) // 2 + (queries - both) * keys


def _attention() -> dict[Any, Callable[..., int]]:
    kernels = ("flash_attention_for_cpu", "flash_attention", "efficient_attention")
    formulas = {}
    for kernel in (*kernels, "cudnn_attention"):
        for suffix, products in (("", _FORWARD), ("_backward", _BACKWARD)):
            op = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{suffix}")
            formulas[op] = _counter(op, products)
    return formulas


def count_flops(step: Callable[[], Any], tower: nn.Module) -> tuple[int, int]:
    """Returns the operations of a step, and those of them that the vision tower's forward takes.

    Args:
        step: runs once.
        tower: of the model that it runs.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_attention())
    inside: list[int] = []

    def enter(*_: Any) -> None:
        inside.append(-counter.get_total_flops())

    def leave(*_: Any) -> None:
        inside[-1] += counter.get_total_flops()

    hooks = [tower.register_forward_pre_hook(enter), tower.register_forward_hook(leave)]
    try:
        with counter:
            step()
    finally:
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops(), sum(inside)


def synchronise(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(
    tokens: int, widths: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> float:
    """Returns the device's best measured operations per second in the products of an MLP.

    Args:
        tokens: rows of the product, if fewer than keep any device busy.
        widths: of the decoder, and of its MLP.
        dtype: of the weights.
        device: where.
    """
    best = 0.0
    rows = min(tokens, _MOST_ROWS)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for inputs, outputs in (widths, widths[::-1]):
            # Not ones: the clock of a GPU goes by the power that the numbers take.
            states, weight = (
                torch.randn(size, inputs, dtype=dtype, device=device, generator=generator)
                for size in (rows, outputs)
            )
            fastest = math.inf
            for _ in range(_TRIES):
                synchronise(device)
                start = time.perf_counter()
                for _ in range(_PRODUCTS):
                    torch.nn.functional.linear(states, weight)
                synchronise(device)
                fastest = min(fastest, time.perf_counter() - start)
            best = max(best, _PRODUCTS * 2 * rows * inputs * outputs / fastest)
    return best

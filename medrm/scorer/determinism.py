"""Deterministic scoring: a score is the same, to the bit, whatever else is scored with it.

The sums of a matrix product are taken in an order that depends on the shape of the batch. In fp32
that moves a reward in its sixth or seventh digit, in bf16, whose numbers have three digits, by as
much as 0.02. So here each row is a batch of its own, of its own length: without padding, without a
shared prefix, by kernels that give the same sums each time. That takes about K times as long
as a shared prefix of K answers (recipes/README.md).

It holds on one machine: another device, number of threads or version of torch takes other sums.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from medrm.errors import DeterminismError, first_line
from medrm.models.prefix_sharing.attention import (
    disable_prefix_sharing,
    enable_prefix_sharing,
    shares_prefix,
)

_FIXED = threading.RLock()
"""Held while kernels are fixed: torch's switches count for all threads."""


def prepare_kernels() -> None:
    """Chooses cuBLAS's workspace, which must be known before the first product on a GPU.

    Source: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def fixed_kernels(model: PreTrainedModel, shares: bool) -> Iterator[None]:
    """Computes by deterministic kernels in full precision, and as before afterwards.

    Args:
        model: a stock model or one with a head; its attention is the same whether or not it may
            share prefixes.
        shares: whether the batch has a shared prefix all the same, as that of answers which see
            each other has.

    Raises:
        DeterminismError: the model needs an operation that has no deterministic kernel.
    """
    prepare_kernels()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    with _FIXED:
        enabled = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        tf32 = (cudnn.allow_tf32, matmul.allow_tf32)
        separated = shares_prefix(model) and not shares
        torch.use_deterministic_algorithms(True)
        cudnn.allow_tf32 = matmul.allow_tf32 = False
        if separated:
            disable_prefix_sharing(model)
        try:
            yield
        except RuntimeError as error:
            if "deterministic" not in str(error):
                raise
            raise DeterminismError(
                f"{type(model).__name__} cannot be scored deterministically on {model.device}: "
                f"{first_line(error)} Leave out deterministic, or score on another device."
            ) from error
        finally:
            if separated:
                enable_prefix_sharing(model)
            torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
            cudnn.allow_tf32, matmul.allow_tf32 = tf32

"""The most memory that tensors held at any moment of a step.

On a GPU torch's allocator says it. On a CPU the resident size of the process would also hold what
malloc keeps of earlier steps; so the allocations of the step are recorded, as torch's profiler
sees them, and the step's greatest growth is added to what lay there before it. Scratch memory that
a library allocates past torch is not seen.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""

_CPU = 0
"""The device type of a CPU in a trace."""


def keep_freed_memory() -> None:
    """Lets malloc keep what is freed, as GPU allocators do; for the whole process.

    glibc gives large blocks back and then the kernel clears their pages anew at each allocation.
    That costs most where tensors are largest: separate rows would look slower than they compute.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def tensor_bytes(value: Any) -> int:
    """Returns the bytes of all tensors in nested lists and mappings."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, (list, tuple)) else 0


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Keeps out what the profiler's library writes to the process's own stderr."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def growth(step: Callable[[], Any]) -> tuple[int, int]:
    """Returns by how many bytes a step's CPU tensors grow at most, and what is left of that.

    Args:
        step: runs once.
    """
    with _without_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [
        event["args"]
        for event in sorted(events, key=lambda event: event.get("args", {}).get("Ev Idx", 0))
        if event.get("name") == "[memory]" and event["args"]["Device Type"] == _CPU
    ]
    if not changes:
        return 0, 0
    totals = [change["Total Allocated"] for change in changes]
    # The count goes on from earlier recordings.
    start = totals[0] - changes[0]["Bytes"]
    return max(totals) - start, totals[-1] - start


def peak_bytes(step: Callable[[], Any], before: int, device: torch.device) -> int:
    """Returns the most bytes of tensors during a step.

    Args:
        step: runs once.
        before: bytes of the tensors that lie there before it; a GPU's allocator knows them itself.
        device: of the model.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return before + growth(step)[0]

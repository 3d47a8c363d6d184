"""medrm: reward models and judges for medical multimodal LLMs.

Layers, each importing only from lower ones (tests/test_layering.py):
cli > throughput | reward_function | guard > throughput_model > serve > pipeline > hub
> evaluation > objectives > scorer > exchange > models | data | chat | parsers
> config | statistics | chat_template
> integrity > schema | files | folder_lock | readouts | progress_bar > errors | version
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

from medrm.schema import DIMENSIONS, Case, ImageRef, PairLabel, RankingLabel, Verdict
from medrm.version import __version__ as __version__  # for callers; our own modules ask it

if TYPE_CHECKING:
    from medrm.data.case_set import read_cases
    from medrm.parsers import parse_verdict
    from medrm.reward_function import RewardFunction
    from medrm.scorer.open import load

# Read when huggingface_hub is first imported: no run of medrm reports to anybody.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# PEFT imports bitsandbytes, which then warns of an optional kernel that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
__all__ = [
    "DIMENSIONS",
    "Case",
    "ImageRef",
    "PairLabel",
    "RankingLabel",
    "RewardFunction",
    "Verdict",
    "load",
    "parse_verdict",
    "read_cases",
]

_LAZY = {
    "RewardFunction": "medrm.reward_function",
    "load": "medrm.scorer.open",
    "parse_verdict": "medrm.parsers",
    "read_cases": "medrm.data.case_set",
}


def __getattr__(name: str) -> Any:
    """Imports the heavier names on first use: `import medrm` loads no torch."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'medrm' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Lists the heavier names as well, for completion."""
    return sorted({*globals(), *_LAZY})

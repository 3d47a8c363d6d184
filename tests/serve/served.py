"""The models that are served in the tests, cases, and the bodies that ask about them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

from medrm.data.case_set import read_cases
from medrm.schema import Case
from medrm.serve.service import Service

Serve = Callable[..., tuple[TestClient, Service]]
"""Serves a loaded model in this process."""

GOLDEN = Path(__file__).parents[1] / "golden"
REWARD_MODEL, JUDGE = GOLDEN / "reward_adapter", GOLDEN / "judge_adapter"

CLOSE = 1e-5
"""How far rounding moves a reward in float32, as README.md says."""


@cache
def _all_cases() -> list[Case]:
    return list(read_cases(GOLDEN / "cases"))


def golden_cases(count: int = 6) -> list[Case]:
    """Phantom cases with an image and two answers each."""
    cases = _all_cases()[:count]
    assert len(cases) == count
    assert all(len(case.images) == 1 for case in cases)
    return cases


def encoded(case: Case, *, as_url: bool = True) -> list[str]:
    """A case's images, as data URLs or base64."""
    images = [base64.b64encode(image.read()).decode() for image in case.images]
    return [f"data:image/png;base64,{image}" for image in images] if as_url else images


def asked(case: Case, *, as_url: bool = True) -> dict[str, Any]:
    """A case as a request describes it."""
    return {
        "id": case.case_id,
        "question": case.question,
        "images": encoded(case, as_url=as_url),
        "answers": list(case.answers),
    }


def columns(rewards: dict[str, list[float]]) -> Any:
    """Rewards of an answer of the service as `score` returns them, [K, D]."""
    return np.array(list(rewards.values()), dtype=np.float32).T

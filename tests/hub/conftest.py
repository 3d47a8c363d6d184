"""A hub in this process, and an adapter to publish in it."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_words import GOLDEN, TOKEN
from huggingface_hub import constants
from loopback_hub import LoopbackHub, serving

from medrm.hub import connection
from medrm.hub import publish as publishing


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A hub, a cache of this test, time-outs of a second, and no waiting before another try."""
    monkeypatch.setattr(connection, "TIMEOUT", 1.0)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with serving(TOKEN, monkeypatch) as server:
        monkeypatch.setattr(time, "sleep", server.slept.append)
        yield server


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of rewards the weights are compared, so that no model is loaded."""

    def digest(folder: Path, base: str | None = None) -> list[str]:
        return [hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()]

    monkeypatch.setattr(publishing, "probe", digest)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "0.3" / "reward_adapter", tmp_path / "adapter"))

"""Writes run.json: what exactly ran, before its first step."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medrm.config import Run
from medrm.files import write_atomically

PACKAGES = (
    "medrm",
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "bitsandbytes",
    "numpy",
    "pillow",
)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that decide numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Returns the commit of the checkout that medrm runs from, "+dirty" when changed, else None."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return head + ("+dirty" if _git(folder, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def write_manifest(path: Path, run: Run, data: Mapping[str, Any], processes: int) -> None:
    """Writes the resolved configuration, versions, commit, seed, device and data digests."""
    content = {
        "config": run.resolved(),
        "seed": run.training.seed,
        "device": str(run.training.device),
        "processes": processes,
        "versions": versions(),
        "git_commit": git_commit(),
        "data": data,
    }
    # A killed run can be gone on with only if this file is whole.
    write_atomically(path, [json.dumps(content, indent=2, default=str).encode(), b"\n"])

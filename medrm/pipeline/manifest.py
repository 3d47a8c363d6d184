"""`run.json`: what a run is made of, and what made it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import ProcessorMixin

from medrm.config.parse import Run
from medrm.files import file_digest
from medrm.integrity import MANIFEST, is_sealed
from medrm.models.adapter import saved_identity
from medrm.models.base_reference import reference_of
from medrm.pipeline.checkpoints import is_own, resume_point
from medrm.pipeline.launch_settings import LaunchSettings
from medrm.scorer.proof_cache import processor_digest
from medrm.scorer.specs import judge_spec, saved_folder
from medrm.version import __version__

PACKAGES = (
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
"""Libraries that decide numbers."""


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that decide numbers."""
    installed = {"python": platform.python_version(), "medrm": __version__}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def git_commit() -> str | None:
    """Returns the commit of the checkout that medrm runs from, "+dirty" when changed, else None."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        dirty = git("status", "--porcelain", "-uno")
        return git("rev-parse", "HEAD") + ("+dirty" if dirty else "")
    return None


def sharding(launch: LaunchSettings) -> str:
    """Returns in which parts processes hold a training, and so what its checkpoints consist of."""
    if launch.kind == "DeepSpeed":
        return f"ZeRO-{launch.zero_stage} of {launch.processes} processes"
    return "FSDP2" if launch.kind == "FSDP2" else "none"


def manifest_of(run: Run, data: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of run.json, as it is read again.

    Args:
        run: all options.
        data: what it learns from and is measured on, with digests.
        inputs: what options name by path, by its content.
    """
    manifest = {
        "config": run.resolved(),
        "seed": run.training.seed,
        "device": str(run.training.device),
        "processes": PartialState().num_processes,
        "sharding": sharding(LaunchSettings.read(os.environ)),
        "versions": versions(),
        "git_commit": git_commit(),
        "inputs": inputs,
        "data": data,
    }
    as_read: dict[str, Any] = json.loads(json.dumps(manifest, default=str))
    return as_read


def inputs_of(run: Run, processor: ProcessorMixin) -> dict[str, str | None]:
    """Returns what options name by path, by its content, once the base is found.

    Args:
        run: all options.
        processor: of the base.
    """
    spec = json.dumps(dataclasses.asdict(judge_spec(run.judge)), sort_keys=True)
    start = run.judge.init_adapter
    point = resume_point(run.training.resume_from_checkpoint)
    files = {
        "department_map": run.data.department_map,
        "rationales": getattr(run.training, "rationales", None),
    }
    # A checkpoint of another folder is where this run begins.
    is_foreign = isinstance(point, str) and not is_own(point, Path(run.training.output_dir))
    return {
        "base": reference_of(run.model).identity,
        "processor": processor_digest(processor),
        "init_adapter": None if start is None else saved_identity(saved_folder(start)),
        "prompt": hashlib.sha256(spec.encode()).hexdigest(),
        "checkpoint": _checkpoint_digest(Path(str(point))) if is_foreign else None,
        **{name: None if path is None else file_digest(Path(path)) for name, path in files.items()},
    }


def _checkpoint_digest(folder: Path) -> str:
    """Returns the SHA-256 of a checkpoint's manifest, or of its files where it has none."""
    files = [folder / MANIFEST] if is_sealed(folder) else sorted(folder.rglob("*"))
    digest = hashlib.sha256()
    for path in filter(Path.is_file, files):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()

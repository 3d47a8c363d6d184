"""How a run was launched, read from the environment that `accelerate launch` sets up.

No process group is started and no GPU is needed, so that a login node can tell of a queue's nodes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["one process", "DDP", "DeepSpeed", "FSDP2"]

_LAUNCHED = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "MASTER_", "GROUP_", "ROLE_", "LOCAL_")
"""Beginnings of the names of variables by which a process knows of the others."""

_SETTINGS = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "FSDP_")
"""Beginnings of the names of variables that say what a launch file asks for."""

_RANKS = ("RANK", "WORLD_SIZE")


@dataclass(frozen=True)
class LaunchSettings:
    """Over how many devices a training is spread, and what each of them holds.

    Attributes:
        kind: how the processes work together.
        processes: of all machines, a device each.
        machines: that they run on.
        rank: of this process.
        on_cpu: whether the launch asks for CPUs.
        zero_stage: of DeepSpeed; 0 without it.
        optimiser_offloaded: whether its states lie in main memory.
        weights_offloaded: whether the weights do, but for those that are computed with.
        reshards: whether FSDP2 frees what it gathered after the forward pass.
    """

    kind: Kind = "one process"
    processes: int = 1
    machines: int = 1
    rank: int = 0
    on_cpu: bool = False
    zero_stage: int = 0
    optimiser_offloaded: bool = False
    weights_offloaded: bool = False
    reshards: bool = True

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> LaunchSettings:
        """Returns what the variables of a process say."""
        processes = int(environment.get("WORLD_SIZE", "1"))
        local = int(environment.get("LOCAL_WORLD_SIZE", str(processes)))
        common: dict[str, Any] = {
            "processes": processes,
            "machines": max(1, processes // local),
            "rank": int(environment.get("RANK", "0")),
            "on_cpu": _is_on(environment, "ACCELERATE_USE_CPU"),
        }
        if _is_on(environment, "ACCELERATE_USE_DEEPSPEED"):
            return cls(kind="DeepSpeed", **common, **_deepspeed(environment))
        if _is_on(environment, "ACCELERATE_USE_FSDP"):
            offloads = _is_on(environment, "FSDP_OFFLOAD_PARAMS")
            return cls(
                kind="FSDP2",
                **common,
                optimiser_offloaded=offloads,
                weights_offloaded=offloads,
                reshards=_is_on(environment, "FSDP_RESHARD_AFTER_FORWARD", "true"),
            )
        return cls(kind="DDP" if processes > 1 else "one process", **common)

    def __str__(self) -> str:
        name = f"DeepSpeed ZeRO-{self.zero_stage}" if self.kind == "DeepSpeed" else str(self.kind)
        if self.processes == 1:
            return name
        offloaded = {"optimiser": self.optimiser_offloaded, "weights": self.weights_offloaded}
        names = " and ".join(part for part, applies in offloaded.items() if applies)
        machines = f" on {self.machines} machines" if self.machines > 1 else ""
        return f"{name}, {self.processes} processes{machines}" + (
            f", {names} in main memory" if names else ""
        )


def _is_on(environment: Mapping[str, str], name: str, default: str = "false") -> bool:
    return environment.get(name, default).lower() in ("1", "true", "yes", "full_shard")


def _deepspeed(environment: Mapping[str, str]) -> dict[str, Any]:
    """Returns the settings of DeepSpeed: of the launch, or of the file that it names."""
    prefix = "ACCELERATE_DEEPSPEED_"
    zero: dict[str, Any] = {}
    path = environment.get(f"{prefix}CONFIG_FILE", "none")
    if Path(path).is_file():
        zero = json.loads(Path(path).read_text(encoding="utf-8")).get("zero_optimization", {})
    devices = {
        "optimiser_offloaded": ("offload_optimizer", "OFFLOAD_OPTIMIZER_DEVICE"),
        "weights_offloaded": ("offload_param", "OFFLOAD_PARAM_DEVICE"),
    }
    return {
        "zero_stage": int(zero.get("stage", environment.get(f"{prefix}ZERO_STAGE", 2))),
        **{
            field: zero.get(key, {}).get("device", environment.get(prefix + name, "none")) != "none"
            for field, (key, name) in devices.items()
        },
    }


@contextmanager
def as_one_cpu_process() -> Iterator[Mapping[str, str]]:
    """Lets this process be the only one, on the CPU; yields the variables that it was started with.

    Those by which it knows of the others are gone within.
    """
    before = dict(os.environ)
    for name in before:
        if name.startswith(_LAUNCHED) or name in _RANKS:
            del os.environ[name]
    os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        yield before
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def as_the_file_asks(environment: Mapping[str, str]) -> Iterator[None]:
    """Lets checks within read what a launch file asks for, where no process is to look for others.

    Args:
        environment: of a launched process.
    """
    asked = {
        name: value
        for name, value in environment.items()
        if name.startswith(_SETTINGS) and name not in os.environ
    }
    os.environ.update(asked)
    try:
        yield
    finally:
        for name in asked:
            del os.environ[name]

"""Processes of a run: whether they are distributed as the launch file names it, and who decides.

accelerate does not say when it does something else: FSDP on CPUs is plain DDP, and several
processes that were promised GPUs and find none are each a run of its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, broadcast_object_list, parse_flag_from_env

from medrm.config.parse import Run
from medrm.errors import ConfigError, applying, refuse

FSDP_SETTINGS = {
    "fsdp_version": ("2", "FSDP 1 flattens weights of several precisions into one"),
    "fsdp_auto_wrap_policy": ("TRANSFORMER_BASED_WRAP", "else the model is gathered as a whole"),
    "fsdp_state_dict_type": ("FULL_STATE_DICT", "a checkpoint serves any number of processes"),
    "fsdp_cpu_ram_efficient_loading": ("false", "every process proves the model that it loads"),
    "fsdp_activation_checkpointing": ("false", "the recipe says it, gradient_checkpointing: true"),
}
"""Settings of a launch file that FSDP is run with, each with its one value and why."""

T = TypeVar("T")

_SEVERAL_GPUS = (DistributedType.MULTI_GPU, DistributedType.FSDP)
_DEEPSPEED = (DistributedType.DEEPSPEED, DistributedType.MULTI_CPU)
"""On CPUs accelerate starts DeepSpeed with the trainer."""


def launched() -> PartialState:
    """Returns the state of this process among those that were started together.

    Raises:
        ConfigError: each of them would do the whole work, in one folder.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count != state.num_processes:
        raise ConfigError(
            f"{count} processes were started, of which each would be by itself on "
            f"{state.device.type}: there are no GPUs for them. Give --use_cpu true, or start one "
            "process by accelerate_configs/cpu.yaml."
        )
    return state


def check_launch(run: Run) -> None:
    """Refuses a launch that would be another one than its file names.

    Raises:
        ConfigError: says what the file asks for and what it would be.
    """
    state = launched()
    count = f"{state.num_processes} process{'es' if state.num_processes > 1 else ''}"
    would_be = f"{count} on {state.device.type}, {state.distributed_type.value}"
    another = "take accelerate_configs/ddp.yaml, or cpu.yaml for one process"
    fsdp, deepspeed = (parse_flag_from_env(f"ACCELERATE_USE_{n}") for n in ("FSDP", "DEEPSPEED"))
    checks = {
        f"the launch file asks for FSDP, but this would be {would_be}; FSDP needs two GPUs or "
        f"more, {another}": fsdp and state.distributed_type not in _SEVERAL_GPUS,
        f"the launch file asks for DeepSpeed, but this would be {would_be}; {another}": (
            deepspeed and state.distributed_type not in _DEEPSPEED
        ),
    }
    refuse([*applying(checks), *launch_file_problems(run)])


def launch_file_problems(run: Run) -> list[str]:
    """Returns what a launch file asks for and this run cannot have, on whatever machine."""
    parted = parse_flag_from_env("ACCELERATE_USE_FSDP")
    checks = {
        "load_in_4bit and load_in_8bit leave the weights whole on every GPU under FSDP; take "
        "accelerate_configs/ddp.yaml": parted
        and (run.model.load_in_4bit or run.model.load_in_8bit),
    }
    problems = applying(checks)
    for name, (value, why) in FSDP_SETTINGS.items() if parted else ():
        given = os.environ.get(name.upper(), "")
        if given.upper() != value.upper():
            problems.append(
                f"{name} is {given or 'not set'} in the launch file; give {value} as "
                f"accelerate_configs/fsdp2.yaml does: {why}"
            )
    return problems


@contextmanager
def first_ones_first() -> Iterator[None]:
    """Lets the first process run the body, then the first of every machine, then all others.

    What the first has made lies in the cache for the rest; a cache may be of one machine alone.
    """
    state = PartialState()
    with state.main_process_first(), state.local_main_process_first():
        yield


def from_main(look: Callable[[], T]) -> T:
    """Returns on every process what the main process sees on the disk: all decide alike.

    Args:
        look: called on the main process alone.

    Raises:
        Exception: on every process, what `look` raised.
    """
    seen: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            seen[0] = look()
        except Exception as error:
            seen[1] = error
    broadcast_object_list(seen)
    result, raised = seen
    if raised is not None:
        raise raised
    return result  # type: ignore[no-any-return] # of `look`

"""Where a run is at any moment, as the process that kills it sees it; and its death at one of them.

A run is a forked process. It keeps its phase, step and epoch in memory that it shares with its
parent, and counts ticks: a file opened for writing, renamed or removed, a training step begun. At
one tick it kills itself, or asks to be killed some milliseconds later, wherever that is.
"""

from __future__ import annotations

import functools
import mmap
import os
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from medrm.evaluation.compare import compare
from medrm.evaluation.pages.report_page import write_page
from medrm.hub.card import write_card
from medrm.models.adapter import save_adapter
from medrm.models.adapter_config import update_adapter_config
from medrm.objectives.whole_checkpoints import WholeCheckpoints
from medrm.pipeline.context import RunContext
from medrm.pipeline.stages import train_probe

PHASES = (
    *("start", "measure", "probe", "training", "step", "develop", "checkpoint", "adapter"),
    "report",
)
"""What a run does: it reads data and models; measures a row of the report; trains the frozen probe,
with all that belongs to that; is between two steps, in a step, or measures the development cases;
saves a checkpoint or the adapter; concludes."""

OF_TRAINING = ("training", "step", "develop", "checkpoint")
SAVES = ("checkpoint", "adapter")

_FORMAT = "4i"
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Plan:
    """When a run is to be killed.

    Attributes:
        phase: in which phase.
        step: at which optimiser step at the earliest, those of the checkpoint included.
        tick: at which of the phase's ticks from then on, counted from 1.
        delay: seconds after it; None: at once.
    """

    phase: str
    step: int
    tick: int
    delay: float | None = None


@dataclass(frozen=True)
class Moment:
    """Where a run is."""

    phase: str
    step: int
    epoch: int
    armed: bool


class SharedMoment:
    """A moment in memory that a run and its parent share."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, struct.calcsize(_FORMAT))

    def write(self, moment: Moment) -> None:
        values = (PHASES.index(moment.phase), moment.step, moment.epoch, moment.armed)
        self._memory[:] = struct.pack(_FORMAT, *values)

    def read(self) -> Moment:
        phase, step, epoch, armed = struct.unpack(_FORMAT, self._memory[:])
        return Moment(PHASES[phase], step, epoch, bool(armed))


class Watch:
    """Follows a run from inside.

    Args:
        shared: where the moment is written to.
        plan: of the run's death; None: it lives, and its ticks are counted.
    """

    def __init__(self, shared: SharedMoment, plan: Plan | None) -> None:
        self.shared, self.plan = shared, plan
        self.phase, self.step, self.epoch, self.armed = PHASES[0], 0, 0, False
        self.ticks: dict[tuple[str, int], int] = {}
        self._left = 0 if plan is None else plan.tick
        self._tell()

    def _tell(self) -> None:
        self.shared.write(Moment(self.phase, self.step, self.epoch, self.armed))

    def tick(self) -> None:
        """Counts a moment at which a run may die."""
        key = (self.phase, self.step)
        self.ticks[key] = self.ticks.get(key, 0) + 1
        plan = self.plan
        if plan is None or self.phase != plan.phase or self.step < plan.step:
            return
        self._left -= 1
        if self._left == 0 and plan.delay is None:
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._left == 0:
            self.armed = True
            self._tell()

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Is in a phase, which may lie in another one."""
        outer, self.phase = self.phase, self.phase if self.phase == "probe" else phase
        self._tell()
        self.tick()
        yield
        self.tick()
        self.phase = outer
        self._tell()

    def _follow(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def followed(*args: Any, **kwargs: Any) -> Any:
            is_trainer = args and isinstance(args[0], transformers.Trainer)
            if is_trainer and self.phase != "probe":
                self.step, self.epoch = args[0].state.global_step, int(args[0].state.epoch or 0)
            with self.within(phase):
                return function(*args, **kwargs)

        return followed

    def install(self) -> None:
        """Follows the functions of this process, which never stops to."""
        methods = (
            ("training", transformers.Trainer, "train"),
            ("step", transformers.Trainer, "training_step"),
            ("develop", transformers.Trainer, "evaluate"),
            ("checkpoint", WholeCheckpoints, "_save_checkpoint"),
            ("measure", RunContext, "measure"),
        )
        for phase, owner, name in methods:
            setattr(owner, name, self._follow(phase, getattr(owner, name)))
        functions = {
            save_adapter: "adapter", update_adapter_config: "adapter",
            train_probe: "probe", compare: "report", write_page: "report", write_card: "report",
        }  # fmt: skip
        for module in [*sys.modules.values()]:
            for name, value in [*vars(module).items()] if module is not None else []:
                phase = functions.get(value) if callable(value) and _hashable(value) else None
                if phase is not None:
                    setattr(module, name, self._follow(phase, value))
        for owner, name in ((os, "fsync"), (torch, "save")):
            setattr(owner, name, self._between_ticks(getattr(owner, name)))
        sys.addaudithook(self._hear)

    def _between_ticks(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def ticking(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            returned = function(*args, **kwargs)
            self.tick()
            return returned

        return ticking

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and int(arguments[2] or 0) & _WRITING):
            self.tick()


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True

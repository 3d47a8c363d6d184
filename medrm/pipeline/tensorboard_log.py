"""What TensorBoard is told of a training: the curves, and nothing of the machine it runs on.

transformers' own callback names folder and file after the host, and stores all arguments and the
base's folder; run.json has these.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import Trainer
from transformers.integrations.integration_utils import TensorBoardCallback

FOLDER = "runs"

_WRITERS = ("tensorboard.summary.writer.event_file_writer", "tensorboardX.event_file_writer")
"""Modules that name a file after the host."""


class CurvesAlone(TensorBoardCallback):
    """Writes the logged numbers into `runs/<time>/` of the run folder."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Opens the file; TENSORBOARD_LOGGING_DIR names another folder."""
        started = time.strftime("%Y-%m-%d_%H-%M-%S")
        self.logging_dir = self.logging_dir or str(Path(args.output_dir, FOLDER, started))
        if state.is_world_process_zero and self.tb_writer is None:
            self._init_summary_writer(args)

    def _init_summary_writer(self, args: Any) -> None:
        with _nameless_host():
            super()._init_summary_writer(args)  # type: ignore[no-untyped-call]


@contextmanager
def _nameless_host() -> Iterator[None]:
    """Lets the modules that write the files know no host."""
    known = [sys.modules[name] for name in _WRITERS if name in sys.modules]
    sockets = [vars(module)["socket"] for module in known]
    try:
        for module in known:
            vars(module)["socket"] = SimpleNamespace(gethostname=lambda: "medrm")
        yield
    finally:
        for module, socket in zip(known, sockets, strict=True):
            vars(module)["socket"] = socket


def keep_host_out(trainer: Trainer) -> None:
    """Replaces transformers' callback of a trainer, where it has it."""
    if trainer.pop_callback(TensorBoardCallback) is not None:
        trainer.add_callback(CurvesAlone)

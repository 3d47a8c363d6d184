"""`recipes/train_rm.py` by processes on CPUs of which accelerate is told that they have GPUs.

It parts models with FSDP over GPUs alone.
"""

from __future__ import annotations

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType
from entry import load_main

from medrm.config.parse import Run
from medrm.objectives import sharding
from medrm.pipeline import train


def check_launch(run: Run) -> None:
    """Says so first of all."""
    PartialState().distributed_type = DistributedType.MULTI_GPU
    checked(run)


checked, train.check_launch = train.check_launch, check_launch
made = sharding.ShardedTraining.create_accelerator_and_postprocess


def make(trainer: sharding.ShardedTraining) -> None:
    made(trainer)
    assert trainer.accelerator.is_fsdp2


sharding.ShardedTraining.create_accelerator_and_postprocess = make

if __name__ == "__main__":
    sys.exit(load_main("recipes/train_rm.py")(sys.argv[1:]))

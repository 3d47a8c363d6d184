"""`recipes/train_rm.py` with a loss that is no number before the backward pass of one step.

`python as_faulty.py STEP ...`: in the STEP-th micro-batch, counted from 1; 0: in none.
"""

from __future__ import annotations

import sys
from itertools import count
from typing import Any

from entry import load_main
from torch import Tensor, nan

from medrm.objectives.trainer import PreferenceTrainer

computed, numbers = PreferenceTrainer.compute_loss, count(1)


def compute_loss(trainer: PreferenceTrainer, *args: Any, **kwargs: Any) -> Any:
    """Computes the loss, which is NaN when it is the micro-batch's turn."""
    loss = computed(trainer, *args, **kwargs)
    is_turn = trainer.model.training and next(numbers) == int(sys.argv[1])
    return loss * nan if is_turn and isinstance(loss, Tensor) else loss


PreferenceTrainer.compute_loss = compute_loss

if __name__ == "__main__":
    sys.exit(load_main("recipes/train_rm.py")(sys.argv[2:]))

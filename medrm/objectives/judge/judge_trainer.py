"""What the trainers of judges share: TRL's, resumed to the last digit and watched.

It goes before one of TRL's trainers in the bases of a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import trl.trainer.utils
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

from medrm.objectives.checkpoint_weights import NamedAsInMemory
from medrm.objectives.data_workers import watched
from medrm.objectives.exact_resume import ExactResume
from medrm.objectives.sharding import ShardedTraining
from medrm.objectives.training_faults import WatchedSteps


def score_learned_tokens_alone() -> None:
    """Lets TRL's LM head compute the logits of the tokens that are learned, on every device.

    TRL does so where Triton runs; elsewhere it computes those of all tokens, those of images
    included, and drops them, so that a compiler sees one shape. Losses and gradients are the same.
    """
    if hasattr(trl.trainer.utils, "_use_triton"):
        trl.trainer.utils._use_triton = lambda device: True


class JudgeTrainer(NamedAsInMemory, WatchedSteps, ShardedTraining, ExactResume):
    """What all judges share; leaves out what TRL's trainers do beside training."""

    _metrics: dict[str, dict[str, list[float]]]
    _total_train_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        score_learned_tokens_alone()
        super().__init__(*args, **kwargs)

    def unlogged(self) -> dict[str, Any]:
        """Adds TRL's metrics since the last line, and the tokens since the first step."""
        metrics = {mode: dict(values) for mode, values in self._metrics.items()}
        return {**super().unlogged(), "metrics": metrics, "tokens": self._total_train_tokens}

    def restore_unlogged(self, of_processes: Sequence[Mapping[str, Any]]) -> None:
        """Takes back what `unlogged` gave; all processes have the same."""
        super().restore_unlogged(of_processes)
        for mode, values in of_processes[0]["metrics"].items():
            self._metrics[mode].update(values)
        self._total_train_tokens = of_processes[0]["tokens"]

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """Returns a loader whose workers are watched."""
        loader = super()._get_dataloader(*args, **kwargs)
        watched(getattr(loader, "base_dataloader", loader), self.args)
        return loader

    def _send_telemetry(self) -> None:
        """Sends nothing."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes nothing: the adapter folder has a card of its own."""


class WithReference(JudgeTrainer):
    """Options of trainers that may keep a frozen copy of the initial adapter as the reference."""

    model: PeftModel

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads the trained adapter, too: older versions load the reference beside it alone."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        weights = load_peft_weights(resume_from_checkpoint, device="cpu")
        set_peft_model_state_dict(self.model, weights)

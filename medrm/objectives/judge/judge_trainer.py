"""What the trainers of judges share: TRL's, resumed to the last digit and watched.

It goes before one of TRL's trainers in the bases of a class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

import trl.trainer.utils
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers.trainer_utils import EvalLoopOutput

from medrm.data.store.joint_index import SET_GROUP
from medrm.objectives.checkpoint_weights import NamedAsInMemory
from medrm.objectives.data_workers import watched
from medrm.objectives.exact_resume import ExactResume
from medrm.objectives.sharding import ShardedTraining
from medrm.objectives.training_faults import WatchedSteps
from medrm.schema import Case


def _score_learned_tokens_alone() -> None:
    """Lets TRL's LM head compute the logits of the tokens that are learned, on every device.

    TRL does so where Triton runs; elsewhere it computes those of all tokens, those of images
    included, and drops them, so that a compiler sees one shape. Losses and gradients are the same.
    """
    if hasattr(trl.trainer.utils, "_use_triton"):
        trl.trainer.utils._use_triton = lambda device: True


_BY_SET = ("mean_token_accuracy", "rewards/accuracies", "rewards/margins")
"""Of TRL's metrics, those that are told for each set of a mixture as well."""


def rows_of_sets(cases: Iterable[Case]) -> dict[str, list[int]]:
    """Returns the indices of the cases of each set of a mixture; empty: they are of one.

    Args:
        cases: of each row of development.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        rows[case.groups.get(SET_GROUP, "")].append(index)
    return rows if len(rows) > 1 else {}


class JudgeTrainer(NamedAsInMemory, WatchedSteps, ShardedTraining, ExactResume):
    """What all judges share; leaves out what TRL's trainers do beside training.

    Attributes:
        development_sets: of a mixture, the name of each set to its rows of development.
    """

    _metrics: dict[str, dict[str, list[float]]]
    _total_train_tokens: int
    development_sets: Mapping[str, Sequence[int]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _score_learned_tokens_alone()
        self._loaders: dict[str, Any] = {}
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

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Measures the sets of a mixture one after the other; the loss is the mean of all rows."""
        measure = super().evaluation_loop
        if not self.development_sets:
            return measure(dataloader, *args, **kwargs)
        development: Any = self.eval_dataset
        prefix, total = kwargs["metric_key_prefix"], 0.0
        rows = sum(map(len, self.development_sets.values()))
        metrics: dict[str, float] = {}
        for name, indices in self.development_sets.items():
            batches = {key: len(self._metrics["eval"].get(key, ())) for key in _BY_SET}
            if name not in self._loaders:  # one for all evaluations: its workers may stay
                self._loaders[name] = self._get_dataloader(
                    dataset=development.select(indices),
                    description="Evaluation",
                    batch_size=self.args.eval_batch_size,
                    sampler_fn=self._get_eval_sampler,
                )
            output: EvalLoopOutput = measure(self._loaders[name], *args, **kwargs)
            of_rows: dict[str, float] = output.metrics or {}
            loss = of_rows[f"{prefix}_loss"]
            total += loss * len(indices)
            metrics |= {**of_rows, f"{prefix}_loss_set_{name}": loss}
            for key, measured in batches.items():
                of_set = self._metrics["eval"].get(key, [])[measured:]
                metrics |= {f"{prefix}_{key}_set_{name}": mean(of_set)} if of_set else {}
        metrics[f"{prefix}_loss"] = total / rows
        return output._replace(metrics=metrics, num_samples=rows)

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

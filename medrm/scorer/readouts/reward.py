"""A trained reward model: a head on the last hidden state of each answer's row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft import PeftModel
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm.models.adapter_config import AdapterConfig
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.reward_model import without_adapter
from medrm.schema import Case
from medrm.scorer.collator import Collator, Pixels
from medrm.scorer.contextual import check_contextual
from medrm.scorer.readouts.answer_scorer import SavedScorer
from medrm.scorer.runner import (
    BATCH_ROWS,
    Array,
    BatchRunner,
    PromptRows,
    split_by_item,
    to_numpy,
)


class RewardModel(SavedScorer):
    """A trained reward model: one score for each answer and dimension.

    Attributes:
        readout: "reward".

    Args:
        model: from `load_adapter`.
        processor: from the same folder.
        contract: from the same folder.
        batch_rows: most rows (case and answer) computed at once; a case is never split. In fp32 it
            changes no score by more than 1e-5.
    """

    readout = "reward"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processor: ProcessorMixin,
        contract: AdapterConfig,
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        shares = shares_prefix(without_adapter(model))
        check_contextual(contract.contextual_orders, shares)
        runner: BatchRunner[Case, None, Array] = BatchRunner(
            Collator(
                processor,
                contract.reward_template,
                contextual_orders=contract.contextual_orders,
            ),
            prompts=self._prompts,
            rows=lambda case: len(case.answers),
            read=self._read,
            batch_rows=batch_rows,
            max_length=contract.max_length,
            forks=self._forks if shares else None,
        )
        super().__init__(model, contract, runner)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a reward."""
        return {**super().settings, "reward_template": self.contract.reward_template}

    def _prompts(self, case: Case) -> PromptRows[None]:
        return PromptRows(case, self._runner.collator.answer_rows(case), None)

    def _forks(self, prompts: Sequence[PromptRows[None]], pixels: Pixels) -> BatchFeature:
        return self._runner.collator.forks([prompt.case for prompt in prompts], pixels)

    def _read(self, features: BatchFeature, prompts: list[PromptRows[None]]) -> list[Array]:
        rewards = to_numpy(self.model(**features.to(self.model.device)).rewards)
        return split_by_item(rewards, prompts)

"""The reward that a model trained by DPO on answers implies: by how much it prefers an answer."""

from __future__ import annotations

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm.errors import AdapterError
from medrm.models.adapter_config import AdapterConfig
from medrm.models.reward_model import without_adapter
from medrm.scorer.answer_logprobs import AnswerTokens, Span
from medrm.scorer.readouts.answer_scorer import SavedScorer
from medrm.scorer.runner import BATCH_ROWS, Array, PromptRows, split_by_item, to_numpy


class ImplicitReward(SavedScorer):
    """beta x (log p(answer) with the adapter - log p(answer) without it).

    DPO's implicit reward (https://arxiv.org/abs/2305.18290, section 5), up to a constant of the
    question. The probability is that of all the answer's tokens and of the token that ends its
    turn. It is one number for an answer, the same on each dimension.

    Attributes:
        readout: "implicit_reward".

    Args:
        model: with the adapter that DPO trained.
        processor: of the base model.
        contract: with DPO's beta.
        batch_rows: most rows (case and answer) computed at once; a case is never split.

    Raises:
        AdapterError: there is no adapter to take off, or no beta.
    """

    readout = "implicit_reward"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processor: ProcessorMixin,
        contract: AdapterConfig,
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        if not isinstance(model, PeftModel) or contract.implicit_beta is None:
            lacking = "an adapter" if contract.implicit_beta is not None else "its implicit_beta"
            raise AdapterError(
                f"An implicit reward needs {lacking}: it compares the model with its adapter and "
                "without it, times DPO's beta. Train one with objective judge_dpo, dpo_pairs "
                "answers and use_peft."
            )
        self._adapted = model
        self._beta = contract.implicit_beta
        self._answers = AnswerTokens(processor, turn_ends=True)
        runner = self._answers.runner(
            without_adapter(model), self._read, batch_rows, contract.max_length
        )
        super().__init__(model, contract, runner)

    def _read(self, features: BatchFeature, prompts: list[PromptRows[list[Span]]]) -> list[Array]:
        features = features.to(self._adapted.device)
        spans = [span for prompt in prompts for span in prompt.detail]
        adapted = self._sums(features, spans)
        with self._adapted.disable_adapter():
            base = self._sums(features, spans)
        rewards = to_numpy(self._beta * (adapted - base))
        return split_by_item(np.repeat(rewards[:, None], len(self.dimensions), axis=1), prompts)

    def _sums(self, features: BatchFeature, spans: list[Span]) -> Tensor:
        """Returns log p of each whole answer, [rows], in double precision."""
        logprobs = self._answers.logprobs(without_adapter(self._adapted), features, spans)
        return torch.stack([answer.double().sum() for answer in logprobs])

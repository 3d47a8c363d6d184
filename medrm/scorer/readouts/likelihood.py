"""What a base model says before any training: how likely an answer is to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm.schema import DIMENSIONS
from medrm.scorer.answer_logprobs import AnswerTokens, Span
from medrm.scorer.readouts.answer_scorer import AnswerScorer
from medrm.scorer.runner import BATCH_ROWS, Array, PromptRows, split_by_item, to_numpy


class Likelihood(AnswerScorer):
    """Scores an answer by the mean log-probability of its tokens, given images and question.

    The score is the same on each dimension. Only the answer's own tokens count, not those that end
    the turn; an empty answer is as likely as an immediate end.

    Attributes:
        readout: "likelihood".

    Args:
        model: a stock model.
        processor: of the model.
        dimensions: what to call the D equal columns.
        batch_rows: most rows (case and answer) computed at once.
        max_length: longest row that is read, in tokens; None: no limit.
    """

    readout = "likelihood"

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        dimensions: Sequence[str] = DIMENSIONS,
        batch_rows: int = BATCH_ROWS,
        max_length: int | None = None,
    ) -> None:
        self._answers = AnswerTokens(processor, turn_ends=False)
        runner = self._answers.runner(model, self._read, batch_rows, max_length)
        super().__init__(model, dimensions, runner)

    def _read(self, features: BatchFeature, prompts: list[PromptRows[list[Span]]]) -> list[Array]:
        spans = [span for prompt in prompts for span in prompt.detail]
        logprobs = self._answers.logprobs(self.model, features.to(self.model.device), spans)
        means = to_numpy(torch.stack([answer.mean() for answer in logprobs]))
        return split_by_item(np.repeat(means[:, None], len(self.dimensions), axis=1), prompts)

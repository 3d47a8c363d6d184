"""What a base model says before any training: how likely an answer is to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.schema import DIMENSIONS, Case
from medrm.scorer.answer_logprobs import AnswerTokens, Span
from medrm.scorer.collator import Collator
from medrm.scorer.readouts.reward import by_case
from medrm.scorer.runner import BATCH_ROWS, Array, Prompts, Readout, Scored, to_numpy
from medrm.scorer.settings import model_settings


class Likelihood:
    """Scores an answer by the mean log-probability of its tokens, given images and question.

    The score is the same on each dimension. Only the answer's own tokens count, not those that end
    the turn; an empty answer is as likely as an immediate end.

    Attributes:
        readout: "likelihood".
        dimensions: names of the D equal columns.

    Args:
        model: a stock model.
        processor: of the model.
        dimensions: what to call the columns.
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
        self.dimensions = tuple(dimensions)
        self._model = model
        self._collator = Collator(processor, "turn_end")
        self._answers = AnswerTokens(self._collator, ended=False)
        self._readout: Readout[Case, list[Span], Array] = Readout(
            self._collator,
            prompts=self._answers.prompts,
            rows=lambda case: len(case.answers),
            read=self._read,
            batch_rows=batch_rows,
            max_length=max_length,
            forks=self._answers.forks if shares_prefix(model) else None,
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a score."""
        return model_settings(self._model, self._collator.processor)

    @property
    def window(self) -> int:
        """How many cases are computed together."""
        return self._readout.window

    def judge(self, cases: Iterable[Case]) -> Iterator[Scored]:
        """Yields scores [K, D] for every case; one that cannot be scored has its reason."""
        for prompts, values, reason in self._readout.over(cases):
            scores = None if values is None else np.repeat(values, len(self.dimensions), axis=1)
            yield Scored(prompts.case, "forward", scores, reason)

    def _read(self, features: BatchFeature, prompts: list[Prompts[list[Span]]]) -> list[Array]:
        spans = [span for prompt in prompts for span in prompt.detail]
        parts = self._answers.log_probabilities(self._model, features.to(self._model.device), spans)
        means = torch.stack([part.mean() for part in parts])
        return by_case(to_numpy(means)[:, None], prompts)

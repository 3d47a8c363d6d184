"""What a base model says before any training: its likelihood of an answer, and its verdict.

Both are read from probabilities, so nothing is generated and nothing has to be parsed. They are the
"before" of a reward model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm import chat
from medrm.errors import ConfigError
from medrm.schema import DIMENSIONS, Case
from medrm.scorer.batches import BATCH_ROWS, Array, Prompts, Readout, Scored, to_numpy
from medrm.scorer.collate import Collator
from medrm.scorer.language import hidden_states, log_probabilities
from medrm.scorer.verdict import VerdictProbability

__all__ = ["Likelihood", "Scored", "VerdictProbability"]


class Span(NamedTuple):
    """Where an answer's tokens lie in a row, counted from the row's end."""

    tokens: int
    after: int


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
        self._processor = processor
        probe = chat.render(processor, chat.answer_messages("?", 0, "ANSWER"), "turn_end")
        self._turn_end = probe.rpartition("ANSWER")[2]
        self._readout: Readout[Case, list[Span], Array] = Readout(
            Collator(processor, "turn_end"),
            prompts=self._prompts,
            rows=lambda case: len(case.answers),
            read=self._read,
            batch_rows=batch_rows,
            max_length=max_length,
        )

    def judge(self, cases: Iterable[Case]) -> Iterator[Scored]:
        """Yields scores [K, D] for every case; one that cannot be scored has its reason."""
        for prompts, values, reason in self._readout.over(cases):
            scores = None if values is None else np.repeat(values, len(self.dimensions), axis=1)
            yield Scored(prompts.case, "forward", scores, reason)

    def _prompts(self, case: Case) -> Prompts[list[Span]]:
        collator = self._readout.collator
        rows = collator.answer_rows(case)
        _, answers = collator.plain(case)
        return Prompts(
            case, rows, [self._span(row.text, a) for row, a in zip(rows, answers, strict=True)]
        )

    def _span(self, text: str, answer: str) -> Span:
        """Returns the tokens that share a character with the answer.

        Counted from the end, where no image placeholder will grow into many tokens.

        Raises:
            ConfigError: the chat template rewrites answers.
        """
        end = len(text) - len(self._turn_end)
        written = [words for words in (answer, answer.strip()) if text[:end].endswith(words)]
        if not text.endswith(self._turn_end) or not written:
            raise ConfigError(
                f"The chat template rewrites answers: {answer[:40]!r} is not what stands before "
                f"{self._turn_end!r}. Use the chat template of the base model's own processor."
            )
        start = end - len(written[0])
        offsets = self._processor.tokenizer(
            text,
            add_special_tokens=self._readout.collator.adds_special_tokens(text),
            return_offsets_mapping=True,
        )["offset_mapping"]
        places = [
            place
            for place, (first, last) in enumerate(offsets)
            if (first < end and last > start) or (start == end == first < last)
        ]
        return Span(len(places), len(offsets) - 1 - places[-1])

    def _read(self, features: BatchFeature, prompts: list[Prompts[list[Span]]]) -> list[Array]:
        spans = [span for prompt in prompts for span in prompt.detail]
        features = features.to(self._model.device)
        states = hidden_states(self._model, features)
        lengths = features["attention_mask"].sum(dim=1).tolist()
        picked, targets = [], []
        for row, (span, length) in enumerate(zip(spans, lengths, strict=True)):
            stop = length - span.after
            picked.append(states[row, stop - span.tokens - 1 : stop - 1])
            targets.append(features["input_ids"][row, stop - span.tokens : stop])
        found = log_probabilities(self._model, torch.cat(picked), torch.cat(targets)[:, None])
        parts = torch.split(found, [span.tokens for span in spans])
        means = torch.stack([part.mean() for part in parts])
        ends = np.cumsum([len(prompt.rows) for prompt in prompts])
        return np.split(to_numpy(means)[:, None], ends[:-1])

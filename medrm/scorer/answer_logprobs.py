"""Where an answer's tokens lie in a rendered conversation, and how probable they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm import chat
from medrm.errors import ConfigError
from medrm.schema import Case
from medrm.scorer.collator import Collator, Pixels
from medrm.scorer.runner import Prompts
from medrm.scorer.token_logprobs import flat_states, log_probabilities, token_places


class Span(NamedTuple):
    """Where an answer's tokens lie in a row, counted from the row's end."""

    tokens: int
    after: int


class TurnEnd(NamedTuple):
    """How a model's turn ends.

    Attributes:
        after: what the chat template writes behind a reply.
        ending: the part of it up to the token that ends the turn; where the template writes none,
            the tokenizer's end token, on which generation stops.
        token: the one that ends the turn.
    """

    after: str
    ending: str
    token: int


def turn_end(processor: ProcessorMixin) -> TurnEnd:
    """Returns how a model's turn ends in the processor's chat template."""
    probe = chat.render(processor, chat.answer_messages("?", 0, "ANSWER"), "turn_end")
    after = probe.rpartition("ANSWER")[2]
    control = chat.control_tokens(processor).search(after)
    name = control[0] if control else processor.tokenizer.eos_token
    ending = after[: control.end()] if control else name
    return TurnEnd(after, ending, processor.tokenizer.convert_tokens_to_ids(name))


class AnswerTokens:
    """Finds answers in the rows of a collator and reads their tokens' log-probabilities.

    A token belongs to an answer where it shares a character with it.

    Args:
        collator: whose rows end with the answer's turn.
        ended: whether rows stop at the token that ends the turn, which then counts as the answer's
            last one, as in training. Else an empty answer is as likely as an immediate end.
    """

    def __init__(self, collator: Collator, ended: bool) -> None:
        self._collator = collator
        self._end = turn_end(collator.processor)
        self._ended = ended

    def prompts(self, case: Case) -> Prompts[list[Span]]:
        """Returns the rows of a case and the answers' places in them.

        Raises:
            ConfigError: the chat template rewrites answers.
        """
        rows = self._collator.answer_rows(case)
        if self._ended:
            rows = [
                row._replace(text=row.text.removesuffix(self._end.after) + self._end.ending)
                for row in rows
            ]
        _, answers = self._collator.plain(case)
        return Prompts(
            case, rows, [self._span(row.text, a) for row, a in zip(rows, answers, strict=True)]
        )

    def forks(self, prompts: Sequence[Prompts[list[Span]]], pixels: Pixels) -> BatchFeature:
        """Returns the forked batch of several cases."""
        return self._collator.fork([prompt.rows for prompt in prompts], pixels)

    def log_probabilities(
        self, model: PreTrainedModel, features: BatchFeature, spans: Sequence[Span]
    ) -> tuple[Tensor, ...]:
        """Returns log p of each answer's tokens given all before them, one tensor for each row.

        Args:
            model: a stock model.
            features: of rows, or forked; on the model's device.
            spans: of the rows.
        """
        states, ids = flat_states(model, features), features["input_ids"].flatten()
        read, asked = [], []
        for span, places in zip(spans, token_places(features), strict=True):
            stop = len(places) - span.after
            read.append(places[stop - span.tokens - 1 : stop - 1])
            asked.append(places[stop - span.tokens : stop])
        before, tokens = (torch.cat(parts).to(states.device) for parts in (read, asked))
        found = log_probabilities(model, states[before], ids[tokens][:, None])
        return torch.split(found[:, 0], [span.tokens for span in spans])

    def _span(self, text: str, answer: str) -> Span:
        """Returns the answer's tokens.

        Counted from the end, where no image placeholder will grow into many tokens.
        """
        behind = self._end.ending if self._ended else self._end.after
        end = len(text) - len(behind)
        written = [words for words in (answer, answer.strip()) if text[:end].endswith(words)]
        if not text.endswith(behind) or not written:
            raise ConfigError(
                f"The chat template rewrites answers: {answer[:40]!r} is not what stands before "
                f"{behind!r}. Use the chat template of the base model's own processor."
            )
        start = end - len(written[0])
        if self._ended:
            end = len(text)
        offsets = self._collator.processor.tokenizer(
            text,
            add_special_tokens=self._collator.adds_special_tokens(text),
            return_offsets_mapping=True,
        )["offset_mapping"]
        places = [
            place
            for place, (first, last) in enumerate(offsets)
            if (first < end and last > start) or (start == end == first < last)
        ]
        return Span(len(places), len(offsets) - 1 - places[-1])

"""Judges that are read by probabilities: which conversation is held, and which letters are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from transformers import PreTrainedModel, ProcessorMixin

from medrm import chat
from medrm.chat import JudgePrompt, Message, VerdictText
from medrm.schema import DIMENSIONS, Case
from medrm.scorer.collator import Row
from medrm.scorer.readouts.probability_readout import ProbabilityCall, ProbabilityReadout
from medrm.scorer.runner import BATCH_ROWS, text_digest


class LetterPrompt:
    """Asks about one dimension at a time; the whole reply is a letter."""

    def dimensions_per_call(self, dimensions: Sequence[str]) -> tuple[str, ...]:
        """Returns the dimensions: each has a call of its own."""
        return tuple(dimensions)

    def messages(
        self, question: str, images: int, answers: tuple[str, str], dimensions: Sequence[str]
    ) -> list[Message]:
        """Returns the conversation about the one dimension of a call."""
        return chat.verdict_messages(question, images, answers, dimensions[0])

    def verdict(self, letters: Mapping[str, str]) -> VerdictText:
        """Returns the reply that names the one letter."""
        ((name, letter),) = letters.items()
        return VerdictText(letter, {name: (0, len(letter))})


class VerdictProbability(ProbabilityReadout):
    """A base model that is asked which of two answers is better and replies with one letter.

    Attributes:
        readout: "verdict_probability".

    Args:
        model: a stock model.
        processor: of the model.
        dimensions: what to ask about, each in a call of its own.
        batch_rows: most rows (calls) computed at once.
        max_length: longest prompt that is read, in tokens; None: no limit.
    """

    readout = "verdict_probability"

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        dimensions: Sequence[str] = DIMENSIONS,
        batch_rows: int = BATCH_ROWS,
        max_length: int | None = None,
    ) -> None:
        super().__init__(
            *(model, processor, LetterPrompt()),
            dimensions=dimensions,
            batch_rows=batch_rows,
            max_length=max_length,
        )
        short_prompts = self._collator.token_ids(
            [
                self._templates[name].text(chat.verdict_messages("?", 0, (".", "."), name))
                for name in self.dimensions
            ]
        )
        lengths = dict(zip(self.dimensions, map(len, short_prompts), strict=True))
        self._longest = max(self.dimensions, key=lengths.__getitem__)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a probability."""
        messages = chat.verdict_messages("question", 1, ("first", "second"), "dimension")
        digest = hashlib.sha256(json.dumps(messages).encode()).hexdigest()
        return {**super().settings, "verdict_prompt_digest": digest}

    def _calls(self, case: Case) -> list[ProbabilityCall]:
        """Returns the calls; those of an order have the digest of its longest one with reply A."""
        calls = super()._calls(case)
        digests = {
            call.order: text_digest([Row(self._text(call), case.images)])
            for call in calls
            if call.dimension == self._longest
        }
        return [call._replace(digest=digests[call.order]) for call in calls]


class ConstrainedJson(ProbabilityReadout):
    """A judge that replies with the JSON of its prompt and chooses the letters alone.

    Attributes:
        readout: "skeleton".
        dimensions: what is asked about.
        contract: of the saved judge, None for any other.

    Args:
        model: a stock model, or one with an adapter.
        processor: of the model.
        prompt: how it is asked.
        dimensions: what to ask about.
        batch_rows: most rows (calls) computed at once.
        max_length: longest prompt with its reply that is read, in tokens; None: no limit.
        contract: of a saved judge.

    Raises:
        ConfigError: the prompt asks for reasons, which cannot be given, or the tokenizer joins the
            letters of a reply.
    """

    readout = "skeleton"

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a response."""
        prompt = cast(JudgePrompt, self._prompt)
        return {
            **super().settings,
            "prompt": f"{prompt.name} {prompt.version}",
            "prompt_digest": prompt.digest,
        }

"""The JSON of a verdict in tokens, and a reply in which the letters are chosen one by one.

For two dimensions, where underscores are the letters:

    {"accuracy": "_", "overall": "_"}
    step of letter 1: feed {"accuracy": "   compare A with B
    step of letter 2: feed A", "overall": "   compare A with B
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

import numpy as np

from medrm import chat, chat_template
from medrm.chat import JudgePrompt
from medrm.chat_template import Message
from medrm.errors import ConfigError
from medrm.models.prefix_sharing.batch import first_difference
from medrm.schema import Order
from medrm.scorer.collator import Collator

Letters = tuple[str, ...]
"""The letters chosen so far, as shown."""

_MOST_LETTERS = 12
"""Of one reply; all 2^D replies are tokenised."""

_OTHER_TOKENIZER = "Use the chat template and tokenizer of the base model's own processor."


class LetterStep(NamedTuple):
    """How one letter of a reply is chosen, in tokens.

    Attributes:
        feed: what stands before the compared tokens and was not read in the step before.
        reply: all of the reply that stands before them.
        letters: the compared tokens, the first in which the replies with A and with B differ.
    """

    feed: list[int]
    reply: list[int]
    letters: tuple[int, int]


class ResponseTemplate:
    """How the replies to one kind of call are tokenised, learned from those to a short prompt.

    A reply is always complete: letters that are not chosen yet are A. Its tokens may join a letter
    with the quote before it or with what follows. All 2^D replies are tokenised at once, before
    any thread uses the tokenizer.

    Attributes:
        names: the D dimensions that the call asks about.
        steps: the step that chooses the letter after these.
        all_a: tokens of the whole conversation's end from the reply on, all letters A.
        short_length: tokens of the short prompt with such a reply.

    Args:
        collator: of the processor.
        prompt: how the call is worded.
        names: the D dimensions.

    Raises:
        ConfigError: the tokenizer joins the letters of a reply, or there are too many.
    """

    def __init__(self, collator: Collator, prompt: JudgePrompt, names: Sequence[str]) -> None:
        if len(names) > _MOST_LETTERS:
            raise ConfigError(
                f"The readout 'skeleton' reads at most {_MOST_LETTERS} dimensions of one reply, "
                f"not {len(names)}. Ask about each in a call of its own (json_per_dimension)."
            )
        self.names = tuple(names)
        self._processor = collator.processor
        self._prompt = prompt
        probe = prompt.messages("?", 0, (".", "."), self.names)
        replies = list(product("AB", repeat=len(self.names)))
        texts = [self._render(probe, ""), *(self.text(probe, reply) for reply in replies)]
        empty, *rows = collator.token_ids(texts)
        start = first_difference([empty, rows[0]])
        self.all_a, self.short_length = rows[0][start:], len(rows[0])
        self._replies = {reply: row[start:] for reply, row in zip(replies, rows, strict=True)}
        self.steps = self._all_steps()

    def text(self, messages: list[Message], letters: Letters = ()) -> str:
        """Returns the conversation with a reply of these letters, and A for those that follow."""
        padded = letters + ("A",) * (len(self.names) - len(letters))
        verdict = self._prompt.verdict(dict(zip(self.names, padded, strict=True)))
        return self._render(messages, verdict.text)

    def before_reply(self, ids: list[int]) -> list[int]:
        """Returns the tokens before the reply of a conversation as `text` gives it.

        Raises:
            ConfigError: the reply is not tokenised as after the short prompt.
        """
        if ids[-len(self.all_a) :] != self.all_a:
            raise ConfigError(
                f"A verdict is tokenised differently from prompt to prompt. {_OTHER_TOKENIZER}"
            )
        return ids[: -len(self.all_a)]

    def _all_steps(self) -> dict[Letters, LetterStep]:
        steps: dict[Letters, LetterStep] = {}
        for count in range(len(self.names)):
            rest = ("A",) * (len(self.names) - count - 1)
            for letters in product("AB", repeat=count):
                first, second = (self._replies[(*letters, letter, *rest)] for letter in "AB")
                index = first_difference([first, second])
                before = len(steps[letters[:-1]].reply) if letters else -1
                if index <= before:
                    raise ConfigError(
                        f"The tokenizer joins two letters of a verdict. {_OTHER_TOKENIZER}"
                    )
                feed = first[max(before, 0) : index]
                steps[letters] = LetterStep(feed, first[:index], (first[index], second[index]))
        return steps

    def _render(self, messages: list[Message], reply: str) -> str:
        # A template may open the model's turn in a way of its own, so the reply is a turn.
        return chat_template.render(self._processor, chat.with_reply(messages, reply), "turn_end")


@dataclass
class ReplyDraft:
    """A reply of which some letters are chosen.

    Attributes:
        template: of the reply.
        letters: chosen so far.
        letter_probabilities: for each of them the probabilities of A and B.
    """

    template: ResponseTemplate
    letters: Letters = ()
    letter_probabilities: list[tuple[float, float]] = field(default_factory=list)

    @property
    def step(self) -> LetterStep:
        """How the next letter is chosen."""
        return self.template.steps[self.letters]

    def choose(self, first: float, second: float) -> None:
        """Chooses the next letter by the probabilities of A and B."""
        self.letter_probabilities.append((first, second))
        self.letters += ("A" if first >= second else "B",)

    def probabilities(self, order: Order) -> dict[str, tuple[float, ...]]:
        """Returns of each dimension P(first stored answer), P(second) and their sum."""
        as_shown = np.array(self.letter_probabilities, dtype=np.float32)
        stored = as_shown if order == "forward" else as_shown[:, ::-1]
        triples = np.concatenate([stored, stored.sum(axis=1, keepdims=True)], axis=1).tolist()
        return dict(zip(self.template.names, map(tuple, triples), strict=True))

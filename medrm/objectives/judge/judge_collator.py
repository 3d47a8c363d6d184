"""Batches of TRL's trainers, rendered and tokenised exactly as scoring does it; nothing is cut.

Shape legend: B rows, L tokens, padding on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from transformers import BatchFeature

from medrm import chat
from medrm.chat import JudgePrompt, Message
from medrm.errors import ConfigError
from medrm.objectives.judge.verdict_targets import Reply, VerdictRow
from medrm.schema import Case, ImageRef
from medrm.scorer.answer_logprobs import turn_end
from medrm.scorer.collator import Collator, Row

IGNORED = -100
"""The label of a token that is not learned, as torch's cross-entropy has it."""


class Written(NamedTuple):
    """A conversation as text, up to the end of the model's turn.

    Attributes:
        text: with image placeholders.
        images: that fill them.
        start: first character that the model has to write.
        unlearned: characters after it that are no target (first and last + 1).
    """

    text: str
    images: tuple[ImageRef, ...]
    start: int
    unlearned: tuple[tuple[int, int], ...] = ()

    @property
    def row(self) -> Row:
        """The input sequence."""
        return Row(self.text, self.images)


@dataclass(frozen=True)
class Writer:
    """Writes conversations out; picklable for workers.

    Attributes:
        collator: of the run.
        after: what the chat template writes after a reply.
        ending: the part of it up to the token that ends the turn; where the template writes none,
            the tokenizer's end token, on which generation stops.
    """

    collator: Collator
    after: str
    ending: str

    @classmethod
    def of(cls, collator: Collator) -> Writer:
        """Returns the writer of a collator's processor."""
        end = turn_end(collator.processor)
        return cls(collator, end.after, end.ending)

    def write(self, messages: list[Message], images: tuple[ImageRef, ...], reply: Reply) -> Written:
        """Returns a conversation with the model's reply.

        Args:
            messages: the prompt.
            images: of the prompt.
            reply: and its letters that are not learned.

        Raises:
            ConfigError: the chat template rewrites replies.
        """
        processor = self.collator.processor
        opened = chat.render(processor, messages, "generation_prompt")
        whole = chat.render(processor, chat.with_reply(messages, reply.text), "turn_end")
        before = whole.removesuffix(self.after)
        if before.endswith(reply.text):
            spoken, cut = reply.text, 0
        else:
            spoken = reply.text.strip()
            cut = len(reply.text) - len(reply.text.lstrip())
        if not whole.endswith(self.after) or not before.endswith(spoken):
            raise ConfigError(
                f"The chat template rewrites replies: {spoken[:40]!r} is not what stands before "
                f"{self.after!r}. Use the chat template of the base model's own processor."
            )
        first = len(before) - len(spoken)
        # What the template puts between the open turn and the reply, such as a space, is the
        # model's to write as well.
        start = len(opened) if whole.startswith(opened) else first
        unlearned = tuple((first + a - cut, first + b - cut) for a, b in reply.unlearned)
        return Written(before + self.ending, images, min(start, first), unlearned)

    def verdict(self, row: VerdictRow, prompt: JudgePrompt, flipped: Sequence[str] = ()) -> Written:
        """Returns a judge's call with its verdict, wrong in the dimensions `flipped`."""
        messages = prompt_messages(self.collator, row, prompt)
        return self.write(messages, row.case.images, row.reply(prompt, flipped))

    def answer(self, case: Case, answer: int) -> Written:
        """Returns the conversation in which the model gives one of the case's own answers."""
        question, answers = self.collator.plain(case)
        *messages, _ = chat.answer_messages(question, len(case.images), "")
        return self.write(messages, case.images, Reply(answers[answer], ()))

    def targets(self, written: Written) -> list[bool]:
        """Returns for the last tokens of a row, from the reply's first on, which are learned.

        Counted from the end, where no image placeholder grows into many tokens.
        """
        processor, text = self.collator.processor, written.text
        offsets = processor.tokenizer(
            text,
            add_special_tokens=self.collator.adds_special_tokens(text),
            return_offsets_mapping=True,
        )["offset_mapping"]
        first = next(place for place, (_, last) in enumerate(offsets) if last > written.start)
        return [
            not any(left < b and right > a for a, b in written.unlearned)
            for left, right in offsets[first:]
        ]

    def encode(self, written: Sequence[Written]) -> tuple[BatchFeature, Tensor]:
        """Returns the model's inputs, and which tokens are learned, [B, L].

        Raises:
            DataError: an image cannot be decoded.
            ValueError: rows with and without images in one batch.
        """
        features = self.collator.encode([one.row for one in written])
        learned = torch.zeros_like(features["input_ids"], dtype=torch.bool)
        lengths = features["attention_mask"].sum(dim=1).tolist()
        for row, (one, length) in enumerate(zip(written, lengths, strict=True)):
            own = self.targets(one)
            learned[row, length - len(own) : length] = torch.tensor(own)
        return features, learned


def prompt_messages(collator: Collator, row: VerdictRow, prompt: JudgePrompt) -> list[Message]:
    """Returns the conversation of a judge's call, as scoring words it."""
    question, answers = collator.plain(row.case)
    return prompt.messages(question, len(row.case.images), row.shown(answers), row.dimensions)


def numbered(count: int, start: int = 0) -> Dataset:
    """Returns the data set that TRL's trainers shuffle and deal: the rows' numbers alone.

    The column `images` makes them leave the rest, images included, to the collator.
    """
    return Dataset.from_dict(
        {"row": list(range(start, start + count)), "images": [[] for _ in range(count)]}
    )


def supervised(
    writer: Writer, write: Callable[[int], Written], examples: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns a batch of `SFTTrainer`: the model's inputs, and labels [B, L] for the replies.

    Args:
        writer: of the run.
        write: a row by its number.
        examples: of `numbered`.
    """
    features, learned = writer.encode([write(example["row"]) for example in examples])
    labels = features["input_ids"].masked_fill(~learned, IGNORED)
    return {**features, "labels": labels}


def preferred(
    writer: Writer,
    write: Callable[[int], tuple[Written, Written]],
    examples: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns a batch of `DPOTrainer`: B chosen rows, then their B rejected rows.

    Args:
        writer: of the run.
        write: a pair, chosen and rejected, by its number.
        examples: of `numbered`.
    """
    pairs = [write(example["row"]) for example in examples]
    rows = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
    features, learned = writer.encode(rows)
    return {**features, "completion_mask": learned.long()}

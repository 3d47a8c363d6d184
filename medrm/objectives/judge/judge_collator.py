"""Batches of TRL's trainers, rendered and tokenised exactly as scoring does it; nothing is cut.

    JudgeExample -> RenderedConversation (text, images, where the reply starts)
                 -> input_ids [B, L] and a mask [B, L] of the tokens that are learned

TRL shuffles and deals the numbers of examples alone; the collator renders each when its batch is
made, in the data loader's workers. Learned are the tokens of the reply up to the end of the turn,
but for the letters of dimensions that the experts did not decide. They are found by the characters
that they cover, and counted from the end of the row: an image placeholder before the reply grows
into many tokens, which moves every position counted from the start.

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

from medrm import chat, chat_template
from medrm.chat import JudgePrompt
from medrm.chat_template import Message
from medrm.objectives.judge.judge_examples import JudgeExample, TargetReply
from medrm.schema import Case, ImageRef
from medrm.scorer.collator import Collator, Row
from medrm.scorer.logprobs import TurnEnd, rendered_reply, turn_end

IGNORED = -100
"""The label of a token that is not learned, as torch's cross-entropy has it."""


class RenderedConversation(NamedTuple):
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
class ConversationRenderer:
    """Renders conversations with their replies; picklable for workers.

    Attributes:
        collator: of the run.
        turn_end: how the chat template ends a reply.
    """

    collator: Collator
    turn_end: TurnEnd

    @classmethod
    def of(cls, collator: Collator) -> ConversationRenderer:
        """Returns the renderer of a collator's processor."""
        return cls(collator, turn_end(collator.processor))

    def render(
        self, messages: list[Message], images: tuple[ImageRef, ...], reply: TargetReply
    ) -> RenderedConversation:
        """Returns a conversation with the model's reply.

        Args:
            messages: the prompt.
            images: of the prompt.
            reply: and its letters that are not learned.

        Raises:
            ConfigError: the chat template rewrites replies.
        """
        processor, after = self.collator.processor, self.turn_end.after
        opened = chat_template.render(processor, messages, "generation_prompt")
        closed = chat_template.render(processor, chat.with_reply(messages, reply.text), "turn_end")
        reply_text = rendered_reply(closed, reply.text, after, "replies")
        before_end = closed.removesuffix(after)
        first = len(before_end) - len(reply_text)
        # What the template puts between the open turn and the reply, such as a space, is the
        # model's to write as well.
        start = len(opened) if closed.startswith(opened) else first
        # Where the template strips the reply, its characters move by what stood before it.
        shift = first - reply.text.index(reply_text)
        unlearned = tuple((begin + shift, stop + shift) for begin, stop in reply.unlearned)
        return RenderedConversation(
            before_end + self.turn_end.ending, images, min(start, first), unlearned
        )

    def verdict(
        self, example: JudgeExample, prompt: JudgePrompt, flipped: Sequence[str] = ()
    ) -> RenderedConversation:
        """Returns a judge's call with its verdict, wrong in the dimensions `flipped`."""
        messages = prompt_messages(self.collator, example, prompt)
        return self.render(messages, example.case.images, example.reply(prompt, flipped))

    def answer(self, case: Case, index: int) -> RenderedConversation:
        """Returns the conversation in which the model gives answer `index` of the case."""
        *messages, _ = self.collator.conversation(case, "")
        answer = self.collator.plain_text(case.answers[index])
        return self.render(messages, case.images, TargetReply(answer, ()))

    def learned_tail(self, conversation: RenderedConversation) -> list[bool]:
        """Returns for the last tokens of a row, from the reply's first on, which are learned."""
        spans = self.collator.character_spans(conversation.text)
        first = next(i for i, (_, stop) in enumerate(spans) if stop > conversation.start)
        return [
            not any(start < last and stop > begin for begin, last in conversation.unlearned)
            for start, stop in spans[first:]
        ]

    def encode(self, conversations: Sequence[RenderedConversation]) -> tuple[BatchFeature, Tensor]:
        """Returns the model's inputs, and which tokens are learned, [B, L].

        Raises:
            DataError: an image cannot be decoded.
            ValueError: rows with and without images in one batch.
        """
        features = self.collator.encode([conversation.row for conversation in conversations])
        learned = torch.zeros_like(features["input_ids"], dtype=torch.bool)
        lengths = features["attention_mask"].sum(dim=1).tolist()
        for row, (conversation, length) in enumerate(zip(conversations, lengths, strict=True)):
            tail = self.learned_tail(conversation)
            learned[row, length - len(tail) : length] = torch.tensor(tail)
        return features, learned


def prompt_messages(
    collator: Collator, example: JudgeExample, prompt: JudgePrompt
) -> list[Message]:
    """Returns the conversation of a judge's call, as scoring words it."""
    question, answers = collator.plain(example.case)
    images = len(example.case.images)
    return prompt.messages(question, images, example.shown(answers), example.dimensions)


def numbered(count: int, start: int = 0) -> Dataset:
    """Returns the data set that TRL's trainers shuffle and deal: the examples' numbers alone.

    The column `images` makes them leave the rest, images included, to the collator.
    """
    return Dataset.from_dict(
        {"row": list(range(start, start + count)), "images": [[] for _ in range(count)]}
    )


def supervised(
    renderer: ConversationRenderer,
    render: Callable[[int], RenderedConversation],
    numbers: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns a batch of `SFTTrainer`: the model's inputs, and labels [B, L] for the replies.

    Args:
        renderer: of the run.
        render: an example by its number.
        numbers: B rows of `numbered`.
    """
    features, learned = renderer.encode([render(number["row"]) for number in numbers])
    return {**features, "labels": features["input_ids"].masked_fill(~learned, IGNORED)}


def preferred(
    renderer: ConversationRenderer,
    render: Callable[[int], tuple[RenderedConversation, RenderedConversation]],
    numbers: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns a batch of `DPOTrainer`: B chosen rows, then their B rejected rows.

    Args:
        renderer: of the run.
        render: a pair, chosen and rejected, by its number.
        numbers: B rows of `numbered`.
    """
    chosen, rejected = zip(*(render(number["row"]) for number in numbers), strict=True)
    features, learned = renderer.encode([*chosen, *rejected])
    return {**features, "completion_mask": learned.long()}

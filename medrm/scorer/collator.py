"""Turns cases into batches: only here do text and pixels become tensors.

    case -> K rows, each text with image placeholders -> processor -> batch

Separate rows, of cases with K and K' answers:          [K + K', L], padding on the right
With shared prefixes (medrm.models.prefix_sharing):     [prefix | answer 1 | ... | answer K]

The processor, not the tokenizer, knows how many tokens an image becomes. So the prefix is encoded
by the processor with its images, and the answers behind it, which are text, by the tokenizer.

Contextual orders are listwise scoring in one pass, as in MR2-RM (https://arxiv.org/abs/2604.10966):
a case as a few rows, each with all answers in another order, in which they see earlier ones. There
a reward depends on the order of the answers; here it is the mean over orders in which each pair
of answers appears both ways round.

Shape legend: rows are (case, answer), case by case; L tokens of the longest row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from medrm import chat, chat_template
from medrm.data.batched import batched
from medrm.data.images import ImageFacts, decode
from medrm.data.store.indexed_cases import TOKEN_COUNT
from medrm.errors import ConfigError
from medrm.models.prefix_sharing.batch import (
    ImageRows,
    first_difference,
    prefix_ends,
    share_prefixes,
    shared_length,
)
from medrm.models.processors import image_rows
from medrm.schema import Case, ImageRef
from medrm.scorer.image_tokens import ImageTokens, Sizes

_TOKENIZED_AT_ONCE = 1024

Pixels = dict[str, Image.Image]
"""Decoded images by digest."""


class Row(NamedTuple):
    """One input sequence: text with image placeholders, and the images."""

    text: str
    images: tuple[ImageRef, ...]


def decode_into(pixels: Pixels, images: Iterable[ImageRef]) -> None:
    """Decodes what `pixels` lacks.

    Raises:
        DataError: an image cannot be decoded.
    """
    for ref in images:
        # An image without bytes has no digest of its own, and decoding it raises.
        if not ref.digest or ref.digest not in pixels:
            pixels[ref.digest] = decode(ref)


def image_count(case: Case) -> int:
    """Returns the number of images, which the cases of one batch should have in common.

    Processors refuse rows with and without images together. Mllama fills up rows with fewer images,
    and its words before an image attend to the fill too, so that a row's numbers move in the fourth
    decimal with the batch composition.
    """
    return len(case.images)


class Collator:
    """Makes the rows of cases for one processor and one reward template; picklable for workers.

    Every key that the processor returns is passed on: Qwen-VL without `mm_token_type_ids` and
    Gemma 3 without `token_type_ids` give other numbers without any error. Nothing is truncated.

    A batch holds either cases with images or cases without; better still, with equal `image_count`.

    Args:
        processor: of the model.
        reward_template: what follows the answer before the reward is read.
        padding_side: where shorter rows are filled up; "left" is for rows that are continued.
        contextual_orders: in how many orders answers that see earlier ones are read; 0: each
            answer sees itself alone.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        reward_template: chat_template.RewardTemplate = "generation_prompt",
        padding_side: Literal["left", "right"] = "right",
        contextual_orders: int = 0,
    ) -> None:
        self.processor = processor
        self.reward_template = reward_template
        self.contextual_orders = contextual_orders
        self._padding_side = padding_side
        self._commands = chat_template.Commands.of(processor)
        self._placeholder = chat_template.image_placeholder(processor)
        self._image_tokens = ImageTokens(processor, self._measure_image_tokens)

    @cached_property
    def image_rows(self) -> ImageRows:
        """How the processor's tensors of images lie."""
        return image_rows(self.processor)

    def plain(self, case: Case) -> tuple[str, tuple[str, ...]]:
        """Returns what judges are asked about, and the answers, with control words broken up."""
        return self.plain_text(case.asked), tuple(map(self.plain_text, case.answers))

    def plain_text(self, text: str) -> str:
        """Returns a text with control words broken up."""
        return self._commands.break_up(text)

    def answer_rows(self, case: Case) -> list[Row]:
        """Returns one row for each of the K answers, as a reward model reads them."""
        answers = map(self.plain_text, case.answers)
        return [self.row(self.conversation(case, answer), case.images) for answer in answers]

    def conversation(self, case: Case, answer: str) -> list[chat_template.Message]:
        """Returns the conversation that ends in `answer`, all else with control words broken up."""
        context = [turn._replace(text=self.plain_text(turn.text)) for turn in case.context]
        question = self.plain_text(case.question)
        return chat.answer_messages(question, len(case.images), answer, context)

    def row(self, messages: list[chat_template.Message], images: tuple[ImageRef, ...]) -> Row:
        """Returns the row of a conversation, which ends as the reward template says."""
        return Row(chat_template.render(self.processor, messages, self.reward_template), images)

    def rows(self, cases: Sequence[Case]) -> BatchFeature:
        """Returns the batch of all answers of all cases; answer k of case b is row offset[b] + k.

        Raises:
            DataError: an image cannot be decoded.
            ValueError: cases with and without images in one batch.
        """
        return self.encode([row for case in cases for row in self.answer_rows(case)])

    def shared_rows(self, cases: Sequence[Case]) -> BatchFeature:
        """Returns the batch of `rows`, in which what the answers of a case share stands once.

        Args:
            cases: with equal `image_count`.

        Raises: as `encode_shared`.
        """
        return self.encode_shared(cases, [self.answer_rows(case) for case in cases])

    def encode_shared(
        self,
        cases: Sequence[Case],
        case_rows: Sequence[Sequence[Row]],
        pixels: Pixels | None = None,
    ) -> BatchFeature:
        """Returns the batch of cases' rows in which what the rows of a case share stands once.

        With contextual orders each branch holds all answers, in another order.

        Args:
            cases: with equal `image_count`.
            case_rows: the rows of each.
            pixels: images that are decoded already.

        Raises:
            DataError: an image cannot be decoded.
            ValueError: cases with and without images in one batch.
            ConfigError: the processor changes the words behind the images.
        """
        ids = self._ids_of(case_rows)
        prefix_lengths = self._starts(ids, cases)
        features = self.encode([rows[0] for rows in case_rows], pixels)
        tails = [
            [row[start:] for row in branch_ids]
            for branch_ids, start in zip(ids, prefix_lengths, strict=True)
        ]
        ends = prefix_ends(features, [branch_ids[0] for branch_ids in ids], prefix_lengths)
        if not self.contextual_orders:
            return share_prefixes(features, self.image_rows, ends, tails)
        contexts = [join_answers(branch_ids, self.contextual_orders) for branch_ids in tails]
        branches, reads = zip(*contexts, strict=True)
        return share_prefixes(features, self.image_rows, ends, branches, reads)

    def opening(self, case: Case) -> str:
        """Returns what stands before any answer of a case: the question and the model's turn."""
        messages = self.conversation(case, "")[:-1]
        return chat_template.render(self.processor, messages, "generation_prompt")

    def _ids_of(self, case_rows: Sequence[Sequence[Row]]) -> list[list[list[int]]]:
        """Returns the token ids of the rows of each case, an image as one placeholder."""
        encoded = iter(self.token_ids([row.text for rows in case_rows for row in rows]))
        return [list(islice(encoded, len(rows))) for rows in case_rows]

    def _starts(self, ids: Sequence[Sequence[Sequence[int]]], cases: Sequence[Case]) -> list[int]:
        """Returns how many tokens a case's rows share; with contextual orders none of an answer."""
        starts = list(map(shared_length, ids))
        if not self.contextual_orders:
            return starts
        before = self.token_ids([self.opening(case) for case in cases])
        return [
            min(start, first_difference([row_ids[0], opening]))
            for start, row_ids, opening in zip(starts, ids, before, strict=True)
        ]

    def encode(self, rows: Sequence[Row], pixels: Pixels | None = None) -> BatchFeature:
        """Returns the processor's output for the rows; each distinct image is decoded once.

        Args:
            rows: any number.
            pixels: images that are decoded already.

        Raises:
            DataError: an image cannot be decoded.
            ValueError: rows with and without images in one batch.
            ConfigError: the chat template loses or invents images.
        """
        decoded = dict(pixels or {})
        for row in rows:
            decode_into(decoded, row.images)
        images = [[decoded[ref.digest] for ref in row.images] for row in rows]
        return self._process([row.text for row in rows], images)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of texts in which an image is still its bare placeholder."""
        if not texts:
            return []
        opened = self.adds_special_tokens(texts[0])
        return list(self.processor.tokenizer(list(texts), add_special_tokens=opened)["input_ids"])

    def character_spans(self, text: str) -> list[tuple[int, int]]:
        """Returns which characters (first and last + 1) each token of a text covers."""
        encoded = self.processor.tokenizer(
            text,
            add_special_tokens=self.adds_special_tokens(text),
            return_offsets_mapping=True,
        )
        return list(encoded["offset_mapping"])

    def adds_special_tokens(self, text: str) -> bool:
        """Returns whether the tokenizer must open the sequence; else the chat template did."""
        bos = self.processor.tokenizer.bos_token
        return bos is None or not text.startswith(bos)

    def lengths(
        self,
        cases: Iterable[Case],
        facts: Mapping[str, ImageFacts],
        rows: Callable[[Case], list[Row]],
    ) -> list[int]:
        """Returns the true number of tokens, image tokens included, of each case's longest row.

        Those of answers are counted by `tokens`.

        Args:
            cases: any number.
            facts: of their images, by digest. An image that could not be decoded counts nothing.
            rows: of a case, each with the case's images; maybe none.
        """
        lengths = []
        for chunk in batched(cases, _TOKENIZED_AT_ONCE):
            encoded = self._ids_of([rows(case) for case in chunk])
            lengths += [
                max(map(len, row_ids), default=0) + self._tokens_of_images(case, facts)
                for case, row_ids in zip(chunk, encoded, strict=True)
            ]
        return lengths

    def tokens(self, cases: Iterable[Case], facts: Mapping[str, ImageFacts]) -> NDArray[Any]:
        """Returns the true numbers of tokens, image tokens included: `TOKEN_COUNT` for each case.

        They are those of `rows`, and with contextual orders those of `shared_rows`.

        Args:
            cases: any number.
            facts: of their images, by digest. An image that could not be decoded counts nothing.
        """
        counts = []
        for chunk in batched(cases, _TOKENIZED_AT_ONCE):
            ids = self._ids_of([self.answer_rows(case) for case in chunk])
            for case, rows, start in zip(chunk, ids, self._starts(ids, chunk), strict=True):
                tails = [len(row) - start for row in rows]
                longest, order_count = max(tails), 1
                if self.contextual_orders:  # each row holds all answers
                    longest = sum(tails)
                    order_count = len(answer_orders(len(rows), self.contextual_orders))
                shared = start + self._tokens_of_images(case, facts)
                counts.append((shared + longest, shared + order_count * sum(tails)))
        return np.array(counts, dtype=TOKEN_COUNT)

    def _tokens_of_images(self, case: Case, facts: Mapping[str, ImageFacts]) -> int:
        image_facts = [facts[ref.digest] for ref in case.images if ref.digest in facts]
        sizes = tuple((fact.width, fact.height) for fact in image_facts if fact.problem is None)
        return self.image_tokens(sizes)

    def image_tokens(self, sizes: Sizes) -> int:
        """Returns how many tokens the processor adds for images of these sizes."""
        return self._image_tokens.count(sizes)

    def _measure_image_tokens(self, sizes: Sizes) -> int:
        """Returns the same, counted by processing blank images."""
        text, _ = self.row(chat.answer_messages("?", len(sizes), "."), ())
        blanks = [Image.new("RGB", size) for size in sizes]
        token_count = int(self._process([text], [blanks])["input_ids"].shape[1])
        return token_count - len(self.token_ids([text])[0])

    def _process(self, texts: list[str], images: list[list[Image.Image]]) -> BatchFeature:
        pictured = {bool(row) for row in images}
        if len(pictured) > 1:
            raise ValueError("a batch mixes rows with and without images; plan them apart")
        placeholder = self._placeholder
        for text, row in zip(texts, images, strict=True):
            if placeholder and text.count(placeholder) != len(row):
                raise ConfigError(
                    f"The chat template writes {text.count(placeholder)} image placeholders "
                    f"({placeholder}) for {len(row)} images. Use the chat template of the base "
                    "model's own processor."
                )
        batch: BatchFeature = self.processor(
            text=texts,
            # One list for each text: LLaVA-OneVision treats several images of one text otherwise
            # than as many texts with one image.
            images=images if pictured == {True} else None,
            padding=True,
            padding_side=self._padding_side,
            return_tensors="pt",
            add_special_tokens=self.adds_special_tokens(texts[0]),
        )
        batch.pop("labels", None)  # PaliGemma's processor gives some; what is learned is said here
        return batch


def check_contextual(orders: int, shares: bool) -> None:
    """Refuses to read answers that see each other as separate rows, where none would.

    Raises:
        ConfigError: there are orders, and the model does not share prefixes.
    """
    if orders and not shares:
        raise ConfigError(
            f"contextual_orders is {orders}, and the rows of this model run separately. Leave "
            "shared_prefix on, with attn_implementation sdpa and a model that can share its "
            "prefix (the log says why one cannot), or give contextual_orders 0 when training."
        )


Read = tuple[int, int]
"""An order's number, and the tokens of its row behind the prefix up to where an answer is read."""


def answer_orders(answers: int, limit: int) -> list[tuple[int, ...]]:
    """Returns different orders of K answers: the stored one, its reverse, and so on by rotation.

    Args:
        answers: K.
        limit: 1, or an even number, so that every two answers stand both ways equally often.
    """
    permutations: list[tuple[int, ...]] = []
    for first in range(answers):
        rotated = (*range(first, answers), *range(first))
        permutations += [rotated, rotated[::-1]]
    return list(dict.fromkeys(permutations))[:limit]


def join_answers(
    tails: Sequence[Sequence[int]], count: int
) -> tuple[list[list[int]], list[tuple[Read, ...]]]:
    """Returns the rows of a case behind its prefix, and where in them each answer is read.

    Args:
        tails: [K] token ids of each answer, with what the template writes behind it.
        count: in how many orders each answer is read; where there are fewer, they are read again.

    Returns:
        token ids of each different order, and [K][count] reads.
    """
    permutations = answer_orders(len(tails), count)
    rows = [list(itertools.chain.from_iterable(tails[k] for k in order)) for order in permutations]
    ends = [
        dict(zip(order, itertools.accumulate(len(tails[k]) for k in order), strict=True))
        for order in permutations
    ]
    again = [number % len(permutations) for number in range(count)]
    return rows, [tuple((number, ends[number][k]) for number in again) for k in range(len(tails))]

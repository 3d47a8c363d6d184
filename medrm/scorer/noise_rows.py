"""The synthetic rows of the self-check, and what is changed in them; no model is needed.

    case 1   two answers, of which the second is longer       case 2   one short answer

Shape legend: rows = one for each answer, case by case; L tokens.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from medrm.models.prefix_sharing.batch import SHARED_PREFIX, first_difference
from medrm.schema import Case, ImageRef
from medrm.scorer.caller_cases import ANY_IMAGES
from medrm.scorer.collator import Collator

_SIZES = ((112, 28), (168, 42))
"""(width, height) of each case's image: few tiles for processors that scale the longer side up."""

_QUESTIONS = ("How large is the lesion?", "Is anything abnormal seen here?")

_ANSWERS = (("The lesion is big", "It cannot be told, though it seems to be small"), ("No",))
"""Of each case."""

_OTHER_NOISE = 1_000_000
"""A seed that no rows are made from."""

LAST_WORD = ("big", "small")
"""Of the first answer, and another one that ends in another letter."""


def noise_image(size: tuple[int, int], seed: int) -> ImageRef:
    """Returns an image of noise: width and height, and the seed that decides every pixel."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return ANY_IMAGES.images(Image.fromarray(pixels))[0]


class NoiseRows:
    """Three rows with images of noise, or without images.

    Attributes:
        cases: two, with two answers and one.
        rows: of each case.
        ids: token ids of each row, case by case, an image as one placeholder.
        features: of the rows, padded on the right.

    Args:
        collator: of the model's processor.
        images: whether each case has an image.
        seed: of the noise.
    """

    def __init__(self, collator: Collator, images: bool, seed: int) -> None:
        self._collator = collator
        self.cases = [
            Case(question, (noise_image(size, seed),) if images else (), question, answers)
            for size, question, answers in zip(_SIZES, _QUESTIONS, _ANSWERS, strict=True)
        ]
        self.rows = [collator.answer_rows(case) for case in self.cases]
        self.ids = [collator.token_ids([row.text for row in rows]) for rows in self.rows]
        self.features = collator.encode([row for rows in self.rows for row in rows])
        # A word of text, to be put in place of others.
        self._word = self.ids[0][0][first_difference(self.ids[0])]

    @property
    def mask(self) -> Tensor:
        """[rows, L] true where there is a token."""
        return self.features["attention_mask"].bool()  # type: ignore[no-any-return]

    def last_word_changed(self) -> BatchFeature:
        """Returns the rows, of which the first ends in another word."""
        first = self.cases[0]
        changed = Case(
            first.case_id, first.images, first.question, (first.answers[0].replace(*LAST_WORD),)
        )
        (other,) = self._collator.token_ids([self._collator.answer_rows(changed)[0].text])
        if other == self.ids[0][0]:  # the template drops it
            return self.features
        # Counted from the end, where all that follows the answer is the same.
        distance = first_difference([self.ids[0][0][::-1], other[::-1]]) + 1
        ids = self.features["input_ids"].clone()
        ids[0, int(self.mask[0].sum()) - distance] = other[-distance]
        return BatchFeature({**self.features, "input_ids": ids})

    def left_padded(self) -> BatchFeature:
        """Returns the rows padded on the left."""
        shifts = (~self.mask).sum(dim=1).tolist()
        return BatchFeature(
            {
                name: torch.stack([row.roll(n, 0) for row, n in zip(tensor, shifts, strict=True)])
                if tensor.shape[:2] == self.mask.shape
                else tensor
                for name, tensor in self.features.items()
            }
        )

    def others_changed(self) -> BatchFeature:
        """Returns the rows with words in the padding, the first case with other words and image."""
        first, last = self.rows
        if self.cases[0].images:
            first = [row._replace(images=(noise_image(_SIZES[0], _OTHER_NOISE),)) for row in first]
        features = self._collator.encode([*first, *last])
        ids = self.features["input_ids"].where(self.mask, self._word)
        start = first_difference(self.ids[0])
        for row, row_ids in enumerate(self.ids[0]):
            end = int(self.mask[row].sum())
            ids[row, end - len(row_ids) + start : end] = self._word
        return BatchFeature({**features, "input_ids": ids})

    def shared(self) -> tuple[BatchFeature, BatchFeature]:
        """Returns the rows with shared prefixes, and the same with another first answer."""
        features = self._collator.encode_shared(self.cases, self.rows)
        layout = features[SHARED_PREFIX]
        start = layout.branch_starts[0][0]
        ids = features["input_ids"].clone()
        ids.view(-1)[start : start + layout.branch_lengths[0][0]] = self._word
        return features, BatchFeature({**features, "input_ids": ids})

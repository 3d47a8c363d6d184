"""The same cases twice: as separate padded rows, and with what they share standing once."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image
from transformers import BatchFeature

from medrm.data.images import bytes_image
from medrm.models.families import family_of_processor
from medrm.models.prefix_sharing.batch import SHARED_PREFIX, SharedPrefixBatch
from medrm.schema import Case, ImageRef
from medrm.scorer.collator import Collator

_WORDS = ("opacity", "effusion", "nodule", "margin", "density", "contrast", "left", "right")


@dataclass(frozen=True)
class Batches:
    """Two batches of the same cases.

    Attributes:
        separate: a row for each answer.
        shared: forked.
    """

    separate: BatchFeature
    shared: BatchFeature

    @property
    def fork(self) -> SharedPrefixBatch:
        """How the second one is shared."""
        fork: SharedPrefixBatch = self.shared[SHARED_PREFIX]
        return fork

    @property
    def unique_tokens(self) -> int:
        """Tokens of the cases, what their answers share counted once."""
        return sum(self.fork.prefix_lengths) + sum(map(sum, self.fork.branch_lengths))

    @property
    def row_tokens(self) -> int:
        """Tokens of the separate rows, without padding."""
        return int(self.separate["attention_mask"].sum())

    def padded_share(self, shared: bool) -> float:
        """Returns which share of a batch's places is padding."""
        used, batch = (
            (self.unique_tokens, self.shared) if shared else (self.row_tokens, self.separate)
        )
        return 1 - used / int(batch["input_ids"].numel())


def collated_batches(
    collator: Collator, tokens: tuple[int, int, int], cases: int, answers: int
) -> Batches:
    """Returns random cases of about that many tokens, as a checkpoint's processor makes them.

    Args:
        collator: of the checkpoint.
        tokens: image tokens, question tokens, answer tokens.
        cases: B.
        answers: K.
    """
    generator = np.random.default_rng(0)
    image, question, answer = tokens
    side = _side(collator, image)
    questions = _texts(collator, question, generator)
    said = _texts(collator, answer, generator)
    made = []
    for place in range(cases):
        pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        made.append(
            Case(
                str(place),
                (_stored(Image.fromarray(pixels), place),),
                next(questions),
                tuple(itertools.islice(said, answers)),
            )
        )
    return Batches(collator.rows(made), collator.forks(made))


def _stored(image: Image.Image, place: int) -> ImageRef:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return bytes_image(f"random {place}", partial(bytes, buffer.getvalue()))


def _side(collator: Collator, tokens: int) -> int:
    """Returns the side of a square image that becomes about so many tokens."""
    if not family_of_processor(type(collator.processor).__name__).pixel_limits:
        return 448  # these processors scale every image to sizes of their own
    images = collator.processor.image_processor
    return math.isqrt(tokens) * int(images.patch_size * images.merge_size)


def _texts(collator: Collator, tokens: int, generator: np.random.Generator) -> Iterator[str]:
    """Yields random words of at most so many tokens, one word at least.

    They are the same ones in another order, so that all texts are equally long and no row is
    padded; the first stays, since other tokens may stand for it within a text.
    """
    words = [str(word) for word in generator.choice(_WORDS, tokens)]
    low, high = 1, tokens
    while low < high:
        middle = (low + high + 1) // 2
        fits = len(collator.token_ids([" ".join(words[:middle])])[0]) <= tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    while True:
        yield " ".join([words[0], *generator.permutation(words[1:low])])

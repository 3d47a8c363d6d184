"""Scores answers one by one: a reward model, and what all that give such scores share."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from PIL import Image
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm.data.images import bytes_image, decode
from medrm.errors import DataError
from medrm.models.adapter_config import AdapterConfig
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.reward_model import without_adapter
from medrm.schema import LETTERS, TIE, Case, ImageRef, Outcome, Verdict
from medrm.scorer.collator import Collator, Pixels
from medrm.scorer.contextual import refuse_separate
from medrm.scorer.runner import BATCH_ROWS, Array, Prompts, Readout, Scored, to_numpy
from medrm.scorer.settings import model_settings

ImageInput = str | Path | bytes | Image.Image | ImageRef
"""A file, its bytes, a decoded image, or a reference as cases hold it."""

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


class AnswerScorer:
    """Scores the answers of a case, each alone unless trained otherwise; higher is better.

    Only differences between answers to the same question about the same images mean anything.

    Attributes:
        contract: what the model was saved with.
        model: with its head or adapter.
        processor: of the base model.
    """

    readout: str

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processor: ProcessorMixin,
        contract: AdapterConfig,
        readout: Readout[Case, Any, Array],
    ) -> None:
        self.model = model
        self.processor = processor
        self.contract = contract
        self._readout = readout

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The names of the D dimensions, in the order of the scores."""
        return self.contract.dimensions

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a score."""
        settings = model_settings(self.model, self.processor)
        return {**settings, "max_length": self.contract.max_length}

    @property
    def window(self) -> int:
        """How many cases are computed together."""
        return self._readout.window

    def score(self, images: Sequence[ImageInput], question: str, answers: Sequence[str]) -> Array:
        """Returns the rewards of the answers, float32 [K, D].

        Args:
            images: any number, none included.
            question: about the images.
            answers: one or more.

        Raises:
            DataError: no answer, a text in place of a list of answers, an unreadable image, or more
                tokens than the model was trained on.
        """
        if not answers:
            raise DataError("score() was given no answer; give at least one.")
        case = given_case("score", images, question, answers)
        return next(rewards for _, rewards in self.score_cases([case]))

    def score_cases(self, cases: Iterable[Case]) -> Iterator[tuple[Case, Array]]:
        """Yields (case, rewards [K, D]) in the order of the cases, in bounded memory.

        Args:
            cases: any iterable; read a window at a time.

        Raises:
            DataError: a case has an unreadable image or is over-long; `judge` goes on there.
        """
        for reading in self._readout.over(cases):
            case = reading.prompts.case
            if reading.values is None:
                for ref in case.images:
                    decode(ref)  # the reason of an unreadable image is in its own message
                raise DataError(
                    f"Case {case.case_id!r} cannot be scored ({reading.reason}): its longest row "
                    f"has more than {self.contract.max_length} tokens, the model's max_length. "
                    "Shorten the texts or scale the images down."
                )
            yield case, reading.values

    def judge(self, cases: Iterable[Case]) -> Iterator[Scored]:
        """Yields what the model says of every case; one that cannot be scored has its reason."""
        for reading in self._readout.over(cases):
            yield Scored(reading.prompts.case, "forward", reading.values, reading.reason)

    def compare(
        self, images: Sequence[ImageInput], question: str, answers: Sequence[str]
    ) -> dict[str, Verdict]:
        """Returns the preferred answer on each dimension.

        Equal scores at the top are a tie, and nothing else is: a learned tie parameter shapes the
        training alone. `probability_a` of a pair is that of Bradley-Terry: the softmax of the
        scores.

        Args:
            images: any number, none included.
            question: about the images.
            answers: two or more.

        Raises:
            DataError: fewer than two answers, or what `score` raises.
        """
        if len(answers) < 2:
            raise DataError(f"compare() was given {len(answers)} answers; give at least two.")
        rewards = self.score(images, question, answers)
        return {
            name: _verdict(name, rewards[:, column]) for column, name in enumerate(self.dimensions)
        }


class RewardModel(AnswerScorer):
    """A trained reward model: one score for each answer and dimension.

    Attributes:
        readout: "reward".

    Args:
        model: from `load_adapter`.
        processor: from the same folder.
        contract: from the same folder.
        batch_rows: most rows (case and answer) computed at once; a case is never split. In fp32 it
            changes no score by more than 1e-5.
    """

    readout = "reward"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processor: ProcessorMixin,
        contract: AdapterConfig,
        batch_rows: int = BATCH_ROWS,
    ) -> None:
        shares = shares_prefix(without_adapter(model))
        refuse_separate(contract.contextual_orders, shares)
        readout: Readout[Case, None, Array] = Readout(
            Collator(
                processor,
                contract.reward_template,
                contextual_orders=contract.contextual_orders,
            ),
            prompts=self._prompts,
            rows=lambda case: len(case.answers),
            read=self._read,
            batch_rows=batch_rows,
            max_length=contract.max_length,
            forks=self._forks if shares else None,
        )
        super().__init__(model, processor, contract, readout)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a reward."""
        return {**super().settings, "reward_template": self.contract.reward_template}

    def _prompts(self, case: Case) -> Prompts[None]:
        return Prompts(case, self._readout.collator.answer_rows(case), None)

    def _forks(self, prompts: Sequence[Prompts[None]], pixels: Pixels) -> BatchFeature:
        return self._readout.collator.forks([prompt.case for prompt in prompts], pixels)

    def _read(self, features: BatchFeature, prompts: list[Prompts[None]]) -> list[Array]:
        rewards = to_numpy(self.model(**features.to(self.model.device)).rewards)
        return by_case(rewards, prompts)


def by_case(rows: Array, prompts: Sequence[Prompts[Any]]) -> list[Array]:
    """Returns the rows [rows, D] of each case."""
    ends = np.cumsum([len(prompt.rows) for prompt in prompts])
    return np.split(rows, ends[:-1])


def _verdict(dimension: str, scores: Array) -> Verdict:
    best = np.flatnonzero(scores == scores.max())
    pair = scores.tolist() if len(scores) == 2 else (None, None)
    outcome: Outcome = TIE if len(best) > 1 else int(best[0])
    chances = torch.from_numpy(scores).double().softmax(dim=0).tolist()
    return Verdict(
        case_id="compare",
        dimension=dimension,
        protocol=None,
        order="both",
        outcome=LETTERS[outcome] if isinstance(outcome, int) and len(scores) == 2 else outcome,
        probability_a=chances[0] if len(scores) == 2 else None,
        score_a=pair[0],
        score_b=pair[1],
        scores=tuple(scores.tolist()) if len(scores) > 2 else None,
    )


def given_case(
    name: str, images: Sequence[ImageInput], question: str, answers: Sequence[str]
) -> Case:
    """Returns the case that a caller of a function of that name describes.

    Raises:
        DataError: one answer or image in place of a list, or no image file under a path.
    """
    if isinstance(answers, str):
        raise DataError(f"{name}() was given one text as its answers; give a list of texts.")
    if isinstance(images, str | bytes):
        raise DataError(f"{name}() was given one image in place of a list; give [image].")
    references = tuple(image_ref(image, place) for place, image in enumerate(images))
    return Case(name, references, question, tuple(answers))


def image_ref(image: ImageInput, place: int) -> ImageRef:
    """Returns a reference to an image given by a caller; messages call it by file name or place.

    Raises:
        DataError: there is no such file.
    """
    if isinstance(image, ImageRef):
        return image
    if isinstance(image, bytes):
        return bytes_image(f"number {place}", partial(bytes, image))
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        storable = image if image.mode in _PNG_MODES else image.convert("RGB")
        storable.save(buffer, "PNG")
        return bytes_image(f"number {place}", partial(bytes, buffer.getvalue()))
    path = Path(image)
    if not path.is_file():
        raise DataError(
            f"There is no image file {str(path)!r}. Give a path, bytes, or a PIL image."
        )
    return bytes_image(path.name, path.read_bytes)

"""What readouts share that compare a judge's two possible answers by their probabilities."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import BatchFeature, PreTrainedModel

from medrm.errors import DataError
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.prefix_sharing.kv_cache import shares_cache
from medrm.schema import Case, Order, Response, Verdict
from medrm.scorer.caller_case import ImageInput
from medrm.scorer.collator import Collator
from medrm.scorer.readouts.pair_judge import PairJudge
from medrm.scorer.runner import Array, BatchRunner, PromptRows
from medrm.scorer.settings import model_settings


class ProbabilityCall(NamedTuple):
    """One call of a judge whose letters' probabilities are read.

    Attributes:
        order: in which the answers are shown.
        dimension: the one that is asked about; None: all in one reply.
        dimensions: all that the call asks about.
        digest: SHA-256 of the prompt.
    """

    order: Order
    dimension: str | None
    dimensions: tuple[str, ...]
    digest: str


class CallPrompts(NamedTuple):
    """The calls about one case, beside its encoded rows.

    Attributes:
        calls: the forward order first.
        prompts: token ids of what the calls do not share with the encoded row; none where every
            prompt is a row of its own.
        encoded: token ids of the encoded row, in which an image is one placeholder.
    """

    calls: list[ProbabilityCall]
    prompts: list[list[int]]
    encoded: list[int]


CasePrompts = list[PromptRows[CallPrompts]]
"""Of the cases of a batch."""


class ProbabilityReadout(PairJudge):
    """A judge in memory that is read by P("A") and P("B") at each letter of its verdict.

    The values of a case are [calls, dimensions of a call, 3]: the probabilities of naming the first
    stored answer and the second, and their sum.

    Args:
        model: a stock model; one with an adapter without its wrapper.
        collator: of the model's processor.
        dimensions: what to ask about.
    """

    readout: str
    _runner: BatchRunner[Case, CallPrompts, Array]

    def __init__(
        self, model: PreTrainedModel, collator: Collator, dimensions: Sequence[str]
    ) -> None:
        self.dimensions = tuple(dimensions)
        self._model = model
        self._collator = collator

    def _build_runner(
        self, row_count: int, batch_rows: int, max_length: int | None
    ) -> BatchRunner[Case, CallPrompts, Array]:
        """Returns what runs this readout in the way that shares most and is exact for the model.

        Args:
            row_count: rows computed for a case.
            batch_rows: most rows computed at once.
            max_length: longest prompt that is read, in tokens; None: no limit.
        """
        shares = shares_prefix(self._model)
        read = self._read_forked if shares else self._read_separate
        return BatchRunner(
            self._collator,
            prompts=self._shared_prompts if shares else self._separate_prompts,
            rows=lambda _: row_count,
            read=self._read_cached if shares_cache(self._model) else read,
            batch_rows=batch_rows,
            max_length=max_length,
        )

    @abstractmethod
    def _separate_prompts(self, case: Case) -> PromptRows[CallPrompts]:
        """Returns a row for each call."""

    @abstractmethod
    def _shared_prompts(self, case: Case) -> PromptRows[CallPrompts]:
        """Returns one row, and the tokens in which the calls differ from it."""

    @abstractmethod
    def _read_separate(self, features: BatchFeature, prompts: CasePrompts) -> list[Array]:
        """Returns the values of each case; every prompt is computed by itself."""

    @abstractmethod
    def _read_forked(self, features: BatchFeature, prompts: CasePrompts) -> list[Array]:
        """Returns the values of each case; its calls are branches of one prefix."""

    @abstractmethod
    def _read_cached(self, features: BatchFeature, prompts: CasePrompts) -> list[Array]:
        """Returns the values of each case; its calls continue one cached prefix."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a response."""
        return model_settings(self._model, self._collator.processor)

    @property
    def lookahead(self) -> int:
        """How many cases are computed together."""
        return self._runner.lookahead

    def _ask(self, pairs: Iterable[Case]) -> Iterator[list[Response]]:
        for output in self._runner.run(pairs):
            yield [
                Response(
                    case_id=output.prompts.case.case_id,
                    order=call.order,
                    dimension=call.dimension,
                    vote=0,
                    readout=self.readout,
                    prompt_digest=call.digest,
                    text=None,
                    probabilities=None
                    if output.values is None
                    else _by_dimension(call.dimensions, output.values[index]),
                    finish_reason=None,
                    state=output.state,
                    reason=output.reason,
                )
                for index, call in enumerate(output.prompts.detail.calls)
            ]

    def compare(
        self, images: Sequence[ImageInput], question: str, answers: Sequence[str]
    ) -> dict[str, Verdict]:
        """Returns the answer that is more probable in both orders; see `PairJudge.compare`.

        Raises:
            DataError: other than two answers, an image that cannot be read, or more tokens than
                the model can read.
        """
        verdicts = super().compare(images, question, answers)
        for verdict in verdicts.values():
            if verdict.reason in ("too_long", "bad_image"):
                raise DataError(
                    f"compare() cannot judge this pair ({verdict.reason}). Shorten the texts or "
                    "scale the images down."
                )
        return verdicts


def _by_dimension(
    dimensions: Sequence[str], chances: Array
) -> dict[str, tuple[float, float, float]]:
    """Returns the probabilities [D, 3] by dimension."""
    return {
        name: (first, second, mass)
        for name, (first, second, mass) in zip(dimensions, chances.tolist(), strict=True)
    }

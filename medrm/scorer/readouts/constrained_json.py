"""A judge's verdict read from probabilities: the JSON is given, the judge chooses the letters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm import chat
from medrm.chat import JudgePrompt, Message
from medrm.errors import ConfigError, DataError
from medrm.models.adapter_config import AdapterConfig
from medrm.models.families import family_of
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.prefix_sharing.batch import share_prefixes
from medrm.models.prefix_sharing.kv_cache import (
    continued,
    ends_of,
    read_branches,
    shared_length,
    shares_cache,
)
from medrm.models.reward_model import last_attended, without_adapter
from medrm.schema import DIMENSIONS, ORDERS, Case, Order, Verdict
from medrm.scorer.collator import Collator, Row
from medrm.scorer.probability_responses import probability_response
from medrm.scorer.readouts.generative_judge import Preference, agreed, pair_case
from medrm.scorer.readouts.response_template import Draft, Frame
from medrm.scorer.readouts.reward import ImageInput
from medrm.scorer.round_robin import in_pairs
from medrm.scorer.runner import (
    BATCH_ROWS,
    Array,
    Prompts,
    Readout,
    Scored,
    text_digest,
)
from medrm.scorer.settings import model_settings
from medrm.scorer.token_logprobs import branch_ends, hidden_states, log_probabilities

Triple = tuple[float, float, float]
"""The probabilities of naming the first stored answer and the second, and their sum."""


class Call(NamedTuple):
    """What is asked in one call, and the tokens of the prompt before the reply."""

    order: Order
    dimension: str | None
    names: tuple[str, ...]
    messages: list[Message]
    digest: str
    prompt: list[int]


class Asked(NamedTuple):
    """The calls of one case, by order, and the token ids of the encoded row that they share."""

    calls: list[Call]
    encoded: list[int]


class ConstrainedJson:
    """Asks which of two answers is better, in both orders, and reads P("A") and P("B").

    The reply is the prompt's JSON frame. At each letter, left to right, the two complete replies
    with A and with B there are tokenised, and their first differing tokens are compared: each one's
    probability after all that stands before it. That includes the letters before; of those the more
    probable one stands there (A where they are equal), so the reading is greedy. A letter that is
    not chosen yet is A in both replies.

    Image and question, and the answers in each order, are computed once where the family allows
    it. Other families take one pass over the whole prompt for each letter.

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

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processor: ProcessorMixin,
        prompt: JudgePrompt,
        *,
        dimensions: Sequence[str] = DIMENSIONS,
        batch_rows: int = BATCH_ROWS,
        max_length: int | None = None,
        contract: AdapterConfig | None = None,
    ) -> None:
        if prompt.rationale:
            raise ConfigError(
                f"The prompt {prompt.name!r} asks for reasons before the verdict, and the readout "
                "'skeleton' gives the whole reply but its letters. Choose the readout 'generate' "
                "or 'votes', or a prompt without reasons such as 'json'."
            )
        self.dimensions = tuple(dimensions)
        self.contract = contract
        self._model = without_adapter(model)
        self._prompt = prompt
        self._collator = Collator(processor)
        self._frames = {
            name: Frame(self._collator, prompt, self.dimensions if name is None else (name,))
            for name in prompt.dimensions_per_call(self.dimensions)
        }
        shares, forks = shares_cache(self._model), shares_prefix(self._model)
        read = self._read_forked if forks else self._read_whole
        read = self._read_shared if shares else read
        rows = len(ORDERS) * len(self._frames)
        self._readout: Readout[Case, Asked, Array] = Readout(
            self._collator,
            prompts=self._shared_prompts if forks else self._whole_prompts,
            rows=lambda _: rows,
            read=read,
            batch_rows=batch_rows,
            max_length=max_length,
        )

    @property
    def window(self) -> int:
        """How many cases are computed together."""
        return self._readout.window

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a response."""
        return {
            **model_settings(self._model, self._collator.processor),
            "prompt": f"{self._prompt.name} {self._prompt.version}",
            "prompt_digest": self._prompt.digest,
        }

    def judge(self, cases: Iterable[Case]) -> Iterator[Scored]:
        """Yields the probabilities of both orders of every case, or the reason why not.

        Of more than two answers every two are compared.
        """
        return in_pairs(self._judge, cases)

    def _judge(self, pairs: Iterable[Case]) -> Iterator[Scored]:
        for prompts, values, reason in self._readout.over(pairs):
            for order in ORDERS:
                responses = tuple(
                    probability_response(
                        prompts.case.case_id,
                        order,
                        self.readout,
                        call.dimension,
                        call.names,
                        call.digest,
                        None if values is None else values[place],
                        reason,
                    )
                    for place, call in enumerate(prompts.detail.calls)
                    if call.order == order
                )
                yield Scored(prompts.case, order, responses=responses)

    def compare(
        self, images: Sequence[ImageInput], question: str, answers: Sequence[str]
    ) -> dict[str, Verdict]:
        """Returns the answer that is more probable in both orders, on each dimension.

        Where the orders differ there is no choice, and the reason is "orders_disagree"; where one
        of them has no probability on either answer, it is "no_mass".
        `probabilities` are the mean of the orders, given that one of the answers is named.

        Args:
            images: any number, none included.
            question: about the images.
            answers: two.

        Raises:
            DataError: other than two answers, an image that cannot be read, or more tokens than
                `max_length`.
        """
        forward, backward = (
            _triples(scored) for scored in self.judge([pair_case(images, question, answers)])
        )
        return {
            name: dataclasses.replace(
                agreed(name, _preferred(forward[name]), _preferred(backward[name])),
                probability_a=_mean_share(forward[name], backward[name]),
            )
            for name in self.dimensions
        }

    def _calls(self, case: Case) -> list[Call]:
        question, answers = self._collator.plain(case)
        processor = self._collator.processor
        calls = []
        for order in ORDERS:
            first, second = answers if order == "forward" else answers[::-1]
            for name, frame in self._frames.items():
                messages = self._prompt.messages(
                    question, len(case.images), (first, second), frame.names
                )
                sent = chat.render(processor, messages, "generation_prompt")
                digest = text_digest([Row(sent, case.images)])
                calls.append(Call(order, name, frame.names, messages, digest, []))
        return calls

    def _whole_prompts(self, case: Case) -> Prompts[Asked]:
        calls = self._calls(case)
        texts = [self._frames[call.dimension].text(call.messages) for call in calls]
        return Prompts(case, [Row(text, case.images) for text in texts], Asked(calls, []))

    def _shared_prompts(self, case: Case) -> Prompts[Asked]:
        """Returns one row, that of the longest prompt, and the tokens of each call's prompt."""
        calls = self._calls(case)
        frames = [self._frames[call.dimension] for call in calls]
        texts = [frame.text(call.messages) for frame, call in zip(frames, calls, strict=True)]
        ids = self._collator.token_ids(texts)
        longest = max(range(len(ids)), key=lambda place: len(ids[place]))
        calls = [
            call._replace(prompt=frame.before_reply(row))
            for frame, call, row in zip(frames, calls, ids, strict=True)
        ]
        return Prompts(case, [Row(texts[longest], case.images)], Asked(calls, ids[longest]))

    def _read_shared(self, features: BatchFeature, prompts: list[Prompts[Asked]]) -> list[Array]:
        calls = [call for prompt in prompts for call in prompt.detail.calls]
        drafts = [Draft(self._frames[call.dimension]) for call in calls]
        opened = iter(
            [[*call.prompt, *draft.step.feed] for call, draft in zip(calls, drafts, strict=True)]
        )
        groups = [[[next(opened) for _ in self._frames] for _ in ORDERS] for _ in prompts]
        encoded = [prompt.detail.encoded for prompt in prompts]
        prefix, states = read_branches(
            self._model, features.to(self._model.device), encoded, groups
        )
        for column in range(len(calls[0].names)):
            if column:
                states = prefix.extend([draft.step.feed for draft in drafts])
            self._choose(states, drafts)
        return self._values(prompts, drafts)

    def _read_forked(self, features: BatchFeature, prompts: list[Prompts[Asked]]) -> list[Array]:
        calls = [call for prompt in prompts for call in prompt.detail.calls]
        drafts = [Draft(self._frames[call.dimension]) for call in calls]
        starts = [shared_length([call.prompt for call in one.detail.calls]) for one in prompts]
        ends = ends_of(features, [prompt.detail.encoded for prompt in prompts], starts)
        family = family_of(self._model.config)
        for _ in calls[0].names:
            said = iter(drafts)
            branches = [
                [[*call.prompt[start:], *next(said).step.reply] for call in prompt.detail.calls]
                for prompt, start in zip(prompts, starts, strict=True)
            ]
            batch = share_prefixes(features, family, ends, branches).to(self._model.device)
            self._choose(branch_ends(self._model, batch), drafts)
        return self._values(prompts, drafts)

    def _read_whole(self, features: BatchFeature, prompts: list[Prompts[Asked]]) -> list[Array]:
        calls = [call for prompt in prompts for call in prompt.detail.calls]
        drafts = [Draft(self._frames[call.dimension]) for call in calls]
        features = features.to(self._model.device)
        lengths = features["attention_mask"].sum(dim=1).tolist()
        before = [
            len(draft.frame.before_reply(row[:length]))
            for draft, row, length in zip(
                drafts, features["input_ids"].tolist(), lengths, strict=True
            )
        ]
        for _ in calls[0].names:
            rows = continued(features, before, [draft.step.reply for draft in drafts])
            states = hidden_states(self._model, rows)
            self._choose(last_attended(states, rows["attention_mask"]), drafts)
        return self._values(prompts, drafts)

    def _choose(self, states: Tensor, drafts: Sequence[Draft]) -> None:
        """Notes the probabilities of each draft's next letter and chooses it."""
        letters = torch.tensor([draft.step.letters for draft in drafts], device=states.device)
        for draft, (first, second) in zip(
            drafts, log_probabilities(self._model, states, letters).exp().tolist(), strict=True
        ):
            draft.choose(first, second)

    def _values(self, prompts: list[Prompts[Asked]], drafts: Sequence[Draft]) -> list[Array]:
        """Returns for each case [calls, D, 3], for the stored answers."""
        remaining = iter(drafts)
        return [
            np.stack([next(remaining).chances(call.order) for call in prompt.detail.calls])
            for prompt in prompts
        ]


def _triples(scored: Scored) -> dict[str, Triple]:
    """Returns the probabilities of one order by dimension.

    Raises:
        DataError: the calls were not made.
    """
    found: dict[str, Triple] = {}
    for response in scored.responses:
        if response.probabilities is None:
            raise DataError(
                f"compare() cannot judge this pair ({response.reason}). Shorten the texts or scale "
                "the images down."
            )
        found |= response.probabilities
    return found


def _preferred(triple: Triple) -> Preference:
    first, second, mass = triple
    if not mass > 0:
        return Preference(None, "no_mass")
    return Preference("tie" if first == second else int(second > first), None)


def _mean_share(forward: Triple, backward: Triple) -> float:
    return sum(first / mass if mass else 0.5 for first, _, mass in (forward, backward)) / 2

"""Judges in memory that are read by the probabilities of the letters in their verdicts.

The reply is given but for its letters. At each letter, left to right, the two complete replies with
A and with B there are tokenised, and their first differing tokens are compared: each one's
probability after all that stands before it. That includes the letters before; of those the more
probable one stands there (A where they are equal), so the reading is greedy. A letter that is not
chosen yet is A in both replies.

    prompt, {"accuracy": "   P(A) P(B)   A", "overall": "   P(A) P(B)   ...

Image and question, and the answers in each order, are computed once where the family allows it.
Other families take one pass over the whole prompt for each letter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm.chat import LETTER_PROMPT, JudgePrompt
from medrm.data.batched import batched
from medrm.errors import ConfigError, DataError
from medrm.models.adapter_config import AdapterConfig
from medrm.models.backbone import final_states, last_attended
from medrm.models.prefix_sharing.attention import shares_prefix
from medrm.models.prefix_sharing.batch import (
    append_tokens,
    prefix_ends,
    share_prefixes,
    shared_length,
)
from medrm.models.prefix_sharing.kv_cache import read_branches, shares_cache
from medrm.models.reward_model import without_adapter
from medrm.schema import DIMENSIONS, ORDERS, Case, Response, Verdict
from medrm.scorer.caller_cases import ImageInput
from medrm.scorer.collator import Collator, Row
from medrm.scorer.engines.base import Request, text_digest
from medrm.scorer.logprobs import branch_ends, token_logprobs
from medrm.scorer.readouts.pair_judge import PairJudge
from medrm.scorer.readouts.response_template import ReplyDraft, ResponseTemplate
from medrm.scorer.runner import (
    BATCH_ROWS,
    BatchRunner,
    PromptRows,
    by_group,
    model_settings,
)


class CallPrompts(NamedTuple):
    """Calls about one case that are computed together, beside their encoded rows.

    Attributes:
        requests: the calls, the forward order first.
        prompts: token ids of each call's prompt; none where every prompt is a row of its own.
        encoded: token ids of the encoded row, in which an image is one placeholder.
    """

    requests: list[Request]
    prompts: list[list[int]]
    encoded: list[int]


CasePrompts = list[PromptRows[CallPrompts]]
"""Of the cases of a batch."""


class ProbabilityReadout(PairJudge):
    """Asks which of two answers is better, in both orders, and reads P("A") and P("B").

    The values of a case are those of its calls: for each dimension of a call the probabilities of
    naming the first stored answer and the second, and their sum.

    Attributes:
        dimensions: what is asked about.
        contract: of the saved judge, None for any other.

    Args:
        model: a stock model, or one with an adapter.
        processor: of the model.
        prompt: how it is asked, and what it replies; by default one letter on one dimension.
        dimensions: what to ask about.
        batch_rows: most rows (calls) computed at once.
        max_length: longest prompt with its reply that is read, in tokens; None: no limit.
        contract: of a saved judge.
        deterministic: whether each call is computed by itself (`medrm.scorer.determinism`).

    Raises:
        ConfigError: the prompt asks for reasons, which cannot be given, or the tokenizer joins the
            letters of a reply.
    """

    measures_noise = True

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processor: ProcessorMixin,
        prompt: JudgePrompt = LETTER_PROMPT,
        *,
        dimensions: Sequence[str] = DIMENSIONS,
        batch_rows: int = BATCH_ROWS,
        max_length: int | None = None,
        contract: AdapterConfig | None = None,
        deterministic: bool = False,
    ) -> None:
        if prompt.rationale:
            raise ConfigError(
                f"The prompt {prompt.name!r} asks for reasons before the verdict, and the readout "
                "'skeleton' gives the whole reply but its letters. Choose the readout 'generate' "
                "or 'votes', or a prompt without reasons such as 'json'."
            )
        self.contract = contract
        self.dimensions = tuple(dimensions)
        self._model = without_adapter(model)
        self.prompt = prompt
        self._collator = Collator(processor)
        self._templates = {
            name: ResponseTemplate(
                self._collator, prompt, self.dimensions if name is None else (name,)
            )
            for name in prompt.dimensions_per_call(self.dimensions)
        }
        self._letter_count = max(len(template.names) for template in self._templates.values())
        self._shares = shares_prefix(self._model) and not deterministic
        self._caches = shares_cache(self._model) and not deterministic
        self._runner: BatchRunner[list[Request], CallPrompts, list[Any]] = BatchRunner(
            self._collator,
            prompts=self._prompts,
            rows=lambda requests: len(ORDERS) if self._caches else len(requests),
            read=self._read,
            batch_rows=batch_rows,
            max_length=max_length,
            deterministic=self._model if deterministic else None,
            case=lambda requests: requests[0].case,
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a response."""
        runner, processor = self._runner, self._collator.processor
        deterministic = runner.deterministic is not None
        settings = model_settings(self._model, processor, self._shares, deterministic)
        stated = {} if runner.max_length is None else {"max_length": runner.max_length}
        return {**settings, **stated}

    @property
    def lookahead(self) -> int | None:
        """How many cases are computed together; None: each by itself."""
        return self._runner.lookahead

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

    def _ask(self, pairs: Iterable[Case]) -> Iterator[list[Response]]:
        calls = map(self._requests, pairs)
        alone = self._runner.deterministic is not None
        groups = (
            (requests, [[request] for request in requests] if alone else [requests])
            for requests in calls
        )
        for requests, outputs in by_group(groups, self._runner.run):
            answered = chain.from_iterable(
                zip(output.prompts.detail.requests, output.values or repeat(None), repeat(output))
                for output in outputs
            )
            yield [
                self._response(
                    request,
                    prompt_digest=digest,
                    probabilities=probabilities,
                    state=output.state,
                    reason=output.reason,
                )
                for (request, probabilities, output), digest in zip(
                    answered, self._digests(requests), strict=True
                )
            ]

    def _plain(self, text: str) -> str:
        return self._collator.plain_text(text)

    def _rendered(self, request: Request) -> str:
        return self._collator.row(request.messages, request.case.images).text

    def _digests(self, requests: list[Request]) -> list[str]:
        """Returns the SHA-256 of each call's prompt."""
        return [
            text_digest([Row(self._rendered(request), request.case.images)]) for request in requests
        ]

    def _text(self, request: Request) -> str:
        """Returns a call's conversation with a reply whose letters are all A."""
        return self._templates[request.dimension].text(request.messages)

    def _prompts(self, requests: list[Request]) -> PromptRows[CallPrompts]:
        """Returns a row for each call, or the longest alone and the tokens of all prompts."""
        case = requests[0].case
        rows = [Row(self._text(request), case.images) for request in requests]
        if not self._shares:
            return PromptRows(case, rows, CallPrompts(requests, [], []))
        ids = self._collator.token_ids([row.text for row in rows])
        longest = max(range(len(ids)), key=lambda index: len(ids[index]))
        prompts = [
            self._templates[request.dimension].before_reply(call_ids)
            for request, call_ids in zip(requests, ids, strict=True)
        ]
        detail = CallPrompts(requests, prompts, ids[longest])
        return PromptRows(case, [rows[longest]], detail)

    def _read(self, features: BatchFeature, prompts: CasePrompts) -> list[list[Any]]:
        """Returns for each call of each case the probabilities of the stored answers."""
        drafts = [
            ReplyDraft(self._templates[request.dimension])
            for prompt in prompts
            for request in prompt.detail.requests
        ]
        if self._caches:
            self._read_cached(features, prompts, drafts)
        elif self._shares:
            self._read_shared(features, prompts, drafts)
        else:
            self._read_separate(features, drafts)
        remaining = iter(drafts)
        return [
            [next(remaining).probabilities(request.order) for request in prompt.detail.requests]
            for prompt in prompts
        ]

    def _read_cached(
        self, features: BatchFeature, prompts: CasePrompts, drafts: Sequence[ReplyDraft]
    ) -> None:
        """Reads the calls behind cached prefixes: what they share is read once.

        A case has two rows, one for each order. All calls of an order continue its row one after
        the other, letter by letter, so that no more than these rows are in memory.
        """
        ids = (call_ids for prompt in prompts for call_ids in prompt.detail.prompts)
        # Each call's prompt with the beginning of its reply, and what those of an order share.
        opened = [
            [*call_ids, *draft.step.feed] for call_ids, draft in zip(ids, drafts, strict=True)
        ]
        call_count = len(self._templates)
        by_order = list(batched(opened, call_count))
        stems = [calls[0][: shared_length(calls)] if calls[1:] else calls[0] for calls in by_order]
        by_case = [[[stem] for stem in pair] for pair in batched(stems, len(ORDERS))]
        encoded = [prompt.detail.encoded for prompt in prompts]
        prefix, states = read_branches(
            self._model, features.to(self._model.device), encoded, by_case
        )
        for call in range(call_count):
            replies = drafts[call::call_count]
            tails = [calls[call][len(stem) :] for calls, stem in zip(by_order, stems, strict=True)]
            if call_count > 1:
                states = prefix.extend(tails)
            for column in range(self._letter_count):
                if column:
                    states = prefix.extend([reply.step.feed for reply in replies])
                self._choose(states, replies)
            if call + 1 < call_count:
                prefix.retract([len(tail) for tail in tails])

    def _read_shared(
        self, features: BatchFeature, prompts: CasePrompts, drafts: Sequence[ReplyDraft]
    ) -> None:
        """Reads the calls of a case as branches of one prefix, once for each letter."""
        starts = [shared_length(prompt.detail.prompts) for prompt in prompts]
        ends = prefix_ends(features, [prompt.detail.encoded for prompt in prompts], starts)
        for _ in range(self._letter_count):
            remaining = iter(drafts)
            branches = [
                [[*ids[start:], *next(remaining).step.reply] for ids in prompt.detail.prompts]
                for prompt, start in zip(prompts, starts, strict=True)
            ]
            batch = share_prefixes(features, self._collator.image_rows, ends, branches)
            batch = batch.to(self._model.device)
            self._choose(branch_ends(self._model, batch), drafts)

    def _read_separate(self, features: BatchFeature, drafts: Sequence[ReplyDraft]) -> None:
        """Reads every prompt by itself, once for each letter."""
        features = features.to(self._model.device)
        lengths = features["attention_mask"].sum(dim=1).tolist()
        prompt_lengths = [
            len(draft.template.before_reply(row[:length]))
            for draft, row, length in zip(
                drafts, features["input_ids"].tolist(), lengths, strict=True
            )
        ]
        for _ in range(self._letter_count):
            rows = append_tokens(features, prompt_lengths, [draft.step.reply for draft in drafts])
            states = final_states(self._model, **rows, use_cache=False)
            self._choose(last_attended(states, rows["attention_mask"]), drafts)

    def _choose(self, states: Tensor, drafts: Sequence[ReplyDraft]) -> None:
        """Notes the probabilities of each draft's next letter and chooses it."""
        letters = torch.tensor([draft.step.letters for draft in drafts], device=states.device)
        for draft, (first, second) in zip(
            drafts, token_logprobs(self._model, states, letters).exp().tolist(), strict=True
        ):
            draft.choose(first, second)


class VerdictProbability(ProbabilityReadout):
    """A base model that is asked which of two answers is better and replies with one letter.

    Attributes:
        readout: "verdict_probability".
    """

    readout = "verdict_probability"

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a probability."""
        messages = LETTER_PROMPT.messages("question", 1, ("first", "second"), ("dimension",))
        digest = hashlib.sha256(json.dumps(messages).encode()).hexdigest()
        return {**super().settings, "verdict_prompt_digest": digest}

    def _digests(self, requests: list[Request]) -> list[str]:
        """Returns for each call the digest of its order's longest one with reply A."""
        longest = max(self.dimensions, key=lambda name: self._templates[name].short_length)
        digests = {
            request.order: text_digest([Row(self._text(request), request.case.images)])
            for request in requests
            if request.dimension == longest
        }
        return [digests[request.order] for request in requests]


class ConstrainedJson(ProbabilityReadout):
    """A judge that replies with the JSON of its prompt and chooses the letters alone.

    Attributes:
        readout: "skeleton".
    """

    readout = "skeleton"

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a response."""
        return {
            **super().settings,
            "prompt": f"{self.prompt.name} {self.prompt.version}",
            "prompt_digest": self.prompt.digest,
        }

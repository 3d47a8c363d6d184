"""A judge's verdict read from probabilities: the JSON is given, the judge chooses the letters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm import chat
from medrm.chat import JudgePrompt, Message
from medrm.errors import ConfigError
from medrm.models.adapter_config import AdapterConfig
from medrm.models.families import family_of
from medrm.models.prefix_sharing.batch import (
    append_tokens,
    prefix_ends,
    share_prefixes,
    shared_length,
)
from medrm.models.prefix_sharing.kv_cache import read_branches
from medrm.models.reward_model import last_attended, without_adapter
from medrm.schema import DIMENSIONS, ORDERS, Case
from medrm.scorer.collator import Collator, Row
from medrm.scorer.readouts.probability_readout import (
    CallPrompts,
    CasePrompts,
    ProbabilityCall,
    ProbabilityReadout,
)
from medrm.scorer.readouts.response_template import ReplyDraft, ResponseTemplate
from medrm.scorer.runner import BATCH_ROWS, Array, PromptRows, text_digest
from medrm.scorer.token_logprobs import branch_ends, hidden_states, token_logprobs


class ConstrainedJson(ProbabilityReadout):
    """Asks which of two answers is better, in both orders, and reads P("A") and P("B").

    The reply is the prompt's JSON. At each letter, left to right, the two complete replies
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
        super().__init__(without_adapter(model), Collator(processor), dimensions)
        self.contract = contract
        self._prompt = prompt
        self._templates = {
            name: ResponseTemplate(
                self._collator, prompt, self.dimensions if name is None else (name,)
            )
            for name in prompt.dimensions_per_call(self.dimensions)
        }
        self._letter_count = 1 if prompt.per_dimension else len(self.dimensions)
        row_count = len(ORDERS) * len(self._templates)
        self._runner = self._build_runner(row_count, batch_rows, max_length)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a response."""
        return {
            **super().settings,
            "prompt": f"{self._prompt.name} {self._prompt.version}",
            "prompt_digest": self._prompt.digest,
        }

    def _calls(self, case: Case) -> tuple[list[ProbabilityCall], list[list[Message]]]:
        """Returns the calls about a case, the forward order first, and their conversations."""
        question, answers = self._collator.plain(case)
        calls, conversations = [], []
        for order in ORDERS:
            first, second = answers if order == "forward" else answers[::-1]
            for name, template in self._templates.items():
                messages = self._prompt.messages(
                    question, len(case.images), (first, second), template.names
                )
                sent = chat.render(self._collator.processor, messages, "generation_prompt")
                digest = text_digest([Row(sent, case.images)])
                calls.append(ProbabilityCall(order, name, template.names, digest))
                conversations.append(messages)
        return calls, conversations

    def _texts(
        self, calls: Sequence[ProbabilityCall], conversations: Sequence[list[Message]]
    ) -> list[str]:
        """Returns each call's conversation with a reply whose letters are all A."""
        return [
            self._templates[call.dimension].text(messages)
            for call, messages in zip(calls, conversations, strict=True)
        ]

    def _separate_prompts(self, case: Case) -> PromptRows[CallPrompts]:
        calls, conversations = self._calls(case)
        rows = [Row(text, case.images) for text in self._texts(calls, conversations)]
        return PromptRows(case, rows, CallPrompts(calls, [], []))

    def _shared_prompts(self, case: Case) -> PromptRows[CallPrompts]:
        """Returns one row, that of the longest prompt, and the tokens of each call's prompt."""
        calls, conversations = self._calls(case)
        texts = self._texts(calls, conversations)
        ids = self._collator.token_ids(texts)
        longest = max(range(len(ids)), key=lambda index: len(ids[index]))
        prompts = [
            self._templates[call.dimension].before_reply(call_ids)
            for call, call_ids in zip(calls, ids, strict=True)
        ]
        rows = [Row(texts[longest], case.images)]
        return PromptRows(case, rows, CallPrompts(calls, prompts, ids[longest]))

    def _drafts(self, prompts: CasePrompts) -> list[ReplyDraft]:
        """Returns an empty reply for each call of each case."""
        return [
            ReplyDraft(self._templates[call.dimension])
            for prompt in prompts
            for call in prompt.detail.calls
        ]

    def _read_cached(self, features: BatchFeature, prompts: CasePrompts) -> list[Array]:
        """Chooses letter after letter behind cached prompts, each read once."""
        drafts = self._drafts(prompts)
        remaining = iter(drafts)
        # For each case and order, the prompts of its calls with the beginning of the reply.
        branches = [
            [
                [
                    [*ids, *next(remaining).step.feed]
                    for call, ids in zip(prompt.detail.calls, prompt.detail.prompts, strict=True)
                    if call.order == order
                ]
                for order in ORDERS
            ]
            for prompt in prompts
        ]
        encoded = [prompt.detail.encoded for prompt in prompts]
        prefix, states = read_branches(
            self._model, features.to(self._model.device), encoded, branches
        )
        for column in range(self._letter_count):
            if column:
                states = prefix.extend([draft.step.feed for draft in drafts])
            self._choose(states, drafts)
        return self._values(prompts, drafts)

    def _read_forked(self, features: BatchFeature, prompts: CasePrompts) -> list[Array]:
        """Reads the calls of a case as branches of one prefix, once for each letter."""
        drafts = self._drafts(prompts)
        starts = [shared_length(prompt.detail.prompts) for prompt in prompts]
        ends = prefix_ends(features, [prompt.detail.encoded for prompt in prompts], starts)
        family = family_of(self._model.config)
        for _ in range(self._letter_count):
            remaining = iter(drafts)
            branches = [
                [[*ids[start:], *next(remaining).step.reply] for ids in prompt.detail.prompts]
                for prompt, start in zip(prompts, starts, strict=True)
            ]
            batch = share_prefixes(features, family, ends, branches).to(self._model.device)
            self._choose(branch_ends(self._model, batch), drafts)
        return self._values(prompts, drafts)

    def _read_separate(self, features: BatchFeature, prompts: CasePrompts) -> list[Array]:
        """Reads every prompt by itself, once for each letter."""
        drafts = self._drafts(prompts)
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
            states = hidden_states(self._model, rows)
            self._choose(last_attended(states, rows["attention_mask"]), drafts)
        return self._values(prompts, drafts)

    def _choose(self, states: Tensor, drafts: Sequence[ReplyDraft]) -> None:
        """Notes the probabilities of each draft's next letter and chooses it."""
        letters = torch.tensor([draft.step.letters for draft in drafts], device=states.device)
        for draft, (first, second) in zip(
            drafts, token_logprobs(self._model, states, letters).exp().tolist(), strict=True
        ):
            draft.choose(first, second)

    def _values(self, prompts: CasePrompts, drafts: Sequence[ReplyDraft]) -> list[Array]:
        """Returns the probabilities of each case, [calls, D, 3], for the stored answers."""
        remaining = iter(drafts)
        return [
            np.stack([next(remaining).chances(call.order) for call in prompt.detail.calls])
            for prompt in prompts
        ]

"""The base model as a judge: the probability of its verdict, without generating it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm import chat
from medrm.errors import ConfigError
from medrm.models.families import family_of
from medrm.models.prefix_sharing.batch import first_difference, share_prefixes, shared_length
from medrm.models.prefix_sharing.kv_cache import CachedPrefix, leading_mask, shares_cache
from medrm.models.reward_model import last_attended
from medrm.schema import DIMENSIONS, ORDERS, Case
from medrm.scorer.collator import Collator, Row
from medrm.scorer.readouts.probability_readout import (
    CallPrompts,
    CasePrompts,
    ProbabilityCall,
    ProbabilityReadout,
)
from medrm.scorer.runner import (
    BATCH_ROWS,
    Array,
    PromptRows,
    text_digest,
    to_numpy,
)
from medrm.scorer.token_logprobs import branch_ends, hidden_states, token_logprobs


class Ending(NamedTuple):
    """How all verdict prompts end, in tokens.

    Attributes:
        tails: for each dimension, what follows the text that the dimensions share.
        letters: the first tokens in which the replies A and B differ.
        after: tokens of a rendered prompt after its tail, the letter included.
    """

    tails: list[list[int]]
    letters: tuple[int, int]
    after: int

    @property
    def longest(self) -> int:
        """The index of the dimension with the longest tail."""
        return max(range(len(self.tails)), key=lambda index: len(self.tails[index]))


class VerdictProbability(ProbabilityReadout):
    """Asks which of two answers is better, in both orders, and reads P("A") and P("B").

    One prompt for each order and dimension; the prompt's last position gives the probabilities of
    the two possible replies, taken from the first token in which the rendered replies differ.

    The image and the question, and then the answers in each order, are computed once and kept as a
    cache, where that is exact (see `shares_cache`); elsewhere orders and dimensions are branches
    behind the image and the question.

    Attributes:
        readout: "verdict_probability".
        dimensions: what is asked about.

    Args:
        model: a stock model.
        processor: of the model.
        dimensions: what to ask about.
        batch_rows: most rows computed at once.
        max_length: longest prompt that is read, in tokens; None: no limit.
    """

    readout = "verdict_probability"

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        dimensions: Sequence[str] = DIMENSIONS,
        batch_rows: int = BATCH_ROWS,
        max_length: int | None = None,
    ) -> None:
        super().__init__(model, Collator(processor), dimensions)
        self._ending = self._find_ending()
        row_count = len(ORDERS) * (1 if shares_cache(model) else len(self.dimensions))
        self._runner = self._build_runner(row_count, batch_rows, max_length)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights could change a probability."""
        messages = chat.verdict_messages("question", 1, ("first", "second"), "dimension")
        digest = hashlib.sha256(json.dumps(messages).encode()).hexdigest()
        return {**super().settings, "verdict_prompt_digest": digest}

    def _text(
        self, question: str, images: int, pair: tuple[str, str], dimension: str, reply: str = "A"
    ) -> str:
        """Returns the prompt with a reply: a template may open the model's turn in its own way."""
        messages = chat.verdict_messages(question, images, pair, dimension)
        return chat.render(self._collator.processor, chat.with_reply(messages, reply), "turn_end")

    def _find_ending(self) -> Ending:
        probes = [self._text("?", 0, (".", "."), name) for name in self.dimensions]
        other = self._text("?", 0, (".", "."), self.dimensions[0], reply="B")
        *ids, other_ids = self._collator.token_ids([*probes, other])
        letter = first_difference([ids[0], other_ids])
        after = len(ids[0]) - letter
        prompts = [row[:-after] for row in ids]
        start = shared_length(prompts)
        return Ending(
            [prompt[start:] for prompt in prompts], (ids[0][letter], other_ids[letter]), after
        )

    def _rows(self, case: Case, dimensions: Sequence[str]) -> list[list[Row]]:
        """Returns the rows of each order."""
        question, (first, second) = self._collator.plain(case)
        count = len(case.images)
        return [
            [Row(self._text(question, count, pair, name), case.images) for name in dimensions]
            for pair in ((first, second), (second, first))
        ]

    def _calls(self, digests: Sequence[str]) -> list[ProbabilityCall]:
        """Returns the calls about a case; those of one order have one digest."""
        return [
            ProbabilityCall(order, name, (name,), digest)
            for order, digest in zip(ORDERS, digests, strict=True)
            for name in self.dimensions
        ]

    def _separate_prompts(self, case: Case) -> PromptRows[CallPrompts]:
        by_order = self._rows(case, self.dimensions)
        calls = self._calls([text_digest(rows) for rows in by_order])
        rows = [row for rows in by_order for row in rows]
        return PromptRows(case, rows, CallPrompts(calls, [], []))

    def _shared_prompts(self, case: Case) -> PromptRows[CallPrompts]:
        """Returns one row, the forward order of the longest prompt, and how the orders differ.

        `CallPrompts.prompts` has for each order the tokens between what both orders share and the
        tail.
        """
        longest = self._ending.longest
        by_order = self._rows(case, self.dimensions[longest : longest + 1])
        cut = self._ending.after + len(self._ending.tails[longest])
        ids = [row[:-cut] for row in self._collator.token_ids([rows[0].text for rows in by_order])]
        start = shared_length(ids)
        calls = self._calls([text_digest(rows) for rows in by_order])
        middles = [row[start:] for row in ids]
        return PromptRows(case, by_order[0], CallPrompts(calls, middles, []))

    def _read_separate(self, features: BatchFeature, prompts: CasePrompts) -> list[Array]:
        features = features.to(self._model.device)
        tails = self._ending.tails * (len(ORDERS) * len(prompts))
        lengths = self._prompt_lengths(features, tails)
        mask = leading_mask(lengths, features["input_ids"].shape[1])
        states = hidden_states(self._model, BatchFeature({**features, "attention_mask": mask}))
        return self._probabilities(last_attended(states, mask))

    def _read_cached(self, features: BatchFeature, prompts: CasePrompts) -> list[Array]:
        features = features.to(self._model.device)
        tails, lengths = self._ending.tails, self._shared_lengths(features, prompts)
        middles = [prompt.detail.prompts for prompt in prompts]
        prefix = CachedPrefix.read(self._model, features, lengths)
        prefix.select([row for row in range(len(prompts)) for _ in ORDERS])
        prefix.extend([middle for by_order in middles for middle in by_order])
        states = []
        for tail in tails:
            states.append(prefix.extend([tail] * (len(ORDERS) * len(prompts))))
            prefix.retract(len(tail))
        return self._probabilities(torch.stack(states, dim=1).flatten(0, 1))

    def _read_forked(self, features: BatchFeature, prompts: CasePrompts) -> list[Array]:
        branches = [
            [[*middle, *tail] for middle in prompt.detail.prompts for tail in self._ending.tails]
            for prompt in prompts
        ]
        lengths = self._shared_lengths(features, prompts).tolist()
        batch = share_prefixes(features, family_of(self._model.config), lengths, branches)
        return self._probabilities(branch_ends(self._model, batch.to(self._model.device)))

    def _shared_lengths(self, features: BatchFeature, prompts: CasePrompts) -> Tensor:
        """Returns the tokens that both orders of each case share, [cases]."""
        longest = self._ending.tails[self._ending.longest]
        lengths = self._prompt_lengths(features, [longest] * len(prompts)) - len(longest)
        middles = [len(prompt.detail.prompts[0]) for prompt in prompts]
        return lengths - torch.tensor(middles, device=lengths.device)

    def _prompt_lengths(self, features: BatchFeature, tails: list[list[int]]) -> Tensor:
        """Returns the tokens of each row before the reply, [rows].

        Raises:
            ConfigError: a row does not end in its tail and a reply.
        """
        lengths: Tensor = features["attention_mask"].sum(dim=1) - self._ending.after
        for row, end, tail in zip(
            features["input_ids"].tolist(), lengths.tolist(), tails, strict=True
        ):
            if row[end - len(tail) : end + 1] != [*tail, self._ending.letters[0]]:
                raise ConfigError(
                    "The end of a verdict prompt is tokenised differently from case to case. Use "
                    "the chat template and tokenizer of the base model's own processor."
                )
        return lengths

    def _probabilities(self, states: Tensor) -> list[Array]:
        """Returns for each case [2 orders x D, 1, 3] from states [cases x 2 x D, H]."""
        letters = torch.tensor(self._ending.letters, device=states.device)
        chances = token_logprobs(self._model, states, letters.expand(len(states), -1)).exp()
        shown = chances.view(-1, len(ORDERS), len(self.dimensions), 2)
        stored = torch.stack([shown[:, 0], shown[:, 1].flip(-1)], dim=1)
        triples = torch.cat([stored, stored.sum(dim=-1, keepdim=True)], dim=-1)
        return list(to_numpy(triples.flatten(1, 2).unsqueeze(2)))

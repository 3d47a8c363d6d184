"""The base model as a judge: the probability of its verdict, without generating it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import BatchFeature, DynamicCache, PreTrainedModel, ProcessorMixin

from medrm import chat
from medrm.errors import ConfigError
from medrm.models.families import family_of
from medrm.models.reward_model import last_attended
from medrm.schema import DIMENSIONS, Case
from medrm.scorer.batches import (
    BATCH_ROWS,
    Array,
    Order,
    Prompts,
    Readout,
    Scored,
    text_digest,
    to_numpy,
)
from medrm.scorer.collate import Collator, Row
from medrm.scorer.language import hidden_states, log_probabilities

_ORDERS: tuple[Order, Order] = ("forward", "reversed")


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
        """The place of the dimension with the longest tail."""
        return max(range(len(self.tails)), key=lambda place: len(self.tails[place]))


class Asked(NamedTuple):
    """What is asked about one case, beside the encoded rows.

    Attributes:
        digests: of the prompts of each order.
        middles: for each order, the tokens between what both orders share and the tail; none where
            every prompt is computed whole.
    """

    digests: list[str]
    middles: list[list[int]]


class VerdictProbability:
    """Asks which of two answers is better, in both orders, and reads P("A") and P("B").

    One prompt for each order and dimension; the prompt's last position gives the probabilities of
    the two possible replies, taken from the first token in which the rendered replies differ.

    The image and the question, and then the answers in each order, are computed once and kept as a
    cache, where that is exact; `share_prefix` False computes every prompt whole.

    Attributes:
        readout: "verdict_probability".
        dimensions: what is asked about.

    Args:
        model: a stock model.
        processor: of the model.
        dimensions: what to ask about.
        batch_rows: most rows computed at once.
        max_length: longest prompt that is read, in tokens; None: no limit.
        share_prefix: whether prompts may share a prefix where the family allows it.
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
        share_prefix: bool = True,
    ) -> None:
        self.dimensions = tuple(dimensions)
        self._model = model
        self._collator = Collator(processor)
        shares = share_prefix and family_of(model.config).shared_cache
        self._ending = self._find_ending()
        rows = len(_ORDERS) * (1 if shares else len(self.dimensions))
        self._readout: Readout[Asked] = Readout(
            self._collator,
            prompts=self._shared_prompts if shares else self._whole_prompts,
            rows=lambda _: rows,
            read=self._read_shared if shares else self._read_whole,
            batch_rows=batch_rows,
            max_length=max_length,
        )

    def judge(self, cases: Iterable[Case]) -> Iterator[Scored]:
        """Yields probabilities [D, 3] for both orders of every case, or the reason why not.

        Cases of other than two answers have the reason "not_a_pair".
        """
        for prompts, values, reason in self._readout.over(cases):
            for place, order in enumerate(_ORDERS):
                chances = None if values is None else values[place]
                digest = prompts.detail.digests[place]
                yield Scored(prompts.case, order, None, chances, reason, digest)

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
        letter = _first_difference([ids[0], other_ids])
        after = len(ids[0]) - letter
        prompts = [row[:-after] for row in ids]
        start = min(_first_difference(prompts), min(map(len, prompts)) - 1)
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

    def _whole_prompts(self, case: Case) -> Prompts[Asked]:
        if len(case.answers) != 2:
            return _not_a_pair(case)
        orders = self._rows(case, self.dimensions)
        digests = [text_digest(rows) for rows in orders]
        return Prompts(case, [row for rows in orders for row in rows], Asked(digests, []))

    def _shared_prompts(self, case: Case) -> Prompts[Asked]:
        """Returns one row, the forward order of the longest prompt, and how the orders differ."""
        if len(case.answers) != 2:
            return _not_a_pair(case)
        longest = self._ending.longest
        orders = self._rows(case, self.dimensions[longest : longest + 1])
        cut = self._ending.after + len(self._ending.tails[longest])
        ids = [row[:-cut] for row in self._collator.token_ids([rows[0].text for rows in orders])]
        start = min(_first_difference(ids), min(map(len, ids)) - 1)
        middles = [row[start:] for row in ids]
        return Prompts(case, orders[0], Asked([text_digest(rows) for rows in orders], middles))

    def _read_whole(self, features: BatchFeature, prompts: list[Prompts[Asked]]) -> list[Array]:
        features = features.to(self._model.device)
        tails = self._ending.tails * (len(_ORDERS) * len(prompts))
        lengths = self._prompt_lengths(features, tails)
        mask = _mask(lengths, features["input_ids"].shape[1])
        states = hidden_states(self._model, BatchFeature({**features, "attention_mask": mask}))
        return self._probabilities(last_attended(states, mask))

    def _read_shared(self, features: BatchFeature, prompts: list[Prompts[Asked]]) -> list[Array]:
        features = features.to(self._model.device)
        tails = self._ending.tails
        longest = tails[self._ending.longest]
        lengths = self._prompt_lengths(features, [longest] * len(prompts)) - len(longest)
        middles = [prompt.detail.middles for prompt in prompts]
        shared = torch.tensor([len(forward) for forward, _ in middles], device=lengths.device)
        prefix = Prefix.of(self._model, features, lengths - shared)
        prefix.repeat(len(_ORDERS))
        prefix.extend([order for orders in middles for order in orders])
        states = []
        for tail in tails:
            states.append(prefix.extend([tail] * (len(_ORDERS) * len(prompts))))
            prefix.retract(len(tail))
        return self._probabilities(torch.stack(states, dim=1).flatten(0, 1))

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
        """Returns for each case [2 orders, D, 3] from states [cases x 2 x D, H]."""
        letters = torch.tensor(self._ending.letters, device=states.device)
        asked = letters.expand(len(states), -1)
        chances = log_probabilities(self._model, states, asked).exp()
        shown = chances.view(-1, len(_ORDERS), len(self.dimensions), 2)
        stored = torch.stack([shown[:, 0], shown[:, 1].flip(-1)], dim=1)
        return list(to_numpy(torch.cat([stored, stored.sum(dim=-1, keepdim=True)], dim=-1)))


@dataclass
class Prefix:
    """What a model has read of several rows, to be continued in more than one way.

    Attributes:
        backbone: the model without its LM head.
        cache: keys and values of what was read.
        mask: [rows, W], 1 where there is a token; shorter rows have gaps.
        following: [rows], the position of each row's next token.
        axes: 3 where positions are those of M-RoPE, else None.
    """

    backbone: Any
    cache: DynamicCache
    mask: Tensor
    following: Tensor
    axes: int | None

    @classmethod
    def of(cls, model: PreTrainedModel, features: BatchFeature, lengths: Tensor) -> Prefix:
        """Reads the first `lengths` tokens of each row; all images lie in them."""
        backbone = cast(Any, model).model
        ids = features["input_ids"]
        mask = _mask(lengths, int(lengths.max()))
        inputs = {
            name: tensor[:, : mask.shape[1]] if tensor.shape[:2] == ids.shape else tensor
            for name, tensor in features.items()
        }
        cache = DynamicCache(config=model.config.get_text_config())
        backbone(**{**inputs, "attention_mask": mask}, past_key_values=cache, use_cache=True)
        # M-RoPE counts an image by its longer side; the model has just noted by how much.
        rotates = "image_grid_thw" in features
        following = lengths + backbone.rope_deltas[:, 0] if rotates else lengths
        return cls(backbone, cache, mask, following, 3 if rotates else None)

    def repeat(self, times: int) -> None:
        """Puts each row `times` times in succession."""
        self.cache.batch_repeat_interleave(times)
        self.mask = self.mask.repeat_interleave(times, dim=0)
        self.following = self.following.repeat_interleave(times)

    def extend(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Reads on by the given tokens of each row and returns the last one's states, [rows, H]."""
        device = self.mask.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        width = int(lengths.max())
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        new = _mask(lengths, width)
        positions = self.following[:, None] + torch.arange(width, device=device)
        self.mask = torch.cat([self.mask, new], dim=1)
        states = self.backbone(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions if self.axes is None else positions.expand(self.axes, -1, -1),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        self.following = self.following + lengths
        return last_attended(states, new)

    def retract(self, tokens: int) -> None:
        """Forgets the last `tokens` tokens, which every row has had."""
        self.cache.crop(-tokens)
        self.mask = self.mask[:, :-tokens]
        self.following = self.following - tokens


def _not_a_pair(case: Case) -> Prompts[Asked]:
    digest = text_digest([])
    return Prompts(case, [], Asked([digest, digest], []), "not_a_pair")


def _mask(lengths: Tensor, width: int) -> Tensor:
    """Returns a mask [rows, width] whose first `lengths` places of each row are 1."""
    return (torch.arange(width, device=lengths.device) < lengths[:, None]).long()


def _first_difference(rows: Sequence[Sequence[int]]) -> int:
    """Returns the first place at which the rows are not all equal, or the shortest one's length."""
    for place, tokens in enumerate(zip(*rows, strict=False)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, rows))

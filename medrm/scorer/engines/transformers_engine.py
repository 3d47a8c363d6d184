"""Replies of a model in memory, by transformers: what requests of a case share is read once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    BatchFeature,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    ProcessorMixin,
)

from medrm.data.batched import batched
from medrm.models.backbone import in_precision, output_logits
from medrm.models.prefix_sharing.kv_cache import read_branches, shares_cache
from medrm.models.reward_model import without_adapter
from medrm.parsers.thinking import is_thinking_token
from medrm.schema import USAGE
from medrm.scorer.collator import Collator, Row
from medrm.scorer.engines.base import (
    Completion,
    Request,
    Sampling,
    call_seed,
    text_digest,
    thinking_opened,
)
from medrm.scorer.logprobs import turn_end
from medrm.scorer.runner import (
    BATCH_ROWS,
    LOOKAHEAD_PER_ROW,
    BatchRunner,
    PromptRows,
    model_settings,
)

Reply = tuple[int, list[int]]
"""How many tokens the prompt has, and the tokens that were written, the end included."""


class RequestPrompts(NamedTuple):
    """Successive requests about one case, beside the encoded rows.

    Attributes:
        requests: about the case.
        digests: of each request's prompt.
        encoded: token ids of the encoded row; none where every prompt is computed whole.
        orders: for each order, the token ids of its distinct prompts.
        prompt_index: for each request, the index of its prompt among those of all orders.
    """

    requests: list[Request]
    digests: list[str]
    encoded: list[int]
    orders: list[list[list[int]]]
    prompt_index: list[int]


class TransformersEngine:
    """Completes conversations with a model in memory, on any device.

    Temperature 0 takes the most probable token. Else the token is drawn by adding Gumbel noise to
    the logits (https://arxiv.org/abs/1611.01144, equation 1), from a generator of the call's own
    (`call_seed`). Both ignore the sampling settings that a checkpoint ships, such as penalties for
    repetition, which a JSON reply is full of. A reply depends on its own request alone; two tokens
    that are equally probable up to rounding may change places with the batch composition.

    Replies end with a token that the checkpoint or its tokenizer names as the end, or with the one
    that ends a turn in the chat template. Where the chat template itself opens the model's
    thinking, the text begins with that mark.

    Attributes:
        name: "transformers".
        lookahead: how many cases are computed together.

    Args:
        model: a stock model, or one with an adapter.
        processor: of the model.
        batch_rows: most requests computed at once.
        max_length: longest prompt that is read, in tokens; None: no limit.
        thinks: whether a thinking that the chat template opens is the model's to end; a judge that
            was trained on replies without any goes on with its verdict.
        deterministic: whether each request is computed by itself (`medrm.scorer.determinism`).
    """

    name = "transformers"

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processor: ProcessorMixin,
        batch_rows: int = BATCH_ROWS,
        *,
        max_length: int | None = None,
        thinks: bool = True,
        deterministic: bool = False,
    ) -> None:
        self._model = without_adapter(model)
        self._processor = processor
        self._deterministic = deterministic
        self._batch_rows = 1 if deterministic else batch_rows
        self.lookahead: int | None = None if deterministic else LOOKAHEAD_PER_ROW * batch_rows
        self._max_length = max_length
        self._shares = shares_cache(self._model) and not deterministic
        self._collator = Collator(processor, padding_side="right" if self._shares else "left")
        self._stops = stop_tokens(self._model, processor)
        self._opening = thinking_opened(processor) if thinks else ""
        self._dropped = {
            token_id
            for token_id, token in processor.tokenizer.added_tokens_decoder.items()
            if token.special and not is_thinking_token(token.content)
        }

    @property
    def settings(self) -> Mapping[str, Any]:
        """What besides the weights and the request could change a reply."""
        settings = model_settings(self._model, self._processor, self._shares, self._deterministic)
        return {**settings, "max_length": self._max_length}

    def plain(self, text: str) -> str:
        """Returns the text with control tokens of this tokenizer broken up."""
        return self._collator.plain_text(text)

    def rendered(self, request: Request) -> str:
        """Returns the prompt with image placeholders."""
        return self._collator.row(request.messages, request.case.images).text

    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yields one completion for each request, in order, a lookahead of cases at a time.

        Requests that share their beginning should follow one another.
        """
        runner: BatchRunner[list[Request], RequestPrompts, list[Reply]] = BatchRunner(
            self._collator,
            prompts=self._prompts,
            rows=len,
            read=partial(self._write, sampling),
            batch_rows=self._batch_rows,
            max_length=self._max_length,
            deterministic=self._model if self._deterministic else None,
            case=lambda group: group[0].case,
        )
        for output in runner.run(grouped(requests, self._batch_rows)):
            digests = output.prompts.detail.digests
            if output.values is None:
                for digest in digests:
                    yield Completion(None, None, output.state, output.reason, digest)
                continue
            # Decoded here, where no other thread uses the tokenizer.
            for reply, digest in zip(output.values, digests, strict=True):
                yield self._completion(*reply, digest)

    def _completion(self, prompt_length: int, tokens: list[int], digest: str) -> Completion:
        """Returns the reply of these tokens; of special ones only the marks of thinking stay."""
        ended = not self._stops.isdisjoint(tokens[-1:])
        written = tokens[:-1] if ended else tokens
        text = self._opening + self._processor.tokenizer.decode(
            [token for token in written if token not in self._dropped]
        )
        usage = dict(zip(USAGE, (prompt_length, len(tokens)), strict=True))
        finish_reason = "stop" if ended else "length"
        return Completion(text, finish_reason, "ok", prompt_digest=digest, usage=usage)

    def _prompts(self, group: list[Request]) -> PromptRows[RequestPrompts]:
        """Returns a row for each request, or the longest alone and the tokens of all prompts."""
        case = group[0].case
        rows = [self._collator.row(request.messages, case.images) for request in group]
        digests = [text_digest([row]) for row in rows]
        if not self._shares:
            return PromptRows(case, rows, RequestPrompts(group, digests, [], [], []))
        prompts = [(request.order, row.text) for request, row in zip(group, rows, strict=True)]
        distinct = sorted(dict.fromkeys(prompts))  # votes repeat their prompt
        ids = self._collator.token_ids([text for _, text in distinct])
        longest = max(range(len(ids)), key=lambda index: len(ids[index]))
        orders: dict[str, list[list[int]]] = {}
        for (order, _), prompt_ids in zip(distinct, ids, strict=True):
            orders.setdefault(order, []).append(prompt_ids)
        prompt_index = [distinct.index(prompt) for prompt in prompts]
        return PromptRows(
            case,
            [Row(distinct[longest][1], case.images)],
            RequestPrompts(group, digests, ids[longest], list(orders.values()), prompt_index),
        )

    def _write(
        self, sampling: Sampling, features: BatchFeature, prompts: list[PromptRows[RequestPrompts]]
    ) -> list[list[Reply]]:
        """Returns the replies to the requests of each group."""
        details = [prompt.detail for prompt in prompts]
        prompt_lengths = iter(self._prompt_lengths(features, details))
        seeds = [call_seed(request, sampling) for group in details for request in group.requests]
        features = features.to(self._model.device)
        write = self._write_shared if self._shares else self._write_separate
        replies = iter(write(features, details, Noise(seeds, sampling), sampling.max_new_tokens))
        return [
            [(next(prompt_lengths), next(replies)) for _ in detail.requests] for detail in details
        ]

    def _prompt_lengths(
        self, features: BatchFeature, details: list[RequestPrompts]
    ) -> Iterator[int]:
        """Yields the tokens of each request's prompt, image tokens included."""
        lengths = features["attention_mask"].sum(dim=1).tolist()
        if not self._shares:
            yield from lengths
            return
        for length, detail in zip(lengths, details, strict=True):
            prompts = [prompt for of_order in detail.orders for prompt in of_order]
            for index in detail.prompt_index:
                # Images take as many tokens in every prompt of a case.
                yield length - len(detail.encoded) + len(prompts[index])

    def _write_shared(
        self, features: BatchFeature, details: list[RequestPrompts], noise: Noise, most_tokens: int
    ) -> list[list[int]]:
        prefix, states = read_branches(
            self._model,
            features,
            [detail.encoded for detail in details],
            [detail.orders for detail in details],
        )
        # From one row for each distinct prompt to one for each request.
        prompt_rows, start = [], 0
        for detail in details:
            prompt_rows += [start + index for index in detail.prompt_index]
            start += sum(map(len, detail.orders))
        prefix.select(prompt_rows)
        states = states[prompt_rows]
        replies: list[list[int]] = [[] for _ in prompt_rows]
        # Of the replies; the rows of `states` are theirs.
        unfinished = list(range(len(prompt_rows)))
        for step in range(most_tokens):
            tokens = (
                noise.add(output_logits(self._model, states).float(), unfinished)
                .argmax(dim=-1)
                .tolist()
            )
            for row, token in zip(unfinished, tokens, strict=True):
                replies[row].append(token)
            going_on = [index for index, token in enumerate(tokens) if token not in self._stops]
            if not going_on or step + 1 == most_tokens:
                break
            if len(going_on) < len(unfinished):
                prefix.select(going_on)
                unfinished = [unfinished[index] for index in going_on]
            states = prefix.extend([replies[row][-1:] for row in unfinished])
        return replies

    def _write_separate(
        self, features: BatchFeature, details: list[RequestPrompts], noise: Noise, most_tokens: int
    ) -> list[list[int]]:
        generated = cast(Any, self._model).generate(
            **in_precision(self._model, features),
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                max_new_tokens=most_tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                eos_token_id=sorted(self._stops),
                pad_token_id=min(self._stops),
            ),
            logits_processor=LogitsProcessorList([noise]),
        )
        replies = []
        for row in generated[:, features["input_ids"].shape[1] :].tolist():
            ends = (number for number, token in enumerate(row, 1) if token in self._stops)
            replies.append(row[: next(ends, len(row))])
        return replies


class Noise(LogitsProcessor):
    """Turns logits into numbers whose largest names the token that is drawn.

    Args:
        seeds: of each row.
        sampling: its temperature; 0 leaves the logits as they are.
    """

    def __init__(self, seeds: Sequence[int], sampling: Sampling) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = sampling.temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the numbers for all rows, [rows, V]; transformers calls this at each step."""
        return self.add(scores, range(len(self._generators)))

    def add(self, logits: Tensor, rows: Sequence[int]) -> Tensor:
        """Returns the numbers [N, V] of these rows; each call advances their generators."""
        if self._temperature == 0:
            return logits
        # In double precision and on the host: a float32 can be 0 or 1, and devices draw otherwise.
        uniform = torch.stack(
            [
                torch.rand(logits.shape[1], generator=self._generators[row], dtype=torch.float64)
                for row in rows
            ]
        )
        gumbel = -(-uniform.log()).log()
        return logits / self._temperature + gumbel.to(logits)


def grouped(requests: Iterable[Request], limit: int) -> Iterator[list[Request]]:
    """Yields successive requests about the same case together, at most `limit` of them."""
    for _, about_case in groupby(requests, key=lambda request: request.case):
        yield from batched(about_case, limit)


def stop_tokens(model: PreTrainedModel, processor: ProcessorMixin) -> frozenset[int]:
    """Returns the tokens that end a reply.

    Checkpoints disagree on where they say so: in the generation config (one or several), in the
    tokenizer, or only in the chat template, by the control token behind an assistant's turn.
    """
    named = cast(Any, model).generation_config.eos_token_id
    stops = set(named if isinstance(named, list) else [named])
    stops |= {processor.tokenizer.eos_token_id, turn_end(processor).token}
    return frozenset(stops - {None})

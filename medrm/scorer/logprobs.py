"""Where an answer's tokens lie in a rendered conversation, and how probable tokens are to a model.

The LM head runs only where it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from medrm import chat, chat_template
from medrm.errors import ConfigError
from medrm.models.backbone import final_states, output_logits
from medrm.models.families import family_of
from medrm.models.prefix_sharing.attention import shared_prefix_states
from medrm.models.prefix_sharing.batch import SHARED_PREFIX
from medrm.schema import Case
from medrm.scorer.collator import Collator
from medrm.scorer.runner import PromptRows

_LOGITS_AT_ONCE = 1024
"""Positions whose logits over the whole vocabulary are held at a time."""


def token_positions(features: BatchFeature) -> list[Tensor]:
    """Returns for each row the positions of its tokens in order, counted through the whole batch.

    A row of a batch with shared prefixes is a prefix with one of its branches.

    Args:
        features: of rows, or with shared prefixes.
    """
    shared = features.get(SHARED_PREFIX)
    if shared is not None:
        return [torch.tensor(row) for row in shared.branch_rows]
    mask = features["attention_mask"]
    return [
        row_mask.nonzero()[:, 0] + row * mask.shape[1]
        for row, row_mask in enumerate(mask.cpu().unbind())
    ]


def flat_states(model: PreTrainedModel, features: BatchFeature) -> Tensor:
    """Returns the states after the final norm of all tokens, padding included, [tokens, H]."""
    if SHARED_PREFIX in features:
        return shared_prefix_states(model, **features)
    return final_states(model, **features, use_cache=False).flatten(0, 1)


def branch_ends(model: PreTrainedModel, features: BatchFeature) -> Tensor:
    """Returns the states at the last token of each branch, [branches, H].

    Args:
        model: a stock model.
        features: with shared prefixes.
    """
    last_tokens = torch.tensor([row[-1] for row in features[SHARED_PREFIX].branch_rows])
    return flat_states(model, features)[last_tokens]


def token_logprobs(model: PreTrainedModel, states: Tensor, tokens: Tensor) -> Tensor:
    """Returns log p(token | what the state has seen) in fp32, [N, C].

    Args:
        model: a stock model.
        states: [N, H].
        tokens: [N, C], the tokens asked about at each state.
    """
    return torch.cat(
        [
            log_softmax(output_logits(model, chunk).float(), dim=-1).gather(1, chunk_tokens)
            for chunk, chunk_tokens in zip(
                torch.split(states, _LOGITS_AT_ONCE),
                torch.split(tokens, _LOGITS_AT_ONCE),
                strict=True,
            )
        ]
    )


class Span(NamedTuple):
    """Where an answer's tokens lie in a row, counted from the row's end."""

    tokens: int
    after: int


class TurnEnd(NamedTuple):
    """How a model's turn ends.

    Attributes:
        after: what the chat template writes behind a reply.
        ending: the part of it up to the token that ends the turn; where the template writes none,
            the tokenizer's end token, on which generation stops.
        token: the one that ends the turn.
    """

    after: str
    ending: str
    token: int


def turn_end(processor: ProcessorMixin) -> TurnEnd:
    """Returns how a model's turn ends in the processor's chat template."""
    probe = chat_template.render(processor, chat.answer_messages("?", 0, "ANSWER"), "turn_end")
    after = probe.rpartition("ANSWER")[2]
    control = chat_template.control_tokens(processor).search(after)
    name = control[0] if control else processor.tokenizer.eos_token
    ending = after[: control.end()] if control else name
    return TurnEnd(after, ending, processor.tokenizer.convert_tokens_to_ids(name))


def rendered_reply(text: str, reply: str, suffix: str, plural: str) -> str:
    """Returns a reply as it stands before `suffix` in a rendered conversation.

    Args:
        text: of the conversation; some templates strip the text of a turn.
        reply: as it was given to the template.
        suffix: how the text ends.
        plural: what replies are called in the message.

    Raises:
        ConfigError: the chat template rewrites it.
    """
    for rendered in (reply, reply.strip()):
        if text.endswith(rendered + suffix):
            return rendered
    raise ConfigError(
        f"The chat template rewrites {plural}: {reply[:40]!r} is not what stands before "
        f"{suffix!r}. Use the chat template of the base model's own processor."
    )


class AnswerTokens:
    """Finds answers in rendered rows and reads their tokens' log-probabilities.

    A token belongs to an answer where it shares a character with it.

    Attributes:
        collator: of the rows.

    Args:
        processor: of the model.
        turn_ends: whether rows stop at the token that ends the turn, which then counts as the
            answer's last one, as in training. Else an empty answer is as likely as an immediate
            end.
    """

    def __init__(self, processor: ProcessorMixin, turn_ends: bool) -> None:
        self.collator = Collator(processor, "turn_end")
        self._end = turn_end(processor)
        self._turn_ends = turn_ends

    def logprobs(
        self,
        model: PreTrainedModel,
        features: BatchFeature,
        prompts: Sequence[PromptRows[list[Span]]],
    ) -> tuple[Tensor, ...]:
        """Returns log p of each answer's tokens given all before them, one tensor for each row.

        Args:
            model: a stock model.
            features: of rows, or with shared prefixes; on the model's device.
            prompts: as `prompts` gives them.
        """
        spans = [span for case_prompts in prompts for span in case_prompts.detail]
        if not family_of(model.config).parts.causal:
            raise ConfigError(
                f"The tokens of {type(model).__name__} see those behind them, so those of an "
                "answer have no likelihood. Leave the readout, or zero_shot_likelihood, out."
            )
        states, ids = flat_states(model, features), features["input_ids"].flatten()
        before, predicted = [], []
        for span, positions in zip(spans, token_positions(features), strict=True):
            stop = len(positions) - span.after
            # The state before a token predicts it.
            before.append(positions[stop - span.tokens - 1 : stop - 1])
            predicted.append(positions[stop - span.tokens : stop])
        state_index, token_index = (
            torch.cat(indices).to(states.device) for indices in (before, predicted)
        )
        logprobs = token_logprobs(model, states[state_index], ids[token_index][:, None])
        return torch.split(logprobs[:, 0], [span.tokens for span in spans])

    def prompts(self, case: Case) -> PromptRows[list[Span]]:
        """Returns the rows of a case and where the answers' tokens lie in them.

        Raises:
            ConfigError: the chat template rewrites answers.
        """
        rows = self.collator.answer_rows(case)
        if self._turn_ends:
            rows = [
                row._replace(text=row.text.removesuffix(self._end.after) + self._end.ending)
                for row in rows
            ]
        _, answers = self.collator.plain(case)
        spans = [self._span(row.text, answer) for row, answer in zip(rows, answers, strict=True)]
        return PromptRows(case, rows, spans)

    def _span(self, text: str, answer: str) -> Span:
        """Returns the answer's tokens.

        Counted from the end, where no image placeholder will grow into many tokens.
        """
        suffix = self._end.ending if self._turn_ends else self._end.after
        end = len(text) - len(suffix)
        start = end - len(rendered_reply(text, answer, suffix, "answers"))
        if self._turn_ends:
            end = len(text)
        offsets = self.collator.character_spans(text)
        indices = [
            index
            for index, (first, last) in enumerate(offsets)
            # Of an empty answer: the token that begins where it would stand.
            if (first < end and last > start) or (start == end == first < last)
        ]
        return Span(len(indices), len(offsets) - 1 - indices[-1])

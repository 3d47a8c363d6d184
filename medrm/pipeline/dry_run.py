"""What an evaluation would ask: calls, tokens and cost. No model is loaded and nothing is written.

The calls are those that the readout would make. A prompt is counted by the model's own processor
where its files are at hand, image tokens included; else by its characters, and images are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from medrm.chat import LETTER_PROMPT, JudgePrompt
from medrm.chat_template import RewardTemplate
from medrm.config.options import ModelOptions
from medrm.data.images import ImageFacts, examine
from medrm.errors import ConfigError
from medrm.evaluation.benchmark import Benchmark
from medrm.models.processors import load_processor
from medrm.pipeline.reading import Reading, reading_of
from medrm.pipeline.requests import EvalRequest, Prices
from medrm.readouts import READOUTS
from medrm.schema import USAGE, Case
from medrm.scorer.collator import Collator
from medrm.scorer.engines import ENGINES
from medrm.scorer.engines.base import Completion, Request, Sampling
from medrm.scorer.mock_judges import PREFIX
from medrm.scorer.open import ScorerOptions, judge_on
from medrm.scorer.specs import (
    ScorerPlan,
    files_at_hand,
    plan_readout,
    plan_scorer,
    prompt_of,
)

logger = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 4
"""Of English text in most vocabularies, where a prompt cannot be counted exactly."""


@dataclass(frozen=True)
class CallEstimate:
    """What an evaluation would ask.

    Attributes:
        calls: of the model.
        prompt_tokens: of all prompts.
        reply_tokens: the most that all replies can have.
        exact: whether the model's own processor counted the prompts.
        uncounted_images: sent, and not in `prompt_tokens`.
    """

    calls: int
    prompt_tokens: int
    reply_tokens: int
    exact: bool
    uncounted_images: int

    def cost(self, prices: Prices) -> float | None:
        """Returns what the tokens cost with replies of full length; None without a price."""
        stated = (prices.prompt, prices.completion)
        if stated == (None, None):
            return None
        counts = (self.prompt_tokens, self.reply_tokens)
        return sum(n * (price or 0) for n, price in zip(counts, stated, strict=True)) / 1e6

    def lines(self, prices: Prices) -> list[str]:
        """Returns what is to be said, one line for each number."""
        about = "" if self.exact else f"about, at {CHARACTERS_PER_TOKEN} characters a token; "
        images = f"{about}{self.uncounted_images:,} images are not counted"
        note = f" ({images})" if self.uncounted_images else f" ({about[:-2]})" if about else ""
        lines = [
            f"calls: {self.calls:,}",
            f"prompt tokens: {self.prompt_tokens:,}{note}",
            f"reply tokens: at most {self.reply_tokens:,}",
        ]
        cost = self.cost(prices)
        if cost is not None:
            without = ", without the images" if self.uncounted_images else ""
            bound = "at most" if self.exact else "about"
            lines.append(f"cost: {bound} {cost:,.2f} at the prices given{without}")
        return lines


def estimate(request: EvalRequest, benchmark: Benchmark) -> CallEstimate:
    """Returns what a model would be asked about a benchmark.

    Args:
        request: which model, and how it is asked.
        benchmark: all of its cases are asked about.

    Raises:
        ConfigError: a readout or an option is not for the model, or the model that `like` names is
            not here.
    """
    request = _with_like_at_hand(request)
    reading = reading_of(request, request.asked_about(benchmark.dimensions))
    plan = _plan(request, reading)
    collator = _collator_at_hand(request.model, plan, reading.options)
    return asked(plan, collator, benchmark)


def asked(
    plan: ScorerPlan,
    collator: Collator | None,
    benchmark: Benchmark,
    facts: Mapping[str, ImageFacts] | None = None,
) -> CallEstimate:
    """Returns what a model that is read by a plan would be asked about a benchmark.

    Args:
        plan: how it is read.
        collator: of its processor; None: it is not here.
        benchmark: all of its cases are asked about.
        facts: of their images; None: they are looked at.
    """
    counter = TokenCounter(collator, benchmark, facts)
    if READOUTS[plan.readout].reads == "reward_model" or plan.readout == "likelihood":
        return counter.rows(benchmark.cases)
    prompt: JudgePrompt = LETTER_PROMPT
    if READOUTS[plan.readout].reads == "judge" and plan.judge is not None:
        prompt = prompt_of(plan.judge)
    longest = 0
    if READOUTS[plan.readout].writes == "text" and plan.judge is not None:
        longest = plan.judge.max_new_tokens
    votes = plan.judge.votes if plan.judge is not None and plan.readout == "votes" else 1
    sampling = Sampling(max_new_tokens=longest)
    judge = judge_on(counter, prompt, plan.dimensions, votes=votes, sampling=sampling)
    usages = [response.usage or {} for response in judge.respond(benchmark.cases)]
    totals = [sum(usage[name] for usage in usages) for name in USAGE]
    return counter.estimate(len(usages), *totals)


def _plan(request: EvalRequest, reading: Reading) -> ScorerPlan:
    """Returns how the model would be read; nothing is downloaded to find out."""
    options: dict[str, Any] = {"dimensions": reading.dimensions, "judge": reading.judge}
    revision = reading.options.revision
    is_remote = not request.model.startswith(PREFIX) and not ENGINES[request.engine].holds_weights
    if is_remote and files_at_hand(request.model, revision) is None:
        return plan_readout(None, reading.readout, **options)
    return plan_scorer(request.model, reading.readout, request.engine, revision=revision, **options)


def _with_like_at_hand(request: EvalRequest) -> EvalRequest:
    """Returns the request with the folder of the model that `like` names; nothing is downloaded."""
    if request.like is None:
        return request
    folder = files_at_hand(request.like)
    if folder is None:
        raise ConfigError(
            f"--like {request.like} is not on this machine, and a dry run downloads nothing. Give "
            "the folder of a saved model, or leave --like out."
        )
    return replace(request, like=str(folder))


def _collator_at_hand(model: str, plan: ScorerPlan, options: ScorerOptions) -> Collator | None:
    """Returns what counts a model's prompts; None where its processor's files are not here."""
    if model.startswith(PREFIX):
        return None
    folder = plan.folder or options.processor or files_at_hand(model, options.revision)
    template: RewardTemplate = ModelOptions.reward_template
    if plan.contract is not None:
        template = plan.contract.reward_template
    if folder is None:
        return None
    try:
        processor = load_processor(
            str(folder),
            min_pixels=options.min_pixels,
            max_pixels=options.max_pixels,
            trust_remote_code=options.trust_remote_code,
        )
    except ConfigError as error:
        logger.warning("%s: prompts are counted by their characters: %s", model, error)
        return None
    return Collator(processor, template)


def print_dry_run(request: EvalRequest, benchmark: Benchmark) -> None:
    """Logs what an evaluation would ask."""
    counts = estimate(request, benchmark)
    title = f"{request.model} on {benchmark.name}: {len(benchmark.cases):,} cases (dry run)"
    logger.info("%s", "\n".join([title, *counts.lines(request.prices)]))


class TokenCounter:
    """An engine that counts the tokens of each call and writes nothing.

    Attributes:
        name: "counter".
        lookahead: None.
        settings: none.

    Args:
        collator: of the model's processor; None: it is not here.
        benchmark: whose images are counted.
        facts: of them; None: they are looked at.
    """

    def __init__(
        self,
        collator: Collator | None,
        benchmark: Benchmark,
        facts: Mapping[str, ImageFacts] | None = None,
    ) -> None:
        self.name = "counter"
        self.lookahead: int | None = None
        self.settings: Mapping[str, Any] = {}
        self._collator = collator
        self._facts: Mapping[str, ImageFacts] = facts or {}
        if collator is not None and facts is None:
            self._facts = examine(benchmark.cases)
        self._uncounted_images = 0

    def plain(self, text: str) -> str:
        """Returns the text as the model would be given it."""
        return text if self._collator is None else self._collator.plain_text(text)

    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yields an empty reply to each request, with the tokens that it could have cost."""
        for request in requests:
            if self._collator is None:
                texts = [block.get("text", "") for m in request.messages for block in m["content"]]
                tokens = _about(sum(map(len, texts)))
                self._uncounted_images += len(request.case.images)
            else:
                text = self._collator.row(request.messages, request.case.images).text
                (ids,) = self._collator.token_ids([text])
                tokens = len(ids) + self._image_tokens(self._collator, request.case)
            usage = dict(zip(USAGE, (tokens, sampling.max_new_tokens), strict=True))
            yield Completion("", "stop", "ok", usage=usage)

    def rows(self, cases: Iterable[Case]) -> CallEstimate:
        """Returns what a model reads that gives each answer a number: a row for each answer."""
        tokens = calls = 0
        for case in cases:
            calls += 1
            if self._collator is None:
                lengths = [_about(len(case.asked) + len(answer)) for answer in case.answers]
                self._uncounted_images += len(case.images) * len(case.answers)
            else:
                texts = [row.text for row in self._collator.answer_rows(case)]
                of_images = self._image_tokens(self._collator, case)
                lengths = [len(ids) + of_images for ids in self._collator.token_ids(texts)]
            tokens += sum(lengths)
        return self.estimate(calls, tokens, 0)

    def estimate(self, calls: int, prompt_tokens: int, reply_tokens: int) -> CallEstimate:
        """Returns the counts, with what is known of how they were taken."""
        exact = self._collator is not None
        return CallEstimate(calls, prompt_tokens, reply_tokens, exact, self._uncounted_images)

    def _image_tokens(self, collator: Collator, case: Case) -> int:
        facts = [self._facts[ref.digest] for ref in case.images if ref.digest in self._facts]
        sizes = tuple((fact.width, fact.height) for fact in facts if fact.problem is None)
        return collator.image_tokens(sizes) if sizes else 0


def _about(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)

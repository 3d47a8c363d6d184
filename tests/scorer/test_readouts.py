"""The base model's likelihood and verdict against their definitions, token by token."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from presentations import by_order
from scorer.cases import broken_image, chances, make_case, stored_image
from tiny import SOME_FAMILIES, make_tiny
from torch.nn.functional import log_softmax

from medrm import chat, chat_template
from medrm.errors import ConfigError
from medrm.models.families import FAMILIES
from medrm.models.prefix_sharing import kv_cache
from medrm.schema import Case
from medrm.scorer.collator import Collator, Row
from medrm.scorer.readouts.answer_rewards import Likelihood
from medrm.scorer.readouts.pair_judge import pair_of
from medrm.scorer.readouts.probability_readout import VerdictProbability

DIMENSIONS = ("accuracy", "creativity", "overall")


def mixed_cases() -> list[Case]:
    return [
        make_case(0),
        make_case(1, sizes=((28, 28),)),
        make_case(2, sizes=()),
        make_case(3, sizes=((28, 28), (90, 60))),
        make_case(4, sizes=()),
        dataclasses.replace(make_case(5), answers=("the same", "the same")),
    ]


def log_probabilities(model: Any, processor: Any, case: Case, text: str) -> tuple[Any, Any]:
    """Returns the ids of one row and the next tokens' log-probabilities by the whole model."""
    batch = Collator(processor).encode([Row(text, case.images)])
    with torch.inference_mode():
        logits = model(**batch, use_cache=False).logits[0]
    return batch["input_ids"][0].tolist(), log_softmax(logits.float(), dim=-1)


def mean_likelihood(model: Any, processor: Any, case: Case, answer: str) -> float:
    """The definition, with the prompt's own tokens cut off the front and the turn's end behind."""
    messages = chat.answer_messages(case.question, len(case.images), answer)
    ids, found = log_probabilities(
        model, processor, case, chat_template.render(processor, messages, "turn_end")
    )
    opened = chat_template.render(processor, messages[:1], "generation_prompt")
    prompt = Collator(processor).encode([Row(opened, case.images)])["input_ids"][0].tolist()
    assert ids[: len(prompt)] == prompt
    stop = len(ids) - 2  # the turn's end is its token and a new line in all tiny templates
    places = range(len(prompt), stop)
    assert processor.tokenizer.decode(ids[len(prompt) : stop]) == answer
    return float(np.mean([found[place - 1, ids[place]].item() for place in places]))


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_likelihood_is_the_mean_over_the_answers_own_tokens(family: str) -> None:
    model, processor = make_tiny(family)
    cases = mixed_cases()
    for scored in by_order(Likelihood(model, processor, dimensions=DIMENSIONS), cases):
        expected = [
            mean_likelihood(model, processor, scored.case, answer) for answer in scored.case.answers
        ]
        assert scored.scores.shape == (2, 3)
        assert np.abs(scored.scores - np.array(expected)[:, None]).max() <= 1e-5
        (response,) = scored.responses
        assert (response.text, response.probabilities) == (None, None)
        assert scored.order == "forward"


def test_likelihood_takes_any_number_of_answers_and_an_empty_one() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    case = dataclasses.replace(make_case(0), answers=("", "one", " two "))
    (scored,) = by_order(Likelihood(model, processor), [case])
    assert scored.scores.shape == (3, 6)
    assert np.isfinite(scored.scores).all()
    messages = chat.answer_messages(case.question, 1, "")
    ids, found = log_probabilities(
        model, processor, case, chat_template.render(processor, messages, "turn_end")
    )
    assert scored.scores[0, 0] == pytest.approx(found[-3, ids[-2]].item(), abs=1e-5)


def test_tokens_that_see_what_follows_have_no_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = make_tiny("llava", shared_prefix=False)
    monkeypatch.setitem(FAMILIES, "llava", {"causal": False})
    with pytest.raises(ConfigError, match="have no likelihood"):
        by_order(Likelihood(model, processor), [make_case(0)])


def test_template_that_trims_answers_is_followed() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    spaced = dataclasses.replace(make_case(0), answers=("  one lungs ", "two"))
    trimmed = dataclasses.replace(spaced, case_id="trimmed", answers=("one lungs", "two"))
    processor.chat_template = processor.chat_template.replace("c['text']", "c['text'] | trim")
    first, second = by_order(Likelihood(model, processor), [spaced, trimmed])
    assert np.array_equal(first.scores, second.scores)
    processor.chat_template = processor.chat_template.replace("| trim", "| upper")
    with pytest.raises(ConfigError, match="rewrites answers"):
        by_order(Likelihood(model, processor), [spaced])


def verdict(model: Any, processor: Any, case: Case, shown: tuple[str, str], name: str) -> Any:
    """P("A") and P("B") after the generation prompt, by the whole model."""
    messages = chat.LETTER_PROMPT.messages(case.question, len(case.images), shown, (name,))
    _, found = log_probabilities(
        model, processor, case, chat_template.render(processor, messages, "generation_prompt")
    )
    letters = [processor.tokenizer(letter)["input_ids"][-1] for letter in "AB"]
    return found[-1, letters].exp().numpy()


@pytest.mark.parametrize("family", SOME_FAMILIES)
@pytest.mark.parametrize("shared_prefix", [True, False])
def test_verdict_is_the_probability_after_the_prompt(family: str, shared_prefix: bool) -> None:
    model, processor = make_tiny(family, shared_prefix=shared_prefix)
    cases = mixed_cases()
    scorer = VerdictProbability(model, processor, dimensions=DIMENSIONS)
    scored = by_order(scorer, cases)
    assert [(one.case.case_id, one.order) for one in scored] == [
        (case.case_id, order) for case in cases for order in ("forward", "reversed")
    ]
    for one in scored:
        first, second = one.case.answers
        shown = (first, second) if one.order == "forward" else (second, first)
        for column, name in enumerate(DIMENSIONS):
            letters = verdict(model, processor, one.case, shown, name)
            stored = letters if one.order == "forward" else letters[::-1]
            found = chances(one)[column]
            assert np.abs(found[:2] - stored).max() <= 1e-5 * stored.max()
            assert found[2] == pytest.approx(stored.sum(), rel=1e-5)
            assert found[:2].min() > 1e-5


def test_reply_follows_the_template_and_not_the_generation_prompt() -> None:
    """LLaVA-1.5's prompt ends in `ASSISTANT:`, its replies begin with a space."""
    model, processor = make_tiny("llava")
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] + ' ' }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    case = make_case(0)
    messages = chat.LETTER_PROMPT.messages(case.question, 1, case.answers, ("overall",))
    text = chat_template.render(processor, chat.with_reply(messages, "A"), "turn_end")
    ids, found = log_probabilities(model, processor, case, text)
    letters = [processor.tokenizer(letter)["input_ids"][-1] for letter in (" A", " B")]
    place = len(ids) - ids[::-1].index(letters[0]) - 1
    assert processor.tokenizer.decode(ids[place - 1 : place + 1]) == ": A"
    expected = found[place - 1, letters].exp().numpy()
    forward, _ = by_order(VerdictProbability(model, processor, dimensions=("overall",)), [case])
    assert np.abs(chances(forward)[0, :2] - expected).max() <= 1e-6
    (scored,) = by_order(Likelihood(model, processor), [case])
    messages = chat.answer_messages(case.question, 1, case.answers[0])
    ids, found = log_probabilities(
        model, processor, case, chat_template.render(processor, messages, "turn_end")
    )
    answer = len(processor.tokenizer(" " + case.answers[0])["input_ids"])
    places = range(len(ids) - answer, len(ids) - 1)
    values = [found[place - 1, ids[place]].item() for place in places]
    assert scored.scores[0, 0] == pytest.approx(np.mean(values), abs=1e-5)


@pytest.mark.parametrize("family", ["gemma3", "mllama"])
def test_unshared_families_need_it(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = make_tiny(family)
    whole = [chances(one) for one in by_order(VerdictProbability(model, processor), [make_case(0)])]
    assert not kv_cache.shares_cache(model)
    monkeypatch.setattr(kv_cache, "cache_problem", lambda config: None)
    sharing = VerdictProbability(model, processor)
    try:
        shared = [chances(one) for one in by_order(sharing, [make_case(0)])]
    except RuntimeError:
        return  # a sliding cache refuses to forget
    assert np.abs(np.array(whole) - np.array(shared)).max() > 1e-5 * np.max(whole)


@pytest.mark.parametrize("scorer", [Likelihood, VerdictProbability])
def test_company_changes_nothing(scorer: Any) -> None:
    model, processor = make_tiny("llava_onevision")
    cases = mixed_cases()

    def read(rows: int) -> list[np.ndarray]:
        found = by_order(scorer(model, processor, batch_rows=rows), cases)
        return [chances(one) if one.scores is None else one.scores for one in found]

    for alone, together in zip(read(1), read(32), strict=True):
        assert np.abs(alone - together).max() <= 1e-5


def bad_cases() -> list[Case]:
    """Readable, too long for 400 tokens, with a broken image, readable."""
    long = dataclasses.replace(make_case(9), answers=("short", "lungs " * 600))
    broken = dataclasses.replace(make_case(8), images=(stored_image(1), broken_image()))
    return [make_case(0), long, broken, make_case(1)]


def test_bad_cases_keep_their_place_and_reason() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    cases = bad_cases()
    scored = by_order(Likelihood(model, processor, max_length=400), cases)
    assert [one.case for one in scored] == cases
    assert [one.reason for one in scored] == [None, "too_long", "bad_image", None]
    assert all((one.scores is None) == bool(one.reason) for one in scored)


def test_calls_that_were_not_made_say_why() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    cases = bad_cases()
    scored = by_order(VerdictProbability(model, processor, max_length=400), cases)
    forward = [one for one in scored if one.order == "forward"]
    assert [one.case for one in forward] == cases
    states = ["ok", "too_long", "bad_image", "ok"]
    assert [[call.state for call in one.responses] for one in forward] == [
        [state] * 6 for state in states
    ]
    calls = [call for one in scored for call in one.responses]
    assert all((call.probabilities is None) == bool(call.reason) for call in calls)
    assert len({call.prompt_digest for call in calls}) == len(scored)


def test_of_more_than_two_answers_every_two_are_compared_by_verdict() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    case = make_case(0, answers=3)
    judge = VerdictProbability(model, processor)
    forward, backward = by_order(judge, [case])
    assert (forward.case, backward.order) == (case, "reversed")
    assert [call.pair for call in forward.responses[::6]] == [(0, 1), (0, 2), (1, 2)]
    (alone, _) = by_order(judge, [pair_of(case, (0, 2))])
    for one, other in zip(forward.responses[6:12], alone.responses, strict=True):
        (mine, theirs) = ((call.probabilities or {}) for call in (one, other))
        assert mine.keys() == theirs.keys()
        for name, chances_of in mine.items():
            assert chances_of == pytest.approx(theirs[name], abs=1e-5)


def test_one_dimension_and_equal_answers() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    case = dataclasses.replace(make_case(0), answers=("same", "same"))
    forward, backward = by_order(
        VerdictProbability(model, processor, dimensions=("overall",)), [case]
    )
    assert chances(forward).shape == (1, 3)
    swapped = chances(backward)[:, [1, 0, 2]]
    assert np.abs(chances(forward) - swapped).max() <= 1e-6

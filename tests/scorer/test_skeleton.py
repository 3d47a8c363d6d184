"""The forced skeleton against its definition: whole replies through the stock model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from presentations import by_order
from scorer.cases import broken_image, chances, make_case, stored_image
from tiny import SOME_FAMILIES, make_tiny

from medrm import chat, chat_template
from medrm.chat import PROMPTS, JudgePrompt
from medrm.config.options import AdapterOptions
from medrm.errors import ConfigError, DataError
from medrm.models.trainable import add_adapter
from medrm.schema import Case
from medrm.scorer.collator import Collator, Row
from medrm.scorer.readouts import probability_readout as skeleton_module
from medrm.scorer.readouts.probability_readout import ConstrainedJson

DIMENSIONS = ("accuracy", "creativity", "overall")
JSON, EACH = PROMPTS["json"], PROMPTS["json_per_dimension"]


def mixed_cases() -> list[Case]:
    """One image, another size, none, two, the same answer twice."""
    return [
        make_case(0),
        make_case(1, sizes=((28, 28),)),
        make_case(2, sizes=()),
        make_case(3, sizes=((28, 28), (90, 60))),
        dataclasses.replace(make_case(5, sizes=()), answers=("the same", "the same")),
    ]


def reply_chances(
    model: Any, processor: Any, case: Case, messages: list[Any], prompt: JudgePrompt, names: Any
) -> tuple[np.ndarray, str]:
    """Returns P("A") and P("B") of each letter, [D, 2], and the letters, by whole passes."""
    letters, found = "", []
    for _ in names:
        rows = []
        for own in "AB":
            reply = prompt.verdict(
                dict(zip(names, (letters + own).ljust(len(names), "A"), strict=True))
            )
            text = chat_template.render(
                processor, chat.with_reply(messages, reply.text), "turn_end"
            )
            batch = Collator(processor).encode([Row(text, case.images)])
            with torch.inference_mode():
                logits = model(**batch, use_cache=False).logits[0]
            rows.append((batch["input_ids"][0].tolist(), logits.float().softmax(dim=-1)))
        (first, after), (second, _) = rows
        differs = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        pair = after[differs - 1, [first[differs], second[differs]]].tolist()
        found.append(pair)
        letters += "A" if pair[0] >= pair[1] else "B"
    return np.array(found), letters


def expected(model: Any, processor: Any, case: Case, order: str, prompt: JudgePrompt) -> Any:
    """Returns the definition's probabilities in the stored frame, [D, 3], and the letters."""
    first, second = case.answers if order == "forward" else case.answers[::-1]
    values, letters = [], ""
    for names in [(name,) for name in DIMENSIONS] if prompt.per_dimension else [DIMENSIONS]:
        messages = prompt.messages(case.question, len(case.images), (first, second), names)
        pairs, chosen = reply_chances(model, processor, case, messages, prompt, names)
        values.append(pairs if order == "forward" else pairs[:, ::-1])
        letters += chosen
    stored = np.concatenate(values)
    return np.concatenate([stored, stored.sum(axis=1, keepdims=True)], axis=1), letters


def check(model: Any, processor: Any, prompt: JudgePrompt, **options: Any) -> set[str]:
    """Compares all mixed cases and returns the letters that were chosen."""
    cases = mixed_cases()
    judge = ConstrainedJson(model, processor, prompt, dimensions=DIMENSIONS, **options)
    scored = by_order(judge, cases)
    assert [(one.case.case_id, one.order) for one in scored] == [
        (case.case_id, order) for case in cases for order in ("forward", "reversed")
    ]
    chosen = set()
    for one in scored:
        values, letters = expected(model, processor, one.case, one.order, prompt)
        assert np.abs(chances(one) - values).max() <= 1e-6
        assert np.abs(chances(one) / values - 1).max() <= 1e-4
        chosen.add(letters)
    return chosen


@pytest.mark.parametrize("prompt", [JSON, EACH], ids=["all", "each"])
@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_probabilities_are_those_of_whole_replies(family: str, prompt: JudgePrompt) -> None:
    check(*make_tiny(family), prompt)


def test_letters_before_are_the_chosen_ones() -> None:
    """With larger weights the chosen letters differ from case to case."""
    for shared_prefix in (True, False):
        model, processor = make_tiny("qwen2_5_vl", seed=1, shared_prefix=shared_prefix)
        for parameter in model.model.language_model.layers.parameters():
            parameter.data *= 12 if parameter.ndim == 2 else 1
        letters = check(model, processor, JSON)
        assert len(letters) > 1, letters
        assert any("B" in chosen[:-1] for chosen in letters)


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_letters_that_are_no_tokens_of_their_own(shared_prefix: bool) -> None:
    """One tokenizer joins quotes and letters in two ways."""
    model, processor = make_tiny("qwen2_5_vl", seed=1, shared_prefix=shared_prefix)
    processor.tokenizer.add_tokens(['"A"', 'B",'])
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    assert '"A"' in processor.tokenizer.tokenize('{"accuracy": "A", "overall": "B"}')
    check(model, processor, JSON)


def test_template_that_opens_a_reply_in_its_own_way() -> None:
    """LLaVA-1.5's prompt ends in `ASSISTANT:`, its replies begin with a space and never end."""
    model, processor = make_tiny("llava")
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] + ' ' }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    check(model, processor, EACH)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "mllama"])
def test_adapter_is_read_with_its_model(family: str) -> None:
    stock, processor = make_tiny(family)
    without = list(map(chances, by_order(ConstrainedJson(stock, processor, EACH), [make_case(0)])))
    model = add_adapter(stock, AdapterOptions(lora_r=4)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.3
    check(model, processor, EACH)
    adapted = list(map(chances, by_order(ConstrainedJson(model, processor, EACH), [make_case(0)])))
    assert np.abs(np.array(without) - np.array(adapted)).max() > 1e-5


def test_a_tokenizer_that_joins_two_letters_is_refused() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    processor.tokenizer.add_tokens([f'"{a}", "overall": "{b}"' for a in "AB" for b in "AB"])
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    with pytest.raises(ConfigError, match="joins two letters"):
        ConstrainedJson(model, processor, JSON, dimensions=("accuracy", "overall"))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision", "gemma3", "mllama"])
def test_company_changes_nothing(family: str) -> None:
    model, processor = make_tiny(family)

    def read(rows: int) -> list[np.ndarray]:
        return [
            chances(one)
            for one in by_order(
                ConstrainedJson(model, processor, EACH, batch_rows=rows), mixed_cases()
            )
        ]

    for alone, together in zip(read(1), read(64), strict=True):
        assert np.abs(alone - together).max() <= 1e-6


def test_calls_follow_the_prompt() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    case = make_case(0)
    forward, backward = by_order(
        ConstrainedJson(model, processor, JSON, dimensions=DIMENSIONS), [case]
    )
    (call,) = forward.responses
    assert (call.dimension, call.readout, call.vote, call.text) == (None, "skeleton", 0, None)
    assert list(call.probabilities or {}) == list(DIMENSIONS)
    assert call.prompt_digest != backward.responses[0].prompt_digest
    forward, _ = by_order(ConstrainedJson(model, processor, EACH, dimensions=DIMENSIONS), [case])
    assert [one.dimension for one in forward.responses] == list(DIMENSIONS)
    assert [list(one.probabilities or {}) for one in forward.responses] == [[d] for d in DIMENSIONS]
    assert len({one.prompt_digest for one in forward.responses}) == 3


@pytest.mark.parametrize("prompt", [JSON, EACH], ids=["all", "each"])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_calls_that_were_not_made_say_why(family: str, prompt: JudgePrompt) -> None:
    model, processor = make_tiny(family)
    long = dataclasses.replace(make_case(9), answers=("short", "lungs " * 900))
    broken = dataclasses.replace(make_case(8), images=(stored_image(1), broken_image()))
    cases = [make_case(0), long, broken, make_case(2)]
    scored = by_order(ConstrainedJson(model, processor, prompt, max_length=1000), cases)
    states = ["ok", "too_long", "bad_image", "ok"]
    calls = len(prompt.dimensions_per_call(skeleton_module.DIMENSIONS))
    assert [[call.state for call in one.responses] for one in scored] == [
        [state] * calls for state in states for _ in range(2)
    ]
    made = [call for one in scored for call in one.responses]
    assert all((call.probabilities is None) == (call.state != "ok") for call in made)


def test_control_tokens_stay_words() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    case = dataclasses.replace(make_case(0), answers=("<|im_end|>", "<|image_pad|>"))
    scored = by_order(ConstrainedJson(model, processor, JSON), [case])
    assert all(call.state == "ok" for one in scored for call in one.responses)


def test_compare_asks_for_agreement() -> None:
    model, processor = make_tiny("qwen2_5_vl", seed=1)
    for parameter in model.model.language_model.layers.parameters():
        parameter.data *= 12 if parameter.ndim == 2 else 1
    judge = ConstrainedJson(model, processor, EACH)
    choices = set()
    for case in mixed_cases():
        forward, backward = map(chances, by_order(judge, [case]))
        verdicts = judge.compare(case.images, case.question, case.answers)
        for row, verdict in enumerate(verdicts.values()):
            both = forward[row, :2].argmax(), backward[row, :2].argmax()
            disagree = both[0] != both[1]
            assert verdict.outcome == ("unread" if disagree else "AB"[both[0]])
            assert verdict.reason == ("orders_disagree" if disagree else None)
            share = np.mean([order[row, 0] / order[row, 2] for order in (forward, backward)])
            assert verdict.probability_a == pytest.approx(share, abs=1e-5)
            choices.add(verdict.outcome)
    assert choices == {"A", "B", "unread"}
    with pytest.raises(DataError, match="compares two"):
        judge.compare([], "What?", ["one"])
    with pytest.raises(DataError, match="too_long"):
        ConstrainedJson(model, processor, EACH, max_length=9).compare([], "What?", ["one", "two"])


def test_no_mass_on_either_answer_is_no_verdict() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    other = processor.tokenizer(" lungs")["input_ids"][-1]
    model.lm_head.register_forward_hook(
        lambda _module, _inputs, logits: logits.index_fill(-1, torch.tensor([other]), 1e6)
    )
    verdicts = ConstrainedJson(model, processor, EACH).compare([], "What?", ["one", "two"])
    assert {(each.outcome, each.reason) for each in verdicts.values()} == {("unread", "no_mass")}


def test_prompts_that_no_skeleton_fits() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    with pytest.raises(ConfigError, match="at most 12 dimensions"):
        ConstrainedJson(model, processor, JSON, dimensions=[f"d{place}" for place in range(13)])
    with pytest.raises(ConfigError, match="reasons"):
        ConstrainedJson(model, processor, PROMPTS["rationale_json"])

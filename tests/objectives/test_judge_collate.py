"""The batches of judges: scoring's tokens, and targets that are the reply and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from judging import DIMENSIONS, FIRST, TIE, judged
from tiny import TINY_FAMILIES, make_tiny
from torch import Tensor

from medrm import chat, chat_template
from medrm.chat import PROMPTS
from medrm.errors import ConfigError
from medrm.objectives.judge.judge_collator import (
    IGNORED,
    ConversationRenderer,
    preferred,
    supervised,
)
from medrm.objectives.judge.judge_examples import JudgeExample, TargetReply, judge_examples
from medrm.scorer.collator import Collator, Row
from medrm.scorer.mock_judges import MockEngine
from medrm.scorer.readouts.pair_judge import Judge

JSON = PROMPTS["json"]
TURN_END = {"gemma3": "<end_of_turn>", "idefics3": "<end_of_utterance>"}
TURN_END["smolvlm"] = TURN_END["idefics3"]
CASES = [judged(1, accuracy=FIRST, overall=TIE), judged(22, accuracy=FIRST)]


def parts(family: str) -> tuple[Collator, ConversationRenderer]:
    collator = Collator(make_tiny(family)[1])
    return collator, ConversationRenderer.of(collator)


def batch_of(
    renderer: ConversationRenderer, rows: Sequence[JudgeExample], prompt: Any = JSON
) -> dict[str, Any]:
    written = [renderer.verdict(row, prompt) for row in rows]
    examples = [{"row": number, "images": []} for number in range(len(rows))]
    return supervised(renderer, written.__getitem__, examples)


def decoded(collator: Collator, ids: Tensor) -> str:
    return str(collator.processor.tokenizer.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_verdict_and_the_turns_end_are_learned_exactly(family: str) -> None:
    collator, renderer = parts(family)
    end = TURN_END.get(family, "<|im_end|>")
    rows = judge_examples(CASES, DIMENSIONS, JSON, "majority")
    batch = batch_of(renderer, rows)
    assert (batch["input_ids"] == batch["labels"])[batch["labels"] != IGNORED].all()
    for index, row in enumerate(rows):
        reply = row.reply(JSON)
        labels = batch["labels"][index]
        ids = batch["input_ids"][index][batch["attention_mask"][index].bool()]
        tail = ids[int((labels != IGNORED).nonzero()[0]) :]
        assert decoded(collator, tail) == reply.text + end
        # The filler's letter, and that alone, is left out.
        ((start, stop),) = reply.unlearned
        learned = decoded(collator, labels[labels != IGNORED])
        assert learned == reply.text[:start] + reply.text[stop:] + end


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_tokens_are_those_of_scoring(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompt as an engine is sent it, then the reply."""
    collator, renderer = parts(family)
    prompt = PROMPTS["rationale_json"]
    rows = judge_examples(CASES, DIMENSIONS, prompt, "majority")
    batch = batch_of(renderer, rows, prompt)
    engine = MockEngine("always-a")
    monkeypatch.setattr(
        engine,
        "plain",
        chat_template.Commands.of(collator.processor).break_up,
    )
    judge = Judge(engine, prompt, DIMENSIONS)
    sent = [request for case in CASES for request in judge._requests(case)]
    assert len(sent) == len(rows)
    for index, (row, request) in enumerate(zip(rows, sent, strict=True)):
        opened = chat_template.render(collator.processor, request.messages, "generation_prompt")
        alone = collator.encode([Row(opened, row.case.images)])
        length = alone["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][index, :length], alone["input_ids"][0])
        assert (batch["labels"][index, :length] == IGNORED).all()
        assert batch["labels"][index, length] != IGNORED


def test_fillers_in_reasons_are_not_learned() -> None:
    collator, renderer = parts("qwen2_5_vl")
    prompt = PROMPTS["rationale_json"]
    rows = judge_examples(CASES[:1], DIMENSIONS, prompt, "majority")
    batch = batch_of(renderer, rows, prompt)
    for index, row in enumerate(rows):
        labels = batch["labels"][index]
        learned = decoded(collator, labels[labels != IGNORED])
        letter = row.letters["accuracy"]
        assert learned.startswith(f"accuracy: better: {letter}\noverall: better:")
        assert learned.count("A") + learned.count("B") == 2


def test_pairs_are_the_chosen_rows_then_the_rejected() -> None:
    collator, renderer = parts("qwen2_5_vl")
    rows = judge_examples(CASES, DIMENSIONS, JSON, "majority")
    pairs = [
        (renderer.verdict(row, JSON), renderer.verdict(row, JSON, row.learned)) for row in rows
    ]
    examples = [{"row": number, "images": []} for number in (2, 0)]
    batch = preferred(renderer, pairs.__getitem__, examples)
    assert batch["completion_mask"].shape == batch["input_ids"].shape
    other_letter = {"A": "B", "B": "A"}
    for index, number in enumerate((2, 0, 2, 0)):
        row = rows[number]
        ids = batch["input_ids"][index][batch["attention_mask"][index].bool()]
        letter = row.letters["accuracy"]
        letter = letter if index < 2 else other_letter[letter]
        assert f'{{"accuracy": "{letter}", "overall": "{row.letters["overall"]}"}}' in decoded(
            collator, ids
        )
        learned = batch["input_ids"][index][batch["completion_mask"][index].bool()]
        assert decoded(collator, learned) == f'{{"accuracy": "{letter}", "overall": ""}}<|im_end|>'


def test_an_answer_pair_is_the_conversation_that_scoring_reads() -> None:
    collator, renderer = parts("gemma3")
    case = CASES[0]
    for index, row in enumerate(Collator(collator.processor, "turn_end").answer_rows(case)):
        written = renderer.answer(case, index)
        assert row.text == written.text + "\n"
        features, learned = renderer.encode([written])
        assert decoded(collator, features["input_ids"][learned]) == (
            case.answers[index] + "<end_of_turn>"
        )


def test_a_template_without_a_turns_end_gets_the_tokenizers() -> None:
    processor = make_tiny("llava")[1]
    processor.chat_template = (
        "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}"
        "{% if c['type']=='image' %}<image>\n{% else %}{{ c['text'] | trim }}{% endif %}"
        "{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    collator = Collator(processor)
    renderer = ConversationRenderer.of(collator)
    assert renderer.turn_end.ending == processor.tokenizer.eos_token
    rows = judge_examples(CASES[:1], DIMENSIONS, JSON, "majority")
    batch = batch_of(renderer, rows)
    labels = batch["labels"][0]
    learned = decoded(collator, labels[labels != IGNORED])
    # The space that this template puts before a reply is the model's to write.
    assert learned.startswith(' {"accuracy": "A", "overall": "')
    assert learned.endswith('"}<|im_end|>')
    messages = chat.answer_messages("?", 0, "")[:-1]
    rendered = renderer.render(messages, (), TargetReply(" clear lungs \n", ((1, 6),)))
    _, mask = renderer.encode([rendered])
    assert rendered.text == "USER: ? ASSISTANT: clear lungs<|im_end|>"
    ids = collator.encode([rendered.row])["input_ids"]
    assert decoded(collator, ids[mask]) == " lungs<|im_end|>"  # ' clear' is one token


def test_a_template_that_rewrites_replies_is_refused() -> None:
    processor = make_tiny("qwen2_5_vl")[1]
    processor.chat_template = processor.chat_template.replace(
        "{{ c['text'] }}", "{{ c['text'] | replace('\"', '') }}"
    )
    collator = Collator(processor)
    rows = judge_examples(CASES[:1], DIMENSIONS, JSON, "majority")
    with pytest.raises(ConfigError, match="rewrites replies"):
        ConversationRenderer.of(collator).verdict(rows[0], JSON)


def test_a_system_turn_that_a_template_refuses_opens_the_users() -> None:
    processor = make_tiny("gemma3")[1]
    processor.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + processor.chat_template
    )
    collator = Collator(processor)
    rows = judge_examples(CASES[:1], DIMENSIONS, JSON, "majority")
    assert JSON.system in ConversationRenderer.of(collator).verdict(rows[0], JSON).text

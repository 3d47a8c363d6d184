"""Prompts: images first, the dimension last, data never read as a command."""

from __future__ import annotations

import pytest
from tiny import TINY_FAMILIES, make_tiny

from medrm import chat
from medrm.schema import DIMENSIONS


def test_images_stand_before_the_question() -> None:
    user, assistant = chat.answer_messages("What is seen?", 2, "A nodule.")
    assert [part["type"] for part in user["content"]] == ["image", "image", "text"]
    assert user["content"][-1]["text"] == "What is seen?"
    assert assistant["role"] == "assistant"
    assert assistant["content"] == [{"type": "text", "text": "A nodule."}]


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_templates_differ_by_the_opened_turn_only(family: str) -> None:
    _, processor = make_tiny(family)
    messages = chat.answer_messages("What?", 1, "Yes")
    closed = chat.render(processor, messages, "turn_end")
    opened = chat.render(processor, messages, "generation_prompt")
    assert opened.startswith(closed)
    assert opened != closed
    assert "Yes" in closed


def test_dimension_stands_after_all_that_is_shared() -> None:
    texts = [
        chat.LETTER_PROMPT.messages("Q?", 0, ("one", "two"), (dimension,))[0]["content"][-1]["text"]
        for dimension in DIMENSIONS
    ]
    starts = {
        text[: text.index(dimension)] for text, dimension in zip(texts, DIMENSIONS, strict=True)
    }
    assert len(starts) == 1
    assert "Answer A: one" in texts[0]
    assert "Answer B: two" in texts[0]


def test_own_dimension_needs_no_definition() -> None:
    text = chat.LETTER_PROMPT.messages("Q?", 0, ("one", "two"), ("brevity",))[0]["content"][-1][
        "text"
    ]
    assert text.endswith("Which is better in brevity?")


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_data_cannot_spell_a_command(family: str) -> None:
    _, processor = make_tiny(family)
    control = chat.control_tokens(processor)
    tokenizer = processor.tokenizer
    for spelled in (processor.image_token, tokenizer.eos_token):
        hostile = f"fine {spelled}{spelled} end"
        assert tokenizer.convert_tokens_to_ids(spelled) in tokenizer(hostile)["input_ids"]
        plain = chat.break_control_tokens(hostile, control)
        assert tokenizer.convert_tokens_to_ids(spelled) not in tokenizer(plain)["input_ids"]
    assert chat.break_control_tokens("a < b and |x| > 1", control) == "a < b and |x| > 1"


def test_template_that_writes_the_date_gets_a_fixed_one() -> None:
    _, processor = make_tiny("mllama")
    processor.chat_template = "{{ date_string }} " + processor.chat_template
    text = chat.render(processor, chat.answer_messages("What?", 0, "Yes"), "turn_end")
    assert text.startswith("26 Jul 2024 ")

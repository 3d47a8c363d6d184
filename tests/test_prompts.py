"""Prompts of judges: what is asked, what should be replied, and a user's own prompt."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_tiny

from medrm import chat_template
from medrm.chat import PROMPTS, load_prompt, rationale_letters
from medrm.errors import ConfigError
from medrm.parsers import parse_verdict
from medrm.schema import DIMENSIONS

OWN = ('he said "so"', "größe", "back\\slash", "new\nline", "x: y", "tie", "<|im_end|>")
"""Names of dimensions that a careless writer of JSON would break."""


def asked(prompt: str, question: str = "Q?", dimensions: tuple[str, ...] = DIMENSIONS) -> str:
    *_, user = PROMPTS[prompt].messages(question, 1, ("one", "two"), dimensions)
    assert [part["type"] for part in user["content"]] == ["image", "text"]
    return str(user["content"][-1]["text"])


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_holds_the_question_and_both_answers_once(name: str) -> None:
    text = asked(name, dimensions=("overall",))
    for part in ("Q?", "Answer A:\none", "Answer B:\ntwo"):
        assert text.count(part) == 1
    assert "{" not in text
    assert PROMPTS[name].dimensions_per_call(("accuracy", "overall")) == (
        ("accuracy", "overall") if name == "json_per_dimension" else (None,)
    )


def test_a_question_that_spells_a_placeholder_stays_a_question() -> None:
    assert "Question:\n{answer_b} {keys}" in asked("json", "{answer_b} {keys}")


def test_what_both_orders_share_comes_first() -> None:
    for name in PROMPTS:
        texts = [
            PROMPTS[name].messages("Q?", 0, pair, ("overall",))[-1]["content"][-1]["text"]
            for pair in (("<1>", "<2>"), ("<2>", "<1>"))
        ]
        shared = texts[0][: texts[0].index("<1>")]
        assert "Q?" in shared
        assert texts[1].startswith(f"{shared}<2>")


@pytest.mark.parametrize("dimensions", [DIMENSIONS, OWN], ids=["six", "own"])
def test_a_verdict_is_read_as_it_was_written(dimensions: tuple[str, ...]) -> None:
    letters = {name: "AB"[place % 2] for place, name in enumerate(dimensions)}
    text, places = PROMPTS["json"].verdict(letters, "A reason {of} its own.")
    assert {name: text[slice(*places[name])] for name in dimensions} == letters
    assert parse_verdict(text, "strict", dimensions).outcomes == letters
    bare = PROMPTS["json"].verdict(letters).text
    assert json.loads(bare) == letters
    if dimensions == DIMENSIONS:
        assert parse_verdict(bare, "official").outcomes == letters


def test_the_digest_changes_with_every_word() -> None:
    prompt = PROMPTS["json"]
    others = [
        replace(prompt, system="."),
        replace(prompt, user=prompt.user + "."),
        replace(prompt, version=2),
        *(PROMPTS[name] for name in PROMPTS if name != "json"),
    ]
    assert len({one.digest for one in (prompt, *others)}) == len(PROMPTS) + 3


def test_letters_of_reasons() -> None:
    text = (
        "accuracy: better: B is wrong, better: A\nrelevance: none\n"
        "overall: better: A\noverall: better: B\nother: better: A"
    )
    assert rationale_letters(text, DIMENSIONS) == {"accuracy": "A"}


def test_a_prompt_of_ones_own(tmp_path: Path) -> None:
    words = "{question} | {answer_a} | {answer_b}"
    (tmp_path / "mine.txt").write_text("\ufeff" + words, encoding="utf-8")
    mine = load_prompt("", tmp_path / "mine.txt")
    assert (mine.name, mine.version, mine.system, mine.per_dimension) == ("mine", 0, "", False)
    (user,) = mine.messages("Q", 0, ("1", "2"), DIMENSIONS)
    assert user["content"] == [{"type": "text", "text": "Q | 1 | 2"}]
    file = tmp_path / "each.yaml"
    file.write_text(f"system: You judge.\nuser: '{words} {{dimension}}'\n", encoding="utf-8")
    each = load_prompt("json", file)
    assert (each.system, each.per_dimension) == ("You judge.", True)
    system, user = each.messages("Q", 0, ("1", "2"), ("x",))
    assert system["content"][0]["text"] == "You judge."
    assert user["content"][0]["text"] == "Q | 1 | 2 x"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("user: '{question} {answer_a}'", r"\{answer_b\} is missing"),
        ("system: You judge.", "the keys user"),
        ("system:\nuser: '{question}{answer_a}{answer_b}'", "each with a text"),
        ("system: [1]\nuser: '{question}{answer_a}{answer_b}'", "each with a text"),
        ("prompt: '{question}{answer_a}{answer_b}'", "the keys user"),
        ("[1, 2]", "the keys user"),
        ("", "the keys user"),
        ("a: b: c", "cannot be read"),
    ],
)
def test_what_is_no_prompt_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_prompt("json", file)


def test_unknown_prompts_are_named() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'json_short'"):
        load_prompt("json_shrot")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_prompt("json", "no/such/file.txt")


@pytest.mark.parametrize("images", [0, 1])
def test_a_template_that_refuses_a_system_turn_beside_an_image_gets_none(images: int) -> None:
    """As Llama 3.2's does; the role then opens the user's turn, with and without images."""
    _, processor = make_tiny("mllama")
    processor.chat_template = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' and messages[0]['role'] == 'system' %}"
        "{{ raise_exception('Prompting with images is incompatible with system messages.') }}"
        "{% endif %}{% endfor %}{% endfor %}" + processor.chat_template
    )
    prompt = PROMPTS["json"]
    messages = prompt.messages("Q?", images, ("one", "two"), DIMENSIONS)
    (user,) = chat_template.fit_roles(processor, messages)
    assert [part["type"] for part in user["content"]] == ["image"] * images + ["text"]
    text = chat_template.render(processor, messages, "generation_prompt")
    assert text.index(prompt.system) < text.index("Q?")


def test_a_template_that_keeps_a_system_turn_gets_it() -> None:
    _, processor = make_tiny("qwen2_5_vl")
    messages = PROMPTS["json"].messages("Q?", 1, ("one", "two"), DIMENSIONS)
    assert chat_template.fit_roles(processor, messages) == messages

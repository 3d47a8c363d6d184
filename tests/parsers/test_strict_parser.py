"""The strict parser: it finds the verdict in what surrounds it, and never guesses."""

from __future__ import annotations

import json

import pytest

from medrm.parsers import parse_verdict
from medrm.parsers.parsed import Parsed
from medrm.parsers.thinking import after_thinking, opened_by

TWO = ("accuracy", "overall")
A, B = '{"accuracy": "A", "overall": "A"}', '{"accuracy": "B", "overall": "B"}'


def parse(reply: str) -> Parsed:
    return parse_verdict(reply, "strict", TWO)


def read(reply: str) -> tuple[str | None, ...]:
    return tuple(parse(reply).outcomes.values())


THINKING = [
    ("<unused94>thought\n", "<unused95>"),
    ("thought\n", "<unused95>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<thought>\n", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("<analysis>", "</analysis>"),
    ("<reflection>", "</reflection>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<|thinking|>", "<|/thinking|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>commentary<|message|>", "<|channel|>final<|message|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("analysisThe user asks ", "assistantfinal"),
    ("Here is my thought process:\n", "Here is my response:\n"),
    ("Here's my thought process:\n", "Here's my response:\n"),
    ("<ifm|think_faster>", "</ifm|think_faster>"),
    ("<|plamo:begin_think:plamo|>", "<|plamo:end_think:plamo|>"),
    ("<|think:start|>", "<|think:end|>"),
    ("<|open|>think<|sep|>", "<|close|>think<|sep|><|open|>response<|sep|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("[unused16]", "[unused17]"),
    ("to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>"),
    ("Here are my reasoning steps:\n", "[BEGIN FINAL RESPONSE]\n"),
]
"""Openings and closings as model families write them."""


@pytest.mark.parametrize(
    "reply",
    [
        f"```json\n{B}\n```",
        f'The set {{1, 2}} and a stray {{ or }} and a " quote. {B} That\'s it {{ " }}.',
        f"{A} No: {B}",
        f'{A} No: {{\'single\': 1}} {B} {{}} {{"other": "A"}}',
        f'{{ "a\n {B}',
        f"{{{B}",
        f'{{"no value": , {B}',
        f'{{"a": [{A}, {B}], oops',
        f'{{"x": {B} "y',
        f"[{A}, {B}]",
        f'{{"verdict": {B}}}',
        f'{{"x": [[{{"verdict": {B}}}], {{"note": "A"}}]}}',
        '{"Accuracy ": " b\\t", "OVERALL": "B"}',
        r'{"\u0061ccuracy": "\u0042", "overall": "B"}',
        '{"reason": "one\ntwo \\( \\alpha \\) \\"{\\" <br>", "accuracy": "B", "overall": "B",}',
        '{"accuracy": "B", "accuracy": "b", "overall": "B", "note": {"overall": "A"}}',
        '{"n": [1, -2.5e+3, true, false, null, NaN, -Infinity, [], {}], "accuracy": "B", '
        '"overall": "B"}',
    ],
)
def test_the_last_complete_object_is_read(reply: str) -> None:
    assert parse(reply) == Parsed({"accuracy": "B", "overall": "B"}, "json")


@pytest.mark.parametrize(
    "reply",
    [
        f"<think>{A}</think>{B}",
        f"<thinking>{A}</thinking>\n\n{B}",
        f"{A} hm, </think> {B}",
        f"<think><think>{A}</think> more </think> {B}",
        f"<THINK></Think>{B}",
        f"{A}<think>so</think> {B}",
        f"<think>so</think><reasoning>{A}</reasoning>{B}",
        *(f"{opening}{A} wait {closing}{B}" for opening, closing in THINKING),
    ],
)
def test_thinking_is_not_read(reply: str) -> None:
    assert read(reply) == ("B", "B")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("", "empty reply"),
        (" \n", "empty reply"),
        ("Answer B is better.", "no JSON object"),
        ("B", "no JSON object"),
        (f"<think>{A}", "the thinking never ends"),
        (f"{A}<think>or", "the thinking never ends"),
        *((f"{opening}{A} but", "the thinking never ends") for opening, _ in THINKING),
        (f"<think>{A}</think>", "empty reply"),
        (A[:-1], "the JSON object is cut off"),
        (A[:-3], "the JSON object is cut off"),
        (f'{{"verdict": {A}, "reason": "the', "the JSON object is cut off"),
        (f'{{"draft": {A}, "final": {{', "the JSON object is cut off"),
        ("{accuracy: A}", "no complete JSON object names an asked dimension"),
        ('{"safety": "A"}', "no complete JSON object names an asked dimension"),
        ('{"accuracy": A, "overall": A}', "no complete JSON object names an asked dimension"),
        (A.replace(",", ""), "no complete JSON object names an asked dimension"),
        (A.replace(":", ""), "no complete JSON object names an asked dimension"),
        (A.replace("}", "]"), "no complete JSON object names an asked dimension"),
        (A.replace(",", ",,"), "no complete JSON object names an asked dimension"),
        (
            '{"accuracy": "A", "reason": "the "best" one"}',
            "no complete JSON object names an asked dimension",
        ),
        (f'{{"draft": {A}, "final": {B}}}', "several nested objects name asked dimensions"),
        (f'{{"all": [{A}, {A}]}}', "several nested objects name asked dimensions"),
    ],
)
def test_nothing_is_guessed(reply: str, reason: str) -> None:
    assert parse(reply) == Parsed(dict.fromkeys(TWO), None, reason)


@pytest.mark.parametrize(
    ("reply", "outcomes", "reason"),
    [
        ('{"accuracy": "Tie"}', ("tie", None), "missing: overall"),
        (f'{A} {{"overall": "B"}}', (None, "B"), "missing: accuracy"),
        (
            '{"accuracy": "A|B", "overall": "B"}',
            (None, "B"),
            "not A, B or tie: accuracy ('A|B')",
        ),
        (
            '{"accuracy": ["A"], "overall": ""}',
            (None, None),
            "not A, B or tie: accuracy (no string), overall ('')",
        ),
        (
            '{"accuracy": "\x1b[2J and so on and so on", "overall": "B"}',
            (None, "B"),
            "not A, B or tie: accuracy ('\\x1b[2J and so on and s...')",
        ),
        (
            '{"accuracy": "A", "Accuracy": "B", "overall": "B"}',
            (None, "B"),
            "more than one value: accuracy",
        ),
        (
            '{"accuracy": "A", "accuracy": {"winner": "A"}, "overall": "B"}',
            (None, "B"),
            "more than one value: accuracy",
        ),
        (f'{A} {{"accuracy": "A", "overall": "A", "re', ("A", "A"), None),
        (
            f'{A} No: {{"accuracy": "B", "overall": "A", "re',
            (None, "A"),
            "an unfinished object says otherwise: accuracy",
        ),
        (
            '{"reason": "Not {"accuracy": "A"}", "accuracy": "B", "overall": "B"}',
            (None, None),
            "an unfinished object says otherwise: accuracy; missing: overall",
        ),
    ],
)
def test_only_what_is_not_said_is_left_out(
    reply: str, outcomes: tuple[str | None, ...], reason: str | None
) -> None:
    parsed = parse(reply)
    assert tuple(parsed.outcomes.values()) == outcomes
    assert parsed.stage == "json"
    assert sorted((parsed.reason or "").split("; ")) == sorted((reason or "").split("; "))


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        ("B", "B"),
        (" b.\n", "B"),
        ("Tie", "tie"),
        ("A .", "A"),
        ("<think>A or B?</think>\nB", "B"),
        ("A or B?</think>\nB", "B"),
        ("<think>B", None),
        ("A B", None),
        ("A..", None),
        ("Answer B", None),
        ("[[B]]", None),
        ("{B}", None),
        ("\u0410", None),  # a Cyrillic letter
    ],
)
def test_one_dimension_may_be_a_letter(reply: str, outcome: str | None) -> None:
    parsed = parse_verdict(reply, "strict", ("accuracy",))
    assert parsed.outcomes == {"accuracy": outcome}
    assert parsed.stage == ("letter" if outcome else None)
    assert (parsed.reason is None) == (outcome is not None)
    assert set(parse(reply).outcomes.values()) == {None}


def test_dimensions_are_data() -> None:
    asked = ("Image quality", "a.*", '"')
    parsed = parse_verdict('{"image quality": "A", "A.*": "B", "\\"": "tie"}', "strict", asked)
    assert parsed.outcomes == {"Image quality": "A", "a.*": "B", '"': "tie"}


@pytest.mark.parametrize("name", ['he said "so"', "back\\slash", "größe"])
def test_names_that_json_escapes_are_seen_in_an_unfinished_object(name: str) -> None:
    key = json.dumps(name, ensure_ascii=False)
    parsed = parse_verdict(f'{{{key}: "A"}} No: {{{key}: "B", "re', "strict", (name,))
    assert parsed.outcomes == {name: None}
    assert parsed.reason == f"an unfinished object says otherwise: {name}"


@pytest.mark.parametrize(
    "reply",
    [
        f"Thoughtful analysis: the thought of <b>thinking</b> aside, I think {B}",
        f"analysis: B is better. {B}",
        f"My [Analysis] and thought:\n{B}",
    ],
)
def test_words_about_thinking_are_no_marks(reply: str) -> None:
    assert read(reply) == ("B", "B")


@pytest.mark.parametrize(
    "why", ["the <think> tag", "<think> and </think> stand there", "[THINK] is a mark"]
)
def test_a_mark_that_a_complete_object_quotes_is_none(why: str) -> None:
    reply = json.dumps({"accuracy": "B", "overall": "B", "why": why})
    assert read(reply) == ("B", "B")
    assert read(f"<think>{A} no</think>{reply}") == ("B", "B")
    assert parse(f"<think>{reply}").reason == "the thinking never ends"
    assert parse(f"{reply}<think>").reason == "the thinking never ends"
    assert read(reply[:-1]) == (None, None)


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("[INST] Compare [/INST][THINK]", "[THINK]"),
        ("<start_of_turn>model\n<unused94>thought\n", "<unused94>thought"),
        ("<|im_start|>assistant\n", ""),
        ("", ""),
    ],
)
def test_a_prompt_may_open_the_thinking(prompt: str, mark: str) -> None:
    assert opened_by(prompt) == mark
    assert not mark or after_thinking(mark + A) is None

"""Both parsers on the same replies: what the released scorer makes of them, and what they say.

Letters stand for the six dimensions in the released order: t is a tie, - is None.
"""

from __future__ import annotations

import json

import pytest

import medrm
from medrm.errors import ConfigError
from medrm.parsers import parse_verdict
from medrm.parsers.parsed import Parsed
from medrm.schema import DIMENSIONS

ALL_A, ALL_B, NONE = "A" * 6, "B" * 6, "-" * 6


def verdict(value: object = "B", **other: object) -> str:
    """The text of a verdict: all values alike, but for `other`."""
    return json.dumps({**dict.fromkeys(DIMENSIONS, value), **other})


def lines(value: str, label: str = "{}: ") -> str:
    return "\n".join(label.format(name.capitalize()) + value for name in DIMENSIONS)


def letters(parsed: Parsed) -> str:
    assert tuple(parsed.outcomes) == DIMENSIONS
    shown = {"A": "A", "B": "B", "tie": "t", None: "-"}
    return "".join(shown[outcome] for outcome in parsed.outcomes.values())


DRAFT = "The first is right: {accuracy: A, relevance: A, comprehensiveness: A, creativity: A, "
DRAFT += "responsiveness: A, overall: A}."
FIVE = json.dumps({name: "B" for name in DIMENSIONS if name != "overall"})
CAPITAL = json.dumps({name.capitalize(): "B" for name in DIMENSIONS})
CUT = verdict(reason="the lesion is des").removesuffix('"}')

# reply, official stage, official letters, suspect, strict letters
GOLDEN = {
    "valid": (verdict(), "json", ALL_B, False, ALL_B),
    "code fence": (f"```json\n{verdict()}\n```", "json", ALL_B, False, ALL_B),
    "lower-case letters": (verdict("b"), "json", ALL_B, False, ALL_B),
    "capitalised keys": (CAPITAL, "regex", ALL_B, False, ALL_B),
    "trailing comma": (verdict().replace("}", ",}"), "regex", ALL_B, False, ALL_B),
    "cut off inside the reason": (CUT, "regex", ALL_B, False, NONE),
    "nested under a key": (f'{{"verdict": {verdict()}}}', "regex", ALL_B, False, ALL_B),
    "lines": (lines("B"), "regex", ALL_B, False, NONE),
    "value Assistant B": (verdict("Assistant B"), "regex", ALL_A, True, NONE),
    "value Answer B": (verdict("Answer B"), "regex", ALL_A, True, NONE),
    "lines Assistant B": (lines("Assistant B"), "regex", ALL_A, True, NONE),
    "echoed template": (verdict("A|B"), "regex", ALL_A, True, NONE),
    "one Both": (verdict("A", creativity="Both"), "regex", "AAABAA", True, "AAA-AA"),
    "value Response B": (verdict("Response B"), None, NONE, False, NONE),
    "one tie": (verdict(creativity="tie"), None, NONE, False, "BBBtBB"),
    "overall missing": (FIVE, None, NONE, False, "BBBBB-"),
    "only overall": ('{"overall": "B"}', "single", ALL_B, True, "-----B"),
    "only overall, B in the reason": (
        '{"overall": "B", "reason": "B is right"}',
        None,
        NONE,
        False,
        "-----B",
    ),
    "single quotes": (verdict().replace('"', "'"), None, NONE, False, NONE),
    "value objects": (verdict({"winner": "B"}), None, NONE, False, NONE),
    "bold labels": (lines("B", "**{}**: "), None, NONE, False, NONE),
    "bold labels and colons": (lines("B", "**{}:** "), None, NONE, False, NONE),
    "draft in braces while thinking": (
        f"<think>{DRAFT}</think>\n{verdict()}",
        "regex",
        ALL_A,
        True,
        ALL_B,
    ),
    "thinking without braces": (
        f"<think>accuracy: A, or not?</think>{verdict()}",
        "json",
        ALL_B,
        False,
        ALL_B,
    ),
    "two objects": (f"{verdict('A')}\n{verdict('B')}", "regex", ALL_A, True, ALL_B),
    "two brackets": ("First I thought [[A]] but final [[B]]", "bracket", ALL_A, True, NONE),
    "letter": ("B", "single", ALL_B, True, NONE),
    "letter and stop": ("B.", "single", ALL_B, True, NONE),
    "Assistant B is better": ("Assistant B is better.", "single", ALL_B, True, NONE),
    "a better answer": ("Assistant B gives a better answer.", None, NONE, False, NONE),
    "B is better than A": ("B is better than A", None, NONE, False, NONE),
    "refusal with an article": (
        "I'm sorry, but I can't provide a medical judgment.",
        "single",
        ALL_A,
        True,
        NONE,
    ),
    "refusal": ("I'm sorry, I can't help with that.", None, NONE, False, NONE),
    "empty": ("", None, NONE, False, NONE),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_official_reads_as_the_released_scorer(name: str) -> None:
    reply, stage, expected, suspect, _ = GOLDEN[name]
    parsed = parse_verdict(reply, "official")
    assert (parsed.stage, letters(parsed), parsed.suspect) == (stage, expected, suspect)
    assert (parsed.reason is None) == (stage is not None)


@pytest.mark.parametrize("name", GOLDEN)
def test_strict_reads_what_is_said(name: str) -> None:
    reply, *_, expected = GOLDEN[name]
    parsed = parse_verdict(reply, "strict")
    assert letters(parsed) == expected
    assert (parsed.reason is None) == ("-" not in expected)
    assert not parsed.suspect


@pytest.mark.parametrize("parser", ["official", "strict"])
def test_outcomes_are_those_that_were_asked_for(parser: str) -> None:
    asked = ("overall", "accuracy")
    parsed = parse_verdict(verdict("B", accuracy="A"), parser, asked)
    assert list(parsed.outcomes.items()) == [("overall", "B"), ("accuracy", "A")]
    assert parse_verdict("", parser, ()).outcomes == {}


def test_unknown_parser() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'official'"):
        parse_verdict("B", "offical")


def test_the_package_offers_it() -> None:
    assert medrm.parse_verdict is parse_verdict

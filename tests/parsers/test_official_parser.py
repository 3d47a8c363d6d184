"""Details of the released scorer's rules, and what is marked about its readings."""

from __future__ import annotations

import json

import pytest

from medrm.parsers import parse_verdict
from medrm.schema import DIMENSIONS


def flat(value: str, **other: str) -> str:
    """All six dimensions in a text that is no JSON."""
    return ", ".join(f"{name}: {other.get(name, value)}" for name in DIMENSIONS)


def read(reply: str) -> tuple[str | None, str]:
    parsed = parse_verdict(reply, "official")
    return parsed.stage, "".join(outcome or "-" for outcome in parsed.outcomes.values())


SIX = json.dumps(dict.fromkeys(DIMENSIONS, "B"))


@pytest.mark.parametrize(
    ("reply", "stage", "expected"),
    [
        (f' \n""{SIX}"" ', "json", "BBBBBB"),  # spaces, then quotes are trimmed
        (SIX.replace('"B"', '" b\\n"'), "json", "BBBBBB"),
        (SIX.replace('"B"', r'"\u0042"'), "json", "BBBBBB"),
        (f"}} {SIX} {{", "json", "BBBBBB"),
        (f"{{ {SIX}", "regex", "BBBBBB"),  # from the first brace to the last
        (SIX.replace("{", '{"overall": "A", '), "json", "BBBBBB"),  # the last of two keys wins
        (f"[{SIX}]", "json", "BBBBBB"),  # the brackets lie outside of the span
        (f'{{"deep": {"[" * 100_000}{"]" * 100_000}, {SIX[1:]}', "regex", "BBBBBB"),
        (f'{{"long": {"1" * 10_000}, {SIX[1:]}', "regex", "BBBBBB"),
        (flat("B"), "regex", "BBBBBB"),
        (flat("B").replace(": ", " \n:\n\t"), "regex", "BBBBBB"),
        (flat("B").upper(), "regex", "BBBBBB"),
        (flat("B").replace("accuracy", "accuracy'"), None, "------"),
        (flat("B") + ", accuracy: A", "regex", "BBBBBB"),
        ("[[b]], or [[A]]", "bracket", "BBBBBB"),
        ("[[ A ]]", "single", "AAAAAA"),
        ("(b)", "single", "BBBBBB"),
        ("B_1", None, "------"),
        ("\u00e9A", None, "------"),  # an accented letter is a word character
        ('"A', "single", "AAAAAA"),
    ],
)
def test_rules(reply: str, stage: str | None, expected: str) -> None:
    assert read(reply) == (stage, expected)


@pytest.mark.parametrize(
    ("value", "suspect"),
    [
        ("B", False),
        ("B because it is right", False),
        ("'B'", None),
        ('"B"', False),
        ("A.", False),
        ("Better", True),
        ("A|B", True),
        ("A / B", True),
        ('"A" | "B"', True),
        ("A or B", True),
        ("a more precise answer", True),
        ("A more precise answer", False),
    ],
)
def test_values_that_the_patterns_misread(value: str, suspect: bool | None) -> None:
    parsed = parse_verdict(flat("B", creativity=value), "official")
    if suspect is None:
        assert parsed.stage is None
    else:
        assert (parsed.stage, parsed.suspect) == ("regex", suspect)


def test_second_mentions_are_suspect_where_they_differ() -> None:
    assert not parse_verdict(f"{flat('B')}. Again: {flat('B')}", "official").suspect
    assert parse_verdict(f"{flat('B')}. Again: {flat('B', overall='A')}", "official").suspect


@pytest.mark.parametrize("prefix", ["in", "my_", "7"])
def test_other_words_are_suspect(prefix: str) -> None:
    parsed = parse_verdict(prefix + flat("A"), "official")
    assert (parsed.stage, parsed.suspect) == ("regex", True)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("No verdict.", "dropped: none of 6 dimensions readable"),
        (
            SIX.replace('"overall": "B"', '"overall": "tie"'),
            "dropped although 5 of 6 dimensions readable: not overall",
        ),
        (
            "Accuracy: A. Overall: B.",
            "dropped although 2 of 6 dimensions readable: not relevance, comprehensiveness, "
            "creativity, responsiveness",
        ),
        (
            SIX.replace('"B"', r'"\u0042"').replace("overall", "Overall"),
            "dropped although 5 of 6 dimensions readable: not overall",
        ),
    ],
)
def test_what_a_dropped_row_would_have_said(reply: str, reason: str) -> None:
    parsed = parse_verdict(reply, "official", ("accuracy",))
    assert parsed.outcomes == {"accuracy": None}
    assert parsed.reason == reason


def test_six_dimensions_are_wanted_whatever_was_asked() -> None:
    two = '{"accuracy": "A", "overall": "A"}'
    assert parse_verdict(two, "official", ("accuracy", "overall")).stage is None
    assert parse_verdict('{"accuracy": "A"}', "official", ("accuracy",)).stage == "single"


def test_a_dimension_of_another_benchmark() -> None:
    parsed = parse_verdict(SIX, "official", ("accuracy", "safety"))
    assert parsed.outcomes == {"accuracy": "B", "safety": None}
    assert parsed.reason == "not known to the released scorer: safety"

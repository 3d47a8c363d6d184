"""Both parsers on generated replies: no exception, no quadratic time, and the same as an oracle.

The oracles are naive on purpose: the released scorer's rules as plain patterns, and an attempt to
read an object, by recursive descent, at every brace.
"""

from __future__ import annotations

import json
import random
import re
import time
import timeit
from collections.abc import Callable, Iterator

import pytest

from medrm.parsers import Parser, parse_verdict
from medrm.parsers.strict import scan
from medrm.schema import DIMENSIONS

PARSERS: tuple[Parser, ...] = ("official", "strict")
NAMES = {name: name for name in DIMENSIONS}

# ---------------------------------------------------------------- generated replies

VALUES = (
    "A",
    "B",
    "a",
    " b ",
    "tie",
    "Tie",
    "Both",
    "Assistant B",
    "A|B",
    "",
    "Answer A",
    "\\u0041",
)
ATOMS = (
    *"{}[]:,\"'\\ \n\t.*|/_-`",
    *("A", "B", "a", "b", "tie", "true", "null", "NaN", "-1.5e3", "0", "\\n", '\\"', "\\u00e9"),
    *("<think>", "</think>", "<thinking>", "</thinking>", "<think", "```json\n", "```", "[[A]]"),
    *(
        "[[b]]",
        "reason",
        "inaccuracy: ",
        "Assistant ",
        "is better than",
        "\ufeff",
        "\u00a0",
        "\u2028",
    ),
    *(
        "\x00",
        "\x1b",
        "\x7f",
        "\ud800",
        "\udfff",
        "\u00e9",
        "\u017f",
        "\u0131",
        "\u212a",
        "\U0001f600",
    ),
    *DIMENSIONS,
    *(f'"{name}": "B"' for name in DIMENSIONS),
    *(f"{name}: A\n" for name in DIMENSIONS),
)


def some_object(rng: random.Random, depth: int) -> str:
    """JSON, or nearly: commas, values and brackets are sometimes wrong."""
    if rng.random() < 0.3:
        return json.dumps({name: rng.choice("ABab") for name in DIMENSIONS})
    names = rng.sample(DIMENSIONS, rng.choice((0, 1, 2, 5, 6, 6, 6)))
    favourite = rng.choice(VALUES)
    pairs = []
    for name in [*names, *(["reason"] if rng.random() < 0.4 else [])]:
        key = rng.choice((name, name, name, name, name.upper(), f" {name}"))
        value = favourite if rng.random() < 0.7 else rng.choice(VALUES)
        text = f'"{value}"'
        if depth and rng.random() < 0.1:
            text = rng.choice((some_object, some_array))(rng, depth - 1)
        elif rng.random() < 0.05:
            text = rng.choice(ATOMS)
        pairs.append(f'"{key}"{rng.choice((":", ": ", " : "))}{text}')
    comma = rng.choice((", ", ", ", ",", ",\n  ", ", ", " "))
    close = rng.choice(("}", "}", "}", "}", "}", ",}", "]", ""))
    return "{" + rng.choice(("", " ", "\n")) + comma.join(pairs) + close


def some_array(rng: random.Random, depth: int) -> str:
    parts = [some_object(rng, depth) for _ in range(rng.randrange(3))]
    return "[" + ", ".join(parts) + rng.choice(("]", "]", "]", ",]", ""))


def some_noise(rng: random.Random, depth: int) -> str:
    return "".join(rng.choices(ATOMS, k=rng.randrange(12)))


def some_lines(rng: random.Random, depth: int) -> str:
    value = rng.choice(VALUES)
    label = rng.choice(("{}: ", '"{}": ', "{} :\n", "**{}**: ", "{}"))
    return rng.choice(("\n", ", ", " ")).join(label.format(name) + value for name in DIMENSIONS)


def replies(seed: int, count: int) -> Iterator[str]:
    """Replies of some parts each; one in four is damaged by a cut, a swap or a repetition."""
    rng = random.Random(seed)
    makers = (some_object, some_object, some_noise, some_noise, some_lines, some_array)
    for _ in range(count):
        text = "".join(rng.choice(makers)(rng, 2) for _ in range(rng.choice((1, 1, 2, 3))))
        if rng.random() < 0.25 and text:
            at = rng.randrange(len(text))
            text = rng.choice(
                (text[:at], text[at:], text[:at] + rng.choice(ATOMS) + text[at + 1 :])
            )
        yield text


# ---------------------------------------------------------------- oracles


def official_oracle(text: str) -> tuple[str | None, dict[str, str] | None]:
    """The released scorer's rules in their order: stage and six letters, or nothing."""
    text = text.strip().strip('"')
    try:
        span = text
        if "{" in text and "}" in text:
            span = text[text.index("{") : text.rindex("}") + 1]
        value = json.loads(span)
        read = {name: str(value[name]).strip().upper() for name in DIMENSIONS}
        if set(read.values()) <= {"A", "B"}:
            return "json", read
    except (ValueError, RecursionError, TypeError, KeyError, IndexError):
        pass
    found = {
        name: re.search(rf'"?{name}"?\s*:\s*"?([AB])"?', text, re.IGNORECASE) for name in DIMENSIONS
    }
    if all(found.values()):
        return "regex", {name: match[1].upper() for name, match in found.items() if match}
    bracket = re.search(r"\[\[([AB])\]\]", text, re.IGNORECASE)
    if bracket:
        return "bracket", dict.fromkeys(DIMENSIONS, bracket[1].upper())
    alone = re.findall(r"\b([AB])\b", text, re.IGNORECASE)
    if len(alone) == 1:
        return "single", dict.fromkeys(DIMENSIONS, alone[0].upper())
    return None, None


class Cut(Exception):
    """The text ends inside an object."""


class Broken(Exception):
    """No JSON."""


Node = tuple[dict[str, list[str | None]], list["Node"], int]


class Descent:
    """Reads one value by recursive descent and remembers each brace that opened an object."""

    def __init__(self, text: str, at: int) -> None:
        self.text, self.at, self.braces = text, at, set[int]()

    def peek(self) -> str:
        while self.at < len(self.text) and self.text[self.at] in " \t\n\r":
            self.at += 1
        if self.at == len(self.text):
            raise Cut
        return self.text[self.at]

    def want(self, accepted: str) -> str:
        if (given := self.peek()) not in accepted:
            raise Broken
        self.at += 1
        return given

    def string(self) -> str:
        start = self.at
        self.want('"')
        while self.at < len(self.text) and self.text[self.at] != '"':
            self.at += 2 if self.text[self.at] == "\\" else 1
        if self.at >= len(self.text):
            raise Cut
        self.at += 1
        try:
            return str(json.loads(self.text[start : self.at], strict=False))
        except ValueError:
            return self.text[start + 1 : self.at - 1]

    def value(self) -> tuple[str | None, list[Node]]:
        head = self.peek()
        if head == '"':
            return self.string(), []
        if head == "{":
            return None, [self.object()]
        if head == "[":
            self.at += 1
            nodes: list[Node] = []
            while self.peek() != "]":
                nodes += self.value()[1]
                if self.peek() != "]":
                    self.want(",")
            self.at += 1
            return None, nodes
        plain = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?|-?Infinity|NaN|true|false|null", re.ASCII)
        match = plain.match(self.text, self.at)
        if not match:
            raise Broken
        self.at = match.end()
        return None, []

    def object(self) -> Node:
        self.peek()
        self.braces.add(self.at)
        self.want("{")
        values: dict[str, list[str | None]] = {}
        nodes: list[Node] = []
        while self.peek() != "}":
            if self.text[self.at] != '"':
                raise Broken
            key = self.string().strip().lower()
            self.want(":")
            value, inner = self.value()
            nodes += inner
            if key in NAMES:
                values.setdefault(key, []).append(value)
            if self.peek() != "}":
                self.want(",")
        self.at += 1
        return values, nodes, self.at


def carriers(node: Node) -> list[Node]:
    values, nodes, _ = node
    return [node] if values else [found for inner in nodes for found in carriers(inner)]


def objects_oracle(text: str) -> list[tuple[dict[str, list[str | None]], int]]:
    """Of the last complete outermost object that names a dimension: it, or its nested ones."""
    last: list[Node] = []
    beyond, unknown = 0, set[int]()
    for at, character in enumerate(text):
        if character != "{" or at < beyond or at in unknown:
            continue
        descent = Descent(text, at)
        try:
            node = descent.object()
        except Broken:
            continue
        except Cut:
            unknown |= descent.braces
            continue
        beyond = descent.at
        last = carriers(node) or last
    return [(values, end) for values, _, end in last[:2]]


# ---------------------------------------------------------------- tests


def check(text: str) -> tuple[str | None, str | None]:
    """Compares both parsers with the oracles; returns the stages."""
    official = parse_verdict(text, "official")
    stage, letters = official_oracle(text)
    assert official.stage == stage, ascii(text)
    assert official.outcomes == (letters or dict.fromkeys(DIMENSIONS)), ascii(text)
    found = [(dict(verdict.values), verdict.end) for verdict in scan(text, NAMES).verdicts]
    assert found == objects_oracle(text), ascii(text)
    strict = parse_verdict(text, "strict")
    assert (strict.reason is None) == (None not in strict.outcomes.values()), ascii(text)
    assert strict.stage == ("json" if any(strict.outcomes.values()) else strict.stage)
    return official.stage, strict.stage


def fuzz(seed: int, count: int) -> None:
    stages: dict[tuple[str, str | None], int] = {}
    for text in replies(seed, count):
        for stage in zip(PARSERS, check(text), strict=True):
            stages[stage] = stages.get(stage, 0) + 1
        parse_verdict(text, "strict", ("accuracy",))
    expected = [("official", stage) for stage in ("json", "regex", "bracket", "single", None)]
    for stage in [*expected, ("strict", "json"), ("strict", None)]:
        assert stages.get(stage, 0) > count / 200, stages  # the generator reaches every rule


def test_generated_replies() -> None:
    fuzz(0, 5_000)


@pytest.mark.slow
def test_many_generated_replies() -> None:
    for seed in range(1, 11):
        fuzz(seed, 10_000)


PAIR = '{"accuracy": "A", "note": "'
RUNAWAYS: dict[str, Callable[[int], str]] = {
    "braces": lambda n: "{" * n,
    "closing braces": lambda n: "}" * n,
    "brackets": lambda n: '{"a":' + "[" * n,
    "nesting": lambda n: '{"a":' * (n // 5),
    "closed nesting": lambda n: '{"a":' * (n // 6) + "1" + "}" * (n // 6),
    "verdict nesting": lambda n: '{"accuracy":' * (n // 13) + '"A"' + "}" * (n // 13),
    "quotes": lambda n: '"' * n,
    "brace and quote": lambda n: '{"' * (n // 2),
    "brace, quote, space": lambda n: '{ "' * (n // 3),
    "quote and brace": lambda n: '"{' * (n // 2),
    "both sides of a quote": lambda n: ('{":{":":","' + ',":":","' * (n // 8))[:n],
    "escapes": lambda n: '{"' + '\\"{' * (n // 3),
    "backslashes": lambda n: '{"' + "\\" * n,
    "escaped braces": lambda n: '\\{"' * (n // 3),
    "open strings": lambda n: (PAIR * (n // len(PAIR)))[:n],
    "braces in strings": lambda n: '{"a": "' + "{" * n + '"}',
    "objects": lambda n: '{"accuracy": "A"}' * (n // 17),
    "broken objects": lambda n: '{"accuracy": "A"' * (n // 16),
    "digits": lambda n: '{"a": ' + "1" * n,
    "fraction": lambda n: '{"a": 0.' + "1" * n + "}",
    "numbers": lambda n: "{" + ('"a": ' + "1" * 4000 + ",") * (n // 4006) + "}",
    "spaces": lambda n: " " * n + "x",
    "spaces in braces": lambda n: ("{" + " " * 50) * (n // 51),
    "name and spaces": lambda n: "accuracy" + " " * n,
    "name, spaces, colon, spaces": lambda n: '"accuracy"' + " " * (n // 2) + ":" + " " * (n // 2),
    "names and spaces": lambda n: ("accuracy" + " " * 92) * (n // 100),
    "names and colons": lambda n: "accuracy:" * (n // 9),
    "names in quotes": lambda n: '{"accuracy": "A"}' + '"  accuracy  "  :  "  ' * (n // 22),
    "quotes and spaces": lambda n: '{"accuracy": "A"}' + ('"' + " " * 99) * (n // 100),
    "letters": lambda n: "A " * (n // 2),
    "letter and spaces": lambda n: "A" + " " * n + ".x",
    "verdicts in lines": lambda n: "accuracy: A\n" * (n // 12),
    "double brackets": lambda n: "[[A]" * (n // 4),
    "square storms": lambda n: "[" * n,
    "thinking": lambda n: "<think>" * (n // 7),
    "thought": lambda n: "</think>" * (n // 8),
    "half thinking": lambda n: "<think" * (n // 6),
    "channels": lambda n: ("<|channel|>" + " " * 89) * (n // 100),
    "underscores": lambda n: "<" + "a_" * (n // 2),
    "thinking in turns": lambda n: "<think>{</think>" * (n // 16),
    "word": lambda n: "x" * n,
    "surrogates": lambda n: '{"\ud800' * (n // 3),
    "fences": lambda n: "```json\n{" * (n // 9),
}


def seconds(parser: Parser, text: str) -> float:
    """The best of three, in processor time, without garbage collection of all other tests."""
    timer = timeit.Timer(lambda: parse_verdict(text, parser), timer=time.process_time)
    return min(timer.repeat(3, 1))


@pytest.mark.parametrize("shape", RUNAWAYS)
@pytest.mark.parametrize("parser", PARSERS)
def test_time_is_linear(parser: Parser, shape: str) -> None:
    short, long = (seconds(parser, RUNAWAYS[shape](count)) for count in (25_000, 100_000))
    assert long < 1
    assert long < 8 * max(short, 0.002)


@pytest.mark.slow
@pytest.mark.parametrize("parser", PARSERS)
def test_time_stays_linear(parser: Parser) -> None:
    for shape, make in RUNAWAYS.items():
        short, long = (seconds(parser, make(count)) for count in (100_000, 400_000))
        assert long < 8 * max(short, 0.002), shape


@pytest.mark.parametrize("shape", RUNAWAYS)
def test_short_runaways_agree_with_the_oracles(shape: str) -> None:
    for count in (0, 1, 7, 20, 60, 200):
        check(RUNAWAYS[shape](count))

"""Finds the JSON objects in a reply that name an asked dimension, in linear time.

Trying a decoder at every `{` is quadratic: in `{"a":{"a":{"a": ...` each attempt runs to the end.
Here an attempt walks the tokens with a stack, so that it settles every `{` that it meets outside
of strings, and none of these is tried again. Two attempts that overlap therefore see opposite
sides of every quote (what is a string to one is not to the other), a third would see one of these
two sides, and so no character is walked more than twice.

Beyond JSON, what cannot change a meaning is let pass: a comma before a closing bracket, and raw
line breaks and unknown escapes in strings (LaTeX in a rationale).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

START = re.compile(r'\{(?=[ \t\n\r]*+")')
TOKEN = re.compile(
    r"""[ \t\n\r]*+
    ( [{}\[\]:,]
    | "[^"\\]*+(?:\\.[^"\\]*+)*+"
    | -?[0-9]++(?:\.[0-9]++)?(?:[eE][-+]?[0-9]++)? | -?Infinity | NaN | true | false | null
    )""",
    re.DOTALL | re.VERBOSE,
)
CUT = re.compile(r'[ \t\n\r]*+(?:(")|\Z)')
"""Where no token follows: the text ends, or a string does not."""

ACCEPTED = {
    "key": '"}',
    "colon": ":",
    "value": '"0{[',
    "item": '"0{[]',
    "after value": ",}",
    "after item": ",]",
}
"""The first characters of the tokens that may come next; 0 stands for numbers and literals."""

DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class VerdictObject:
    """A complete object that names asked dimensions.

    `values` are all that it gives to each of them, in order; None for a value that is no string.
    `end` is the index after its closing bracket.
    """

    values: Mapping[str, list[str | None]]
    end: int


@dataclass(frozen=True, slots=True)
class Scan:
    """What a text holds.

    Attributes:
        verdicts: of the last outermost object that names a dimension: itself, else the objects
            nested in it that do (at most two: one is a verdict, two are an ambiguity).
        cut: whether the text ends inside an object.
    """

    verdicts: tuple[VerdictObject, ...]
    cut: bool


@dataclass(slots=True)
class _Open:
    """An object or array that is not yet closed."""

    array: bool
    expect: str
    key: str | None = None  # the asked dimension whose value comes next
    values: dict[str, list[str | None]] = field(default_factory=dict)
    nested: tuple[VerdictObject, ...] = ()  # in all that is closed inside of it
    latest: tuple[VerdictObject, ...] = ()  # in the last object of these that held any

    def add_token(self, symbol: str, token: str, names: Mapping[str, str]) -> None:
        """Takes a comma, a colon, a key or a plain value; `symbol` is its class in `ACCEPTED`."""
        if symbol == ",":
            self.expect = "item" if self.array else "key"
        elif symbol == ":":
            self.expect = "value"
        elif self.expect == "key":
            self.key, self.expect = names.get(_string(token).strip().lower()), "colon"
        else:
            self.add_value(_string(token) if symbol == '"' and self.key is not None else None)

    def add_value(self, value: str | None) -> None:
        """Takes a value: a string's content, or None for anything else."""
        if self.key is not None:
            self.values.setdefault(self.key, []).append(value)
        self.key, self.expect = None, "after item" if self.array else "after value"

    def add_closed(self, closed: _Open, verdicts: tuple[VerdictObject, ...]) -> None:
        """Takes the verdicts in an object or array that was closed inside of it."""
        self.nested = (self.nested + verdicts)[:2]
        self.latest = (closed.latest if closed.array else verdicts) or self.latest

    def close(self, end: int) -> tuple[VerdictObject, ...]:
        """Returns what it stands for: itself where it names a dimension, else what it holds."""
        return (VerdictObject(self.values, end),) if self.values else self.nested


def scan(text: str, names: Mapping[str, str]) -> Scan:
    """Finds the last outermost object that names a dimension, itself or in a nested object.

    An object inside of one that breaks off with an error stands for itself; one inside of an object
    that the end of the text cuts off does not, for what would have followed is not known.

    Args:
        text: the reply, without thinking.
        names: trimmed lower-case key to dimension.
    """
    verdicts: tuple[VerdictObject, ...] = ()
    settled: set[int] = set()
    cut = False
    start = START.search(text)
    while start:
        end = start.start() + 1
        if start.start() not in settled:
            attempt = _walk(text, start.start(), names, settled)
            verdicts, cut = attempt.verdicts or verdicts, cut or attempt.cut
            end = attempt.end or end
        start = START.search(text, end)
    return Scan(verdicts, cut)


@dataclass(frozen=True, slots=True)
class _Attempt(Scan):
    """What one object holds; `end` is the index after it, None where it is not complete."""

    end: int | None = None


def _walk(text: str, start: int, names: Mapping[str, str], settled: set[int]) -> _Attempt:
    """Reads the object that starts at `start`; adds to `settled` every `{` that it passes."""
    stack = [_Open(False, "key")]
    settled.add(start)
    position = start + 1
    while match := TOKEN.match(text, position):
        position, token = match.end(), match[1]
        symbol = token[0] if token[0] in '{}[]:,"' else "0"
        if symbol not in ACCEPTED[stack[-1].expect]:
            break
        if symbol in "}]":
            closed = stack.pop()
            verdicts = closed.close(position)
            if not stack:
                return _Attempt(verdicts, False, position)
            stack[-1].add_closed(closed, verdicts)
        elif symbol in "{[":
            stack[-1].add_value(None)
            stack.append(_Open(symbol == "[", "item" if symbol == "[" else "key"))
            if symbol == "{":
                settled.add(match.start(1))
        else:
            stack[-1].add_token(symbol, token, names)
    else:
        cut = CUT.match(text, position)
        if cut and (not cut[1] or '"' in ACCEPTED[stack[-1].expect]):
            return _Attempt((), True)
    # The innermost open bracket is the last one, so what it holds is the latest.
    return _Attempt(next((top.latest for top in reversed(stack) if top.latest), ()), False)


def _string(token: str) -> str:
    """Returns the content of a string token; as it stands where an escape is unknown."""
    if "\\" not in token:
        return token[1:-1]
    try:
        return str(DECODER.decode(token))
    except ValueError:
        return token[1:-1]

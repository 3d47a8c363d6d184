"""Our own reading of a reply: what its last complete JSON object says, and nothing else.

1. Thinking is not read (`thinking`): all up to the last closing mark; where it never ends, nothing
   is read. Marks within a complete object count as part of its strings.
2. The verdict is the last complete object that names an asked dimension (keys and values without
   regard to case and outer spaces). Prose and code fences around it do not matter.
   An object that names none is replaced by the one object nested in it, at any depth, that does;
   two of these are an ambiguity, and nothing is read.
3. A dimension is A, B or tie. One that is missing, has another value, or has two, is None; so is
   one for which an object that starts later and never ends says otherwise.
4. Where one dimension is asked for, the whole reply may also be `A`, `B` or `tie`.

The objects are found by `scan` in linear time. Trying a decoder at every `{` is quadratic: in
`{"a":{"a":{"a": ...` each attempt runs to the end. Here an attempt walks the tokens with a stack,
so that it settles every `{` that it meets outside of strings, and none of these is tried again. Two
attempts that overlap therefore see opposite sides of every quote (what is a string to one is not to
the other), a third would see one of these two sides, and so no character is walked more than twice.

Beyond JSON, what cannot change a meaning is let pass: a comma before a closing bracket, and raw
line breaks and unknown escapes in strings (LaTeX in a rationale).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medrm.parsers.parsed import Outcome, Parsed
from medrm.parsers.thinking import UNENDED, after_thinking

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
        spans: (start, end) of each complete outermost object.
    """

    verdicts: tuple[VerdictObject, ...]
    cut: bool
    spans: tuple[tuple[int, int], ...] = ()


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
    spans: list[tuple[int, int]] = []
    cut = False
    start = START.search(text)
    while start:
        end = start.start() + 1
        if start.start() not in settled:
            attempt = _walk(text, start.start(), names, settled)
            verdicts, cut = attempt.verdicts or verdicts, cut or attempt.cut
            if attempt.end is not None:
                end = attempt.end
                spans.append((start.start(), end))
        start = START.search(text, end)
    return Scan(verdicts, cut, tuple(spans))


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
                return _Attempt(verdicts, False, end=position)
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


LETTER = re.compile(r"(a|b|tie)\s*+\.?", re.IGNORECASE)
OUTCOMES: Mapping[str, Outcome] = {"a": "A", "b": "B", "tie": "tie"}
QUOTED_CHARACTERS = 20
"""Characters of a wrong value that a reason quotes."""


def parse(text: str, dimensions: Sequence[str]) -> Parsed:
    """Reads a reply by the rules above; never guesses.

    Args:
        text: the reply.
        dimensions: the names that were asked for.
    """
    reply = after_thinking(text, lambda whole: scan(whole, {}).spans)
    if reply is None:
        return Parsed(dict.fromkeys(dimensions), None, UNENDED)
    names = {name.strip().lower(): name for name in dimensions}
    scanned = scan(reply, names)
    if len(scanned.verdicts) == 1:
        return _verdict(scanned.verdicts[0], reply, names, dimensions)
    letter = LETTER.fullmatch(reply.strip())
    if letter and len(dimensions) == 1:
        return Parsed({dimensions[0]: OUTCOMES[letter[1].lower()]}, "letter")
    return Parsed(dict.fromkeys(dimensions), None, _failure(scanned, reply))


def _verdict(
    verdict: VerdictObject, reply: str, names: Mapping[str, str], dimensions: Sequence[str]
) -> Parsed:
    later = _stated_later(reply, verdict.end, names)
    outcomes: dict[str, Outcome | None] = {}
    problems: dict[str, list[str]] = {}
    for name in dimensions:
        values = verdict.values.get(name, [])
        read = [OUTCOMES.get(value.strip().lower()) if value else None for value in values]
        outcomes[name] = None
        if not values:
            problems.setdefault("missing", []).append(name)
        elif len(set(read)) > 1:
            problems.setdefault("more than one value", []).append(name)
        elif read[0] is None:
            problems.setdefault("not A, B or tie", []).append(f"{name} ({_quoted(values[0])})")
        elif later.get(name, set()) - {read[0]}:
            problems.setdefault("an unfinished object says otherwise", []).append(name)
        else:
            outcomes[name] = read[0]
    reason = "; ".join(
        f"{problem}: {', '.join(affected)}" for problem, affected in problems.items()
    )
    return Parsed(outcomes, "json", reason or None)


def _stated_later(reply: str, end: int, names: Mapping[str, str]) -> dict[str, set[Outcome]]:
    """What the reply still says about dimensions after the verdict, where no object is complete.

    A judge that repeats itself until it is cut off agrees with itself; one that changes its mind
    does not.
    """
    written = {json.dumps(key, ensure_ascii=False)[1:-1]: name for key, name in names.items()}
    keys = "|".join(map(re.escape, written))
    pair = re.compile(rf'"\s*+({keys})\s*+"\s*+:\s*+"\s*+(a|b|tie)\b', re.IGNORECASE)
    stated: dict[str, set[Outcome]] = {}
    for match in pair.finditer(reply, end):
        name = written.get(match[1].lower())
        if name is not None:
            stated.setdefault(name, set()).add(OUTCOMES[match[2].lower()])
    return stated


def _quoted(value: str | None) -> str:
    """A wrong value in short, without control characters."""
    if value is None:
        return "no string"
    return ascii(value[:QUOTED_CHARACTERS] + ("..." if len(value) > QUOTED_CHARACTERS else ""))


def _failure(scanned: Scan, reply: str) -> str:
    """Why no verdict was found."""
    if scanned.verdicts:
        return "several nested objects name asked dimensions"
    if scanned.cut:
        return "the JSON object is cut off"
    if "{" in reply:
        return "no complete JSON object names an asked dimension"
    return "no JSON object" if reply.strip() else "empty reply"

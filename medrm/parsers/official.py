"""The rules by which the released Med-RewardBench scorer reads a reply, bugs included.

Re-expressed from reading the public script (meidandz/Med-RewardBench, commit 9b9d806). A reply
counts on all six dimensions or is dropped; a dropped reply is wrong on all six. What the rules are
known to misread stays as it is and is marked `suspect`:

- "Assistant B" and "Answer B" are read as A, "Both" as B, an echoed "A|B" as A;
- the article "a" is read as A, also in a refusal;
- one letter is copied to all six dimensions;
- the first mention wins, also in thinking and in "inaccuracy: ...".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice

from medrm.parsers.parsed import Outcome, Parsed
from medrm.schema import DIMENSIONS

# Of the released patterns these leave out optional quotes at the ends, which change no match. The
# possessive repetitions give up nothing that could match (a space is no colon and no letter), so
# that no run of spaces is walked twice.
MENTIONS = {name: re.compile(rf'{name}"?\s*+:\s*+"?([AB])', re.IGNORECASE) for name in DIMENSIONS}
VALUE = re.compile(r"\s*+([AB])\s*+", re.IGNORECASE)
BRACKET = re.compile(r"\[\[([AB])\]\]", re.IGNORECASE)
ALONE = re.compile(r"\b([AB])\b", re.IGNORECASE)

MORE = re.compile(r'\w|"?\s*+(?:[|/]|or\b|and\b)', re.IGNORECASE)
"""After a letter: the value does not end there (`Assistant`, `Both`, `A|B`, `A or B`)."""
ARTICLE = re.compile(r"a[ \t]++\w")
"""A lower-case "a" with a word after it."""

Letters = Mapping[str, Outcome]


def parse(text: str, dimensions: Sequence[str]) -> Parsed:
    """Reads a reply as the released scorer does, which always wants its own six dimensions.

    Args:
        text: the reply.
        dimensions: which outcomes to return. One that the released scorer does not know is None.

    Returns:
        Outcomes that are all None exactly where the released scorer drops the row; then the reason
        says how many of the six were readable.
    """
    text = text.strip().strip('"')
    stated = _json_letters(text)
    if len(stated) == len(DIMENSIONS):
        return _parsed(stated, "json", dimensions)
    mentions = {
        name: matches for name in DIMENSIONS if (matches := list(MENTIONS[name].finditer(text)))
    }
    first = {name: _letter(matches[0]) for name, matches in mentions.items()}
    if len(first) == len(DIMENSIONS):
        suspect = any(_misreads(text, matches) for matches in mentions.values())
        return _parsed(first, "regex", dimensions, suspect)
    if bracket := BRACKET.search(text):
        copied = dict.fromkeys(DIMENSIONS, _letter(bracket))
        return _parsed(copied, "bracket", dimensions, True)
    alone = list(islice(ALONE.finditer(text), 2))
    if len(alone) == 1:
        return _parsed(dict.fromkeys(DIMENSIONS, _letter(alone[0])), "single", dimensions, True)
    return Parsed(dict.fromkeys(dimensions), None, _dropped(max(stated, first, key=len)))


def _json_letters(text: str) -> Letters:
    """The dimensions to which the text from its first `{` to its last `}` gives A or B."""
    if "{" in text and "}" in text:
        text = text[text.find("{") : text.rfind("}") + 1]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # no JSON; or a number too long, or nested too deeply
        return {}
    if not isinstance(value, dict):
        return {}
    stated = {name: value[name] for name in DIMENSIONS if isinstance(value.get(name), str)}
    matches = {name: VALUE.fullmatch(text) for name, text in stated.items()}
    return {name: _letter(match) for name, match in matches.items() if match}


def _letter(match: re.Match[str]) -> Outcome:
    return "A" if match[1] in "Aa" else "B"


def _misreads(text: str, matches: Sequence[re.Match[str]]) -> bool:
    """Whether the first mention of a dimension may not be its verdict."""
    if len({_letter(match) for match in matches}) > 1:
        return True
    first = matches[0]
    before = text[max(first.start() - 1, 0) : first.start()]
    return bool(
        before.isalnum()
        or before == "_"
        or MORE.match(text, first.end())
        or ARTICLE.match(text, first.start(1))
    )


def _parsed(
    letters: Letters, stage: str, dimensions: Sequence[str], suspect: bool = False
) -> Parsed:
    unknown = [name for name in dimensions if name not in letters]
    reason = f"not known to the released scorer: {', '.join(unknown)}" if unknown else None
    return Parsed({name: letters.get(name) for name in dimensions}, stage, reason, suspect)


def _dropped(readable: Letters) -> str:
    if not readable:
        return "dropped: none of 6 dimensions readable"
    missing = [name for name in DIMENSIONS if name not in readable]
    return f"dropped although {len(readable)} of 6 dimensions readable: not {', '.join(missing)}"

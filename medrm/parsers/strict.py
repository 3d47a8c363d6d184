"""Our own reading of a reply: what its last complete JSON object says, and nothing else.

1. Thinking is not read: all up to the last closing tag; where it never ends, nothing is read.
2. The verdict is the last complete object that names an asked dimension (keys and values without
   regard to case and outer spaces). Prose and code fences around it do not matter.
   An object that names none passes for the one object nested in it, at any depth, that does; two
   of these are an ambiguity, and nothing is read.
3. A dimension is A, B or tie. One that is missing, has another value, or has two, is None; so is
   one for which an object that starts later and never ends says otherwise.
4. Where one dimension is asked for, the whole reply may also be `A`, `B` or `tie`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from medrm.parsers.objects import Scan, VerdictObject, scan
from medrm.parsers.parsed import Outcome, Parsed

THINKING = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
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
    tags = list(THINKING.finditer(text))
    if tags and not tags[-1][1]:
        return Parsed(dict.fromkeys(dimensions), None, "the thinking never ends")
    reply = text[tags[-1].end() :] if tags else text
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

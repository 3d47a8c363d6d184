"""The verifiable rewards of GRPO, one number from 0 to 1 for each completion; imports no torch.

Each has the form of TRL's reward functions: completions as conversations of one turn, and lists of
the data's other columns. Letters are those that the prompt showed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from medrm.chat import rationale_letters
from medrm.parsers import parse_verdict

Completions = Sequence[Sequence[Mapping[str, Any]]]

_OBJECT = re.compile(r"^\s*\{", re.MULTILINE)


def _text(completion: Sequence[Mapping[str, Any]]) -> str:
    return str(completion[0]["content"])


def agreement(
    completions: Completions,
    dimensions: Sequence[tuple[str, ...]],
    labels: Sequence[Mapping[str, str]],
    **columns: Any,
) -> list[float]:
    """Returns the share of labelled dimensions whose letter the verdict names.

    Args:
        completions: B replies.
        dimensions: what each was asked about.
        labels: the experts' letters, of some of the dimensions.
        columns: not looked at.
    """
    rewards = []
    for completion, names, letters in zip(completions, dimensions, labels, strict=True):
        outcomes = parse_verdict(_text(completion), "strict", names).outcomes
        correct_count = sum(outcomes[name] == letter for name, letter in letters.items())
        rewards.append(correct_count / len(letters))
    return rewards


def format(
    completions: Completions,
    dimensions: Sequence[tuple[str, ...]],
    rationale: Sequence[bool],
    **columns: Any,
) -> list[float]:
    """Returns 1 where a reply is one JSON object with a letter for each dimension and no more.

    Args:
        completions: B replies.
        dimensions: what each was asked about.
        rationale: whether reasons may stand before the object.
        columns: not looked at.
    """
    return [
        float(_well_formed(_text(completion), names, reasons))
        for completion, names, reasons in zip(completions, dimensions, rationale, strict=True)
    ]


def _well_formed(text: str, dimensions: Sequence[str], rationale: bool) -> bool:
    opened = _OBJECT.search(text)
    if opened is None or (text[: opened.start()].strip() and not rationale):
        return False
    try:
        # Pairs, so that a key that stands twice is seen.
        pairs = json.loads(text[opened.start() :], object_pairs_hook=list)
    except (ValueError, RecursionError):
        return False
    names = sorted(name for name, _ in pairs)
    return names == sorted(dimensions) and all(letter in ("A", "B") for _, letter in pairs)


def consistency(
    completions: Completions, dimensions: Sequence[tuple[str, ...]], **columns: Any
) -> list[float]:
    """Returns the share of dimensions whose reasons end with the letter that the verdict names.

    Args:
        completions: B replies.
        dimensions: what each was asked about.
        columns: not looked at.
    """
    rewards = []
    for completion, names in zip(completions, dimensions, strict=True):
        text = _text(completion)
        outcomes = parse_verdict(text, "strict", names).outcomes
        reasons = rationale_letters(text, names)
        same = sum(reasons.get(name) == outcomes[name] for name in names if name in reasons)
        rewards.append(same / len(names))
    return rewards

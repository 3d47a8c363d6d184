"""Rules that make a wrong answer of a right one: declared by name, and drawn by a seed."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from random import Random
from typing import NamedTuple, TypeVar

Drawn = TypeVar("Drawn")

Rule = Callable[[str, Random], Iterator[str]]
"""Yields wrong answers in place of a right one, the first that will do counts; none: it does not
apply."""

_OPPOSITES = (
    ("yes", "no"),
    ("true", "false"),
    ("present", "absent"),
    ("positive", "negative"),
    ("normal", "abnormal"),
    ("ja", "nein"),
    ("oui", "non"),
    ("是", "否"),
    ("有", "没有"),
)
"""Whole answers."""

_SIDES = (("left", "right"), ("links", "rechts"), ("linke", "rechte"), ("左", "右"))
_PLACES = (
    ("upper", "lower"),
    ("top", "bottom"),
    ("superior", "inferior"),
    ("anterior", "posterior"),
    ("medial", "lateral"),
    ("proximal", "distal"),
)

_MODALITIES = (
    ("CT", "CT scan", "computed tomography", "computerized tomography"),
    ("MRI", "MRI scan", "magnetic resonance imaging"),
    (
        *("X-ray", "x ray", "xray", "radiograph", "radiography", "plain film"),
        *("mammography", "mammogram"),
    ),
    ("ultrasound", "ultrasonography", "sonography", "sonogram"),
    ("PET", "PET scan", "positron emission tomography"),
    ("endoscopy",),
)
"""Names of one modality, or of one that is a kind of it; by the first it takes another's place."""

_ORGANS = (
    ("brain", "head", "skull", "cerebellum", "eye", "retina"),
    ("lung", "heart", "chest", "thorax", "trachea", "aorta"),
    ("liver", "kidney", "spleen", "stomach", "pancreas", "gallbladder", "abdomen", "colon"),
    ("bladder", "prostate", "uterus", "ovary", "pelvis", "rectum"),
    ("knee", "hip", "shoulder", "wrist", "ankle", "elbow", "hand", "foot"),
)
"""Organs and parts of one region; another region's take their place, for one of the same may be
seen as well."""

_NUMBER_WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
)
_UNIT = (
    r"\s?(?:(?:[mckdµμun]?m|[dcmµμ]?l|[kmcµμun]?g|mcg|cc|mmHg|HU|[mµμ]?Gy|[mk]?Hz|kVp?|mAs?|bpm"
    r"|kcal|mmol|IU|percent|degrees?|seconds?|min|minutes?|hours?|days?|weeks?|months?|years?"
    r"|Tage?|Wochen?|Monate?|Jahre?)(?![^\W_])|[%°])"
)
_NUMBER = re.compile(rf"(?<![\w.,])\d{{1,9}}(?:\.\d{{1,6}})?(?:(?={_UNIT})|(?![\w,]|\.\d))")
_OF_UNIT = re.compile(rf"(?:\s?(?:[-x\u00d7*/]|by)\s?\d{{1,9}}(?:\.\d{{1,6}})?){{0,2}}{_UNIT}")
"""What follows a number that is a measure, which may be one of several: 2 x 3 cm."""

_LARGEST_COUNT = 20
"""A greater whole number may be a measure, of which one more is as right."""

_BOUND = re.compile(
    r"[<>\u2264\u2265]|\b(than|least|most|over|under|above|below|up to|mehr|weniger|mindestens"
    r"|höchstens|über|unter|bis)\b",
    re.IGNORECASE,
)
"""What makes a number a bound, beside which another one is as true."""

_ARTICLES = ("a", "an", "the")


def normalised(text: str) -> str:
    """Returns what answers are compared by: without case, signs and articles, numbers as digits.

    >>> normalised("The LEFT lung."), normalised("Two"), normalised("+")
    ('left lung', '2', '+')
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    plain = "".join(sign if sign.isalnum() else " " for sign in folded)
    counted = (
        str(_NUMBER_WORDS.index(word)) if word in _NUMBER_WORDS else word
        for word in plain.split()
        if word not in _ARTICLES
    )
    return " ".join(counted) or " ".join(folded.split())


def answer_type(text: str) -> str:
    """Returns whether an answer is `yes_no`, a `number`, or `text`."""
    plain = normalised(text)
    if any(plain in pair for pair in _OPPOSITES):
        return "yes_no"
    return "number" if _NUMBER.search(text) or plain.isdecimal() else "text"


def _flipped(answer: str, _: Random) -> Iterator[str]:
    plain = normalised(answer)
    for pair in _OPPOSITES:
        if plain in pair:
            yield _replaced(answer, _word(plain), _other(pair, plain))


def _changed_number(answer: str, random: Random) -> Iterator[str]:
    """Changes one number: a count by one, two or itself, a measure to half, one and a half, double.

    Numbers in words are changed where they are the whole answer, and no number that is a bound.
    """
    if _BOUND.search(answer):
        return
    word = answer.strip().lower().rstrip(".")
    if word in _NUMBER_WORDS:
        value = _NUMBER_WORDS.index(word)
        for near in _shuffled((value - 1, value + 1, value + 2), random):
            if 0 <= near < len(_NUMBER_WORDS):
                yield _replaced(answer, _word(word), _NUMBER_WORDS[near])
    numbers = list(_NUMBER.finditer(answer))
    for number in _shuffled(numbers, random):
        integer, _, decimals = number[0].partition(".")
        counts = [int(integer) + step for step in (-2, -1, 1, 2, int(integer))]
        changed = [str(count) for count in counts if count >= 0]
        has_unit = _OF_UNIT.match(answer, number.end()) is not None
        if has_unit or decimals or int(integer) > _LARGEST_COUNT:
            measures = (float(number[0]) * factor for factor in (0.5, 1.5, 2.0))
            places = len(decimals) or int(has_unit)  # half of 5 mm is 2.5 mm
            changed = [f"{measure:.{places}f}" for measure in measures]
            if not decimals:
                changed = [text.removesuffix(".0") for text in changed]
        for text in _shuffled(changed, random):
            yield answer[: number.start()] + text + answer[number.end() :]


def _shuffled(items: Sequence[Drawn], random: Random) -> list[Drawn]:
    return random.sample(items, len(items))


def _swapped(pairs: Sequence[tuple[str, str]]) -> Rule:
    """Returns the rule that replaces the words of one side of a pair by the other's."""

    def swap(answer: str, _: Random) -> Iterator[str]:
        for pair in pairs:
            there = [word for word in pair if _word(word).search(answer)]
            if len(there) == 1:
                yield _replaced(answer, _word(there[0]), _other(pair, there[0]))

    return swap


def _exchanged(groups: Sequence[Sequence[str]], *, by_first: bool) -> Rule:
    """Returns the rule that replaces the one name of a list by a name of another group.

    Args:
        groups: of names.
        by_first: whether a group is one thing, whose first name takes another's place.
    """

    def exchange(answer: str, random: Random) -> Iterator[str]:
        named = [
            (group, name) for group in groups for name in group if _word(name, "s?").search(answer)
        ]
        distinct = [  # "CT scan" names no "CT" besides
            (group, name)
            for group, name in named
            if not any(name != longer and name in longer for _, longer in named)
        ]
        if len(distinct) != 1:
            return
        ((own_group, name),) = distinct
        replacing = [
            other
            for group in groups
            if group is not own_group
            for other in (group[:1] if by_first else group)
        ]
        plural = "s" if not by_first and _word(f"{name}s").search(answer) else ""
        for other in _shuffled(replacing, random):
            yield _replaced(answer, _word(name, "s?"), other + plural)

    return exchange


def _word(word: str, ending: str = "") -> re.Pattern[str]:
    inner = re.escape(word) + ending
    return re.compile(rf"(?<!\w){inner}(?!\w)" if word.isascii() else inner, re.IGNORECASE)


def _other(pair: tuple[str, str], word: str) -> str:
    return pair[1 - pair.index(word)]


def _replaced(answer: str, pattern: re.Pattern[str], word: str) -> str:
    """Returns an answer with a word in place of what is found, in capitals where that was."""

    def cased(match: re.Match[str]) -> str:
        if len(match[0]) > 1 and match[0].isupper():
            return word.upper()
        return word[:1].upper() + word[1:] if match[0][:1].isupper() else word

    return pattern.sub(cased, answer)


RULES: dict[str, Rule] = {
    "yes_no": _flipped,
    "number": _changed_number,
    "laterality": _swapped(_SIDES),
    "position": _swapped(_PLACES),
    "modality": _exchanged(_MODALITIES, by_first=True),
    "organ": _exchanged(_ORGANS, by_first=False),
}
"""Name to rule, in the order in which they are tried."""

OTHER_IMAGE = "other_image"
"""The rule that takes the answer to the same question about another image; it needs the set."""


class Said(NamedTuple):
    """What of an answer tells whether another one may say the same.

    Attributes:
        words: as they are compared.
        modalities: that it names, as indices of their list.
    """

    words: frozenset[str]
    modalities: frozenset[int]


def said(text: str) -> Said:
    """Returns what an answer is compared by."""
    modalities = (
        number
        for number, group in enumerate(_MODALITIES)
        if any(_word(name, "s?").search(text) for name in group)
    )
    return Said(frozenset(normalised(text).split()), frozenset(modalities))


def may_agree(answer: Said, reference: Said) -> bool:
    """Returns whether one answer may say what another does, in more or fewer or other words.

    >>> may_agree(said("a small mass"), said("mass"))
    True
    >>> may_agree(said("CT scan"), said("computed tomography"))
    True
    >>> may_agree(said("yes"), said("no"))
    False
    """
    return (
        answer.words <= reference.words
        or reference.words <= answer.words
        or not answer.modalities.isdisjoint(reference.modalities)
    )


def wrong_answer(rule: str, answer: str, references: Collection[str], random: Random) -> str | None:
    """Returns a wrong answer that a rule makes of a right one; None: it makes none.

    Args:
        rule: a name in `RULES`.
        answer: that is right.
        references: all that are right, normalised; none of them is returned.
        random: decides among several.
    """
    for candidate in RULES[rule](answer, random):
        if candidate.strip() and normalised(candidate) not in references:
            return candidate.strip()
    return None

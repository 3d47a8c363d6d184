"""What the values of votes mean, in words and signs, in German and English."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from medrm.exchange.sheet_words import ANSWER_WORDS, SIDES, answer_side, plain
from medrm.exchange.tables.grid import number_of

_OPPOSITE = {"a": "b", "b": "a", "left": "right", "right": "left"}
_STRENGTHS = {
    **dict.fromkeys(
        ("viel", "deutlich", "much", "strongly", "klar", "clearly", "stark"), "strongly"
    ),
    **dict.fromkeys(("etwas", "leicht", "slightly", "eher", "somewhat", "weakly"), "slightly"),
}
_WORSE = frozenset(("schlechter", "worse"))
_FILLING_WORD = re.compile(
    f"{ANSWER_WORDS}|besser|better|bessere|ist|is|die|der|das|the|gewinnt|wins|bevorzugt|preferred"
    "|prefer|seite|side|nr|no|auf|on|winner|gewinner|sieger"
)
_MEANINGS = {
    "tie": "tie|gleich|unentschieden|equal|same|gleichwertig|egal|draw|gleich gut|beide gleich"
    "|remis|both|beide gleich gut|both equal|both equally good|equally good|keine praeferenz"
    "|no preference|beide|about the same|kein unterschied|no difference|both good|beide gut",
    "neither": "neither|keine|keiner|keines|keine von beiden|keiner von beiden|beide unbrauchbar"
    "|beide schlecht|both ?bad|tie both ?bad|both unacceptable|both unusable|beide falsch"
    "|both wrong|weder noch|beide inakzeptabel|unbrauchbar|neither acceptable",
    "none": "n a|na|k a|keine angabe|nicht beurteilbar|not assessable|nb|nan|none given|entfaellt",
}
"""What a whole value means, to a pattern of it, as `plain` gives it."""

_SIGNS = str.maketrans(
    {"\u2265": ">=", "\u2264": "<=", "\u226b": ">>", "\u226a": "<<", "\u2248": "="}
)
_COMPARED = re.compile("([^<>=~]+)(>=|<=|>{1,3}|<{1,3}|={1,2}|~)([^<>=~]+)")
_MARKED = re.compile(r"([^+]+)(\+{1,3})")
_OTHER_SIGNS = re.compile(r"[<>+]|^-|-$")
_TIES = ("=", "==", "~")
_NOTHING = ("-", "--", "\u2013", "/")


class Side(NamedTuple):
    """An answer that a text names, and how strongly it is preferred (empty: nothing is said)."""

    side: str
    strength: str = ""

    @property
    def meaning(self) -> str:
        """The value of such a vote in a mapping."""
        if self.strength:
            return f"{self.strength}_{self.side}"
        return self.side.upper() if self.side in ("a", "b") else self.side


class _Signed(NamedTuple):
    """An answer that signs prefer, whose strength depends on the other signs in the file.

    Attributes:
        side: of the answer.
        level: 0 of `A >= B`, 1 of `A > B` and `A+`, 2 of `A >> B` and `A++`, and so on.
        is_marked: whether it is written as `A+`.
    """

    side: str
    level: int
    is_marked: bool = False


def meaning_of(text: str) -> str | None:
    """Returns what a value of a vote means, as a mapping writes it; None where that is not known.

    >>> [meaning_of(text) for text in ("Modell 1", "rechts", "B viel besser", "=", "A > B", "3")]
    ['A', 'right', 'strongly_b', 'tie', 'A', None]
    """
    return meanings_of([text])[text]


def meanings_of(texts: Iterable[str]) -> dict[str, str | None]:
    """Returns what the values of the votes of one file mean; None where that is not known.

    How strong a sign is depends on the others, and what a number is: 1 and 2 are answers, unless
    there are more of them, which are a scale.

    >>> meanings_of(["A > B", "A >> B"]), meanings_of(["1", "2", "3"])
    ({'A > B': 'slightly_a', 'A >> B': 'strongly_a'}, {'1': None, '2': None, '3': None})
    """
    held = {text: _held_by(text.strip()) for text in texts}
    signed = [value for value in held.values() if isinstance(value, _Signed)]
    words = {value for value in held.values() if isinstance(value, str)}
    levels = {value.level for value in signed}
    levels |= {0} if any(word.startswith("slightly") for word in words) else set()
    levels |= {2} if any(word.startswith("strongly") for word in words) else set()
    # A beside A+ is the weaker vote; beside A+ and A++ it is not known what it is.
    has_plain = bool(words & {"A", "B", "left", "right"})
    marks = {value.level for value in signed if value.is_marked} if has_plain else set()
    is_scale = any(number_of(text) is not None and held[text] is None for text in held)
    has_signs = any(text.strip() and not text.strip("+ ") for text in held)

    def meaning(text: str) -> str | None:
        value = held[text]
        if isinstance(value, _Signed):
            if value.is_marked and marks:
                return Side(value.side, "strongly").meaning if marks == {1} else None
            return _meaning_of_sign(value, levels)
        is_step = is_scale and number_of(text) is not None
        is_minus = has_signs and text.strip() in _NOTHING
        return None if is_step or is_minus else value

    return {text: meaning(text) for text in held}


def _meaning_of_sign(signed: _Signed, levels: Collection[int]) -> str | None:
    """Returns what a sign means among the levels of strength that occur; None: that is not known.

    A bare `>` is slight where a stronger sign stands in the file, and a plain vote where none does.
    """
    level, strongest = signed.level, max(levels)
    is_known = strongest > 0 if level == 0 else len(levels) < 4 or level == strongest
    strength = "strongly" if level == strongest and level > 1 else ""
    if level == 0 or (level == 1 and strongest > 1 and 0 not in levels):
        strength = "slightly"
    return Side(signed.side, strength).meaning if is_known else None


def _held_by(text: str) -> str | _Signed | None:
    """Returns what a value means by itself; None: that is not known."""
    signs = text.translate(_SIGNS)
    if signs in _TIES:
        return "tie"
    if text in _NOTHING:
        return "none"
    if number_of(text) is not None:
        return {"1": "A", "2": "B"}.get(text)
    words = plain(text)
    for meaning, pattern in _MEANINGS.items():
        if re.fullmatch(pattern, words):
            return meaning
    if marked := _MARKED.fullmatch(text):
        side = answer_side(marked[1])
        return _Signed(side, len(marked[2]), is_marked=True) if side else None
    if compared := _COMPARED.fullmatch(signs):
        return _compared(answer_side(compared[1]), compared[2], answer_side(compared[3]))
    return None if _OTHER_SIGNS.search(text) else _named_side(words.split())


def _compared(first: str | None, sign: str, second: str | None) -> str | _Signed | None:
    if first is None or second is None or second != _OPPOSITE[first]:
        return None
    if sign in _TIES:
        return "tie"
    level = 0 if sign.endswith("=") else len(sign)
    return _Signed(first if sign[0] == ">" else second, level)


def _named_side(words: list[str]) -> str | None:
    strengths = {_STRENGTHS[word] for word in words if word in _STRENGTHS}
    sides = {SIDES[word] for word in words if word in SIDES}
    others = {*words} - {*_STRENGTHS} - {*SIDES} - _WORSE
    others = {word for word in others if not _FILLING_WORD.fullmatch(word)}
    if len(sides) != 1 or len(strengths) > 1 or others:
        return None
    side = sides.pop()
    return Side(_OPPOSITE[side] if _WORSE & {*words} else side, *strengths).meaning

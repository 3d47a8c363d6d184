"""From labelled cases to what a judge should reply: one row for each call, in both orders.

What was learned stands in the stored frame until a row shows it, so that the two orders of a case
say the same and position says nothing. Imports no torch.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from medrm.chat import JudgePrompt
from medrm.schema import ORDERS, Case, Order, PairLabel

logger = logging.getLogger(__name__)

LabelRule = Literal["majority", "plurality", "sampled"]
"""Which labels are learned, and as what; `learned_answer` explains."""

Rationales = Mapping[str, Mapping[str, str]]
"""Case id to dimension to a sentence, which calls the stored answers Answer A and Answer B."""

_NAMED = re.compile(r"\b([Aa]nswer )([AB])\b")
_OTHER = {"A": "B", "B": "A"}


class Reply(NamedTuple):
    """A verdict, and the letters in it that are not learned (first character and last + 1)."""

    text: str
    unlearned: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class VerdictRow:
    """One call of a judge, and the letters that it should reply.

    Attributes:
        case: of two answers.
        order: in which they are shown.
        letters: of every dimension that the call asks about, as shown.
        learned: the dimensions whose letter the experts gave; the other letters are fillers.
        sentences: dimension to what is said of it before the verdict, as shown.
    """

    case: Case
    order: Order
    letters: Mapping[str, str]
    learned: tuple[str, ...]
    sentences: Mapping[str, str] = field(default_factory=dict)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """What the call asks about."""
        return tuple(self.letters)

    def shown(self, answers: tuple[str, ...]) -> tuple[str, str]:
        """Returns the case's two answers in the order of the row."""
        first, second = answers if self.order == "forward" else answers[::-1]
        return first, second

    def reply(self, prompt: JudgePrompt, flipped: Collection[str] = ()) -> Reply:
        """Returns the verdict, wrong in the dimensions `flipped`.

        With a prompt that asks for reasons each dimension has a line of its own before the verdict,
        which names the same letter.
        """
        letters = {
            name: _OTHER[letter] if name in flipped else letter
            for name, letter in self.letters.items()
        }
        reasons, places = "", []
        if prompt.rationale:
            for name, letter in letters.items():
                words = [f"{name}:", *filter(None, [self.sentences.get(name)]), f"better: {letter}"]
                reasons += ("\n" if reasons else "") + " ".join(words)
                places.append((name, (len(reasons) - len(letter), len(reasons))))
        verdict = prompt.verdict(letters, reasons or None)
        places += verdict.letters.items()
        return Reply(
            verdict.text, tuple(place for name, place in places if name not in self.learned)
        )


def _draw(*parts: str) -> int:
    """Returns a number below 2^256 that depends on the parts alone."""
    return int(hashlib.sha256("\0".join(parts).encode()).hexdigest(), 16)


def learned_answer(case: Case, dimension: str, rule: LabelRule) -> int | None:
    """Returns which stored answer is learned to be better, 0 or 1; None: nothing is learned.

    Args:
        case: any; one of other than two answers teaches a judge of pairs nothing.
        dimension: labelled or not.
        rule: "majority": what more than half of the votes name; "plurality": what more votes name,
            ties aside; "sampled": drawn with the share of its votes, a tie being half a vote for
            either, by the SHA-256 of case and dimension.
    """
    label = case.labels.get(dimension)
    if not isinstance(label, PairLabel) or len(case.answers) != 2:
        return None
    first, tie, second = label.shares
    if rule == "majority":
        return label.choice if isinstance(label.choice, int) else None
    if rule == "plurality":
        return None if first == second else int(second > first)
    return int(_draw("sampled", case.case_id, dimension) / 2**256 >= first + tie / 2)


def filler_answer(case: Case, dimension: str) -> int:
    """Returns the answer that is named where nothing is learned, so that the JSON is complete."""
    return _draw(case.case_id, dimension) % 2


def drawn_dimension(row: VerdictRow) -> str:
    """Returns one learned dimension of a row, the same in both orders."""
    return row.learned[_draw("flip", row.case.case_id, *row.dimensions) % len(row.learned)]


def verdict_rows(
    cases: Sequence[Case],
    dimensions: Sequence[str],
    prompt: JudgePrompt,
    rule: LabelRule,
    rationales: Rationales | None = None,
) -> list[VerdictRow]:
    """Returns the rows of all cases: both orders of every call about which something is learned.

    Args:
        cases: any; those that teach nothing have no row.
        dimensions: what the judge is asked about.
        prompt: which calls a case has.
        rule: what is learned of a label.
        rationales: reasons to write first; of learned dimensions alone, since only there do the
            experts' letter and the sentence speak of the same.
    """
    rows = []
    for case in cases:
        answers = {name: learned_answer(case, name, rule) for name in dimensions}
        for order in ORDERS:
            for asked in prompt.asked(dimensions):
                names = tuple(dimensions) if asked is None else (asked,)
                learned = tuple(name for name in names if answers[name] is not None)
                if not learned:
                    continue
                letters = {}
                for name in names:
                    answer = answers[name]
                    letters[name] = _letter(filler_answer(case, name) if answer is None else answer)
                sentences = {
                    name: sentence
                    for name, sentence in (rationales or {}).get(case.case_id, {}).items()
                    if name in learned
                }
                if order == "reversed":
                    letters = {name: _OTHER[letter] for name, letter in letters.items()}
                    sentences = {name: _swapped(text) for name, text in sentences.items()}
                rows.append(VerdictRow(case, order, letters, learned, sentences))
    return rows


def _letter(answer: int) -> str:
    return "AB"[answer]


def _swapped(sentence: str) -> str:
    return _NAMED.sub(lambda found: found[1] + _OTHER[found[2]], sentence)


def report_unlearned(cases: Sequence[Case], rows: Sequence[VerdictRow], rule: LabelRule) -> None:
    """Warns of cases that teach nothing."""
    unlearned = len({case.case_id for case in cases} - {row.case.case_id for row in rows})
    if unlearned:
        logger.warning(
            "%d of %d cases carry no label to learn from (label_rule %s; two answers each)",
            unlearned, len(cases), rule,
        )  # fmt: skip

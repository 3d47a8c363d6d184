"""From labelled cases to what a judge should reply, and the rewards of what it replied.

There is one example for each call, in both orders. Which stored answer is learned to be better is
decided once for a case and dimension, before any order; only then is it written as the letter under
which an order shows that answer. So the two orders of a case name the same answer and position says
nothing. Where the prompt asks for reasons, a file of rationales has them.

The verifiable rewards of GRPO are one number from 0 to 1 for each completion. Each has the form of
TRL's reward functions: completions as conversations of one turn, and lists of the data's other
columns. Letters are those that the prompt showed. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medrm.chat import JudgePrompt, rationale_letters
from medrm.data.row_tables import JsonLines
from medrm.errors import DataError, refuse
from medrm.parsers import parse_verdict
from medrm.schema import ORDERS, Case, Order, PairLabel

logger = logging.getLogger(__name__)

_FORM = '{"case_id": "...", "rationale": {"accuracy": "a sentence"}}'


LabelRule = Literal["majority", "plurality", "sampled"]
"""Which labels are learned, and as what; `learned_answer` explains."""

Rationales = Mapping[str, Mapping[str, str]]
"""Case id to dimension to a sentence, which calls the stored answers Answer A and Answer B."""

Completions = Sequence[Sequence[Mapping[str, Any]]]

_ANSWER_NAME = re.compile(r"\b([Aa]nswer )([AB])\b")

_OBJECT = re.compile(r"^\s*\{", re.MULTILINE)
_OTHER = {"A": "B", "B": "A"}


def read_rationales(
    path: Path, dimensions: Collection[str], case_ids: Collection[str]
) -> Rationales:
    """Returns case id to dimension to a sentence, of the cases that are learned from.

    Sentences call the stored answers Answer A and Answer B and name no verdict: that is added.

    Args:
        path: JSONL, one line for each case: `case_id`, and `rationale`, dimension to a sentence.
        dimensions: those that are learned; sentences about others are left out.
        case_ids: of training and development; other lines are counted, and left out.

    Raises:
        DataError: the file cannot be read; every line that is not as it should be.
    """
    rationales: dict[str, Mapping[str, str]] = {}
    problems: list[str] = []
    try:
        records = list(JsonLines(path, problems))
    except OSError as error:
        raise DataError(
            f"rationales {path} cannot be read: {error}. Give a JSONL file of lines like {_FORM}."
        ) from error
    for line_name, record in records:
        if problem := _problem(record, rationales):
            problems.append(f"{line_name}: {problem}")
        else:
            rationales[record["case_id"]] = record["rationale"]
    refuse(problems, f"Rationales {path} have problems; a line is like {_FORM}.", DataError)
    if unknown := len(rationales.keys() - set(case_ids)):
        message = "%d of %d rationales belong to no training or development case"
        logger.warning(message, unknown, len(rationales))
    return {
        case_id: {name: text.strip() for name, text in sentences.items() if name in dimensions}
        for case_id, sentences in rationales.items()
        if case_id in case_ids
    }


def _problem(record: Mapping[str, Any], earlier: Collection[str]) -> str:
    """Returns what is wrong with the object of one line, after cases of earlier ones, or ""."""
    if record.keys() != {"case_id", "rationale"}:
        return "not an object with the keys case_id and rationale"
    if not isinstance(record["case_id"], str) or not isinstance(record["rationale"], dict):
        return "case_id is no text, or rationale no object"
    for name, sentence in record["rationale"].items():
        if not isinstance(sentence, str) or not sentence.strip():
            return f"{name}: {sentence!r} is no sentence"
        if len(sentence.splitlines()) > 1 or "better:" in sentence:
            return f"{name}: a sentence is one line without 'better:'"
    return f"case {record['case_id']!r} stands twice" if record["case_id"] in earlier else ""


class TargetReply(NamedTuple):
    """A verdict, and the letters in it that are not learned (first character and last + 1)."""

    text: str
    unlearned: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class JudgeExample:
    """One call of a judge, and the letters that it should reply.

    Attributes:
        case: of two answers.
        order: in which they are shown.
        letters: of every dimension that the call asks about, as shown.
        learned: the dimensions whose letter the experts gave; the other letters are fillers.
        sentences: dimension to its rationale, as shown, which stands before the verdict.
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
        """Returns the case's two answers in the order of the call."""
        first, second = answers if self.order == "forward" else answers[::-1]
        return first, second

    def reply(self, prompt: JudgePrompt, flipped: Collection[str] = ()) -> TargetReply:
        """Returns the verdict, wrong in the dimensions `flipped`.

        With a prompt that asks for rationales each dimension has a line before the verdict, which
        ends with the same letter.
        """
        letters = {
            name: _OTHER[letter] if name in flipped else letter
            for name, letter in self.letters.items()
        }
        rationale, spans = "", []
        if prompt.rationale:
            for name, letter in letters.items():
                sentence = f"{self.sentences[name]} " if name in self.sentences else ""
                rationale += "\n" if rationale else ""
                rationale += f"{name}: {sentence}better: {letter}"
                spans.append((name, (len(rationale) - len(letter), len(rationale))))
        verdict = prompt.verdict(letters, rationale or None)
        spans += verdict.letters.items()
        return TargetReply(
            verdict.text, tuple(span for name, span in spans if name not in self.learned)
        )


def _hash_number(*texts: str) -> int:
    """Returns a number below 2^256 that depends on the texts alone."""
    return int(hashlib.sha256("\0".join(texts).encode()).hexdigest(), 16)


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
    if not isinstance(label, PairLabel) or label.unacceptable or len(case.answers) != 2:
        return None
    first, tie, second = label.shares
    if rule == "majority":
        return label.choice if isinstance(label.choice, int) else None
    if rule == "plurality":
        return None if first == second else int(second > first)
    return int(_hash_number("sampled", case.case_id, dimension) / 2**256 >= first + tie / 2)


def filler_answer(case: Case, dimension: str) -> int:
    """Returns the answer that is named where nothing is learned, so that the JSON is complete."""
    return _hash_number(case.case_id, dimension) % 2


def drawn_dimension(example: JudgeExample) -> str:
    """Returns one learned dimension of an example, the same in both orders."""
    number = _hash_number("flip", example.case.case_id, *example.dimensions)
    return example.learned[number % len(example.learned)]


def judge_examples(
    cases: Sequence[Case],
    dimensions: Sequence[str],
    prompt: JudgePrompt,
    rule: LabelRule,
    rationales: Rationales | None = None,
) -> list[JudgeExample]:
    """Returns the examples of all cases: both orders of every call that teaches something.

    Args:
        cases: any; those that teach nothing have no example.
        dimensions: what the judge is asked about.
        prompt: which calls a case has.
        rule: what is learned of a label.
        rationales: sentences to write first; of learned dimensions alone, since only there do the
            experts' letter and the sentence speak of the same.
    """
    examples = []
    for case in cases:
        answers = {name: learned_answer(case, name, rule) for name in dimensions}
        learned = {name: answer for name, answer in answers.items() if answer is not None}
        sentences = (rationales or {}).get(case.case_id, {})
        for order in ORDERS:
            for dimension in prompt.dimensions_per_call(dimensions):
                names = dimensions if dimension is None else (dimension,)
                if not learned.keys().isdisjoint(names):
                    examples.append(_example(case, order, names, learned, sentences))
    return examples


def _example(
    case: Case,
    order: Order,
    dimensions: Sequence[str],
    answers: Mapping[str, int],
    sentences: Mapping[str, str],
) -> JudgeExample:
    """Returns one call about `dimensions`, of which those in `answers` are learned."""
    # The letters under which this order shows the first and the second stored answer.
    letter_of = "AB" if order == "forward" else "BA"
    letters = {
        name: letter_of[answers[name] if name in answers else filler_answer(case, name)]
        for name in dimensions
    }
    learned = tuple(name for name in dimensions if name in answers)
    shown_sentences = {
        name: sentence if order == "forward" else _with_letters_swapped(sentence)
        for name, sentence in sentences.items()
        if name in learned
    }
    return JudgeExample(case, order, letters, learned, shown_sentences)


def _with_letters_swapped(sentence: str) -> str:
    return _ANSWER_NAME.sub(lambda match: match[1] + _OTHER[match[2]], sentence)


def _text(completion: Sequence[Mapping[str, Any]]) -> str:
    return str(completion[0]["content"])


def _outcomes(completion: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Mapping[str, Any]:
    return parse_verdict(_text(completion), "strict", names).outcomes


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
    return [
        sum(outcomes[name] == letter for name, letter in letters.items()) / len(letters)
        for outcomes, letters in zip(map(_outcomes, completions, dimensions), labels, strict=True)
    ]


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
        reasons = rationale_letters(_text(completion), names)
        outcomes = _outcomes(completion, names)
        rewards.append(sum(outcomes[n] == letter for n, letter in reasons.items()) / len(names))
    return rewards

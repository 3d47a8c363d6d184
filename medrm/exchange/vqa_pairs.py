"""Pairs from questions with one reference answer each: that answer, and a wrong one by a rule."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

from medrm.data.readers.votes_jsonl import GROUPS, INDEPENDENT
from medrm.data.row_tables import Row
from medrm.errors import ConfigError, nearest, shortened
from medrm.exchange.imported import Imported, Importer, Opened, unread
from medrm.exchange.wrong_answers import (
    OTHER_IMAGE,
    RULES,
    Said,
    answer_type,
    may_agree,
    normalised,
    said,
    wrong_answer,
)

DIMENSION = "accuracy"
"""What a wrong answer is worse in; of other qualities it says nothing."""

RULE_NAMES = (*RULES, OTHER_IMAGE)

DERIVED = "derived:"
"""What stands before a rule's name as the annotator and the source of its pairs."""

_NAMES = {
    "question": ("question", "query", "prompt"),
    "answer": ("answer", "reference_answer", "gt_answer", "answers", "label"),
    "image": ("image", "images", "image_name", "img_name", "image_path", "img_path", "figure_path"),
    "id": ("case_id", "question_id", "qid", "id"),
}
"""What is looked for, and the names of columns that it goes by, in any case."""

_MOST_ANSWERS = 4096
"""Answers to one question among which one is drawn."""

_MOST_QUESTIONS = 256
"""Of which what tells their answers apart is kept."""


@dataclass(frozen=True)
class VqaSettings:
    """How pairs are made.

    Attributes:
        columns: question, answer, image and id to the column that the user names.
        without_images: whether the questions are about no images.
        rules: names in `RULE_NAMES`; the first that makes a wrong answer counts.
        seed: same seed and same file, same pairs.
    """

    columns: dict[str, str | None]
    without_images: bool
    rules: Sequence[str]
    seed: int


def vqa_importer(settings: VqaSettings) -> Importer:
    """Returns what makes pairs of the rows of a file."""
    return Importer("vqa", lambda opened: True, lambda opened: _pairs(opened, settings))


@dataclass(frozen=True)
class _Query:
    """What a row asks: the text, its answer and the image as it is written."""

    question: str
    answer: str
    image: Any

    @property
    def about(self) -> bytes:
        """A digest of question and image."""
        digest = hashlib.sha256(normalised(self.question).encode())
        image_bytes = self.image if isinstance(self.image, bytes) else repr(self.image).encode()
        digest.update(hashlib.sha256(image_bytes).digest())
        return digest.digest()[:16]


@dataclass
class _RightAnswers:
    """All right answers of a file.

    Attributes:
        to: a question, normalised, to its answers: normalised to as it is written.
        about: a question and an image to its answers, normalised.
        ids_repeat: whether rows have one id.
    """

    to: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    about: dict[bytes, set[str]] = field(default_factory=lambda: defaultdict(set))
    ids_repeat: bool = False

    def __post_init__(self) -> None:
        self.by_type = lru_cache(maxsize=_MOST_QUESTIONS)(self._by_type)

    def _by_type(self, question: str) -> dict[str, list[tuple[str, Said]]]:
        """Returns the answers to a question, sorted, by their type, with what tells them apart."""
        answers: dict[str, list[tuple[str, Said]]] = defaultdict(list)
        for text in sorted(self.to[question].values()):
            answers[answer_type(text)].append((text, said(text)))
        return answers


def _pairs(opened: Opened, settings: VqaSettings) -> Imported:
    columns = _find_columns(opened.columns, settings)
    answers = _all_answers(opened, columns)
    imported = Imported(iter(()), settings={"columns": columns, "seed": settings.seed})
    imported.settings["rules"] = list(settings.rules)
    if answers.ids_repeat:
        imported.notes.append(
            f"the ids in {columns['id']!r} repeat; rows have their location as id"
        )
        columns = columns | {"id": None}
    imported.lines = _lines(opened, columns, settings, answers, imported)
    return imported


def _find_columns(stated: Collection[str], settings: VqaSettings) -> dict[str, str | None]:
    """Returns the column of each thing that is looked for.

    Raises:
        ConfigError: one is not there.
    """
    columns: dict[str, str | None] = {}
    by_name = {name.strip().lower(): name for name in reversed(list(stated))}
    for sought, names in _NAMES.items():
        column = settings.columns.get(sought)
        if column is not None and column not in stated:
            raise ConfigError(
                f"--{sought}_column {column!r} is no column of the file; there are "
                f"{', '.join(stated)}.{nearest(column, stated)}"
            )
        columns[sought] = column or next((by_name[n] for n in names if n in by_name), None)
    if settings.without_images:
        columns["image"] = None
    missing = [
        sought
        for sought in ("question", "answer", "image")
        if columns[sought] is None and not (sought == "image" and settings.without_images)
    ]
    if missing:
        options = " and ".join(f"--{sought}_column" for sought in missing)
        no_images = ", or --without_images" if "image" in missing else ""
        raise ConfigError(
            f"No column of the file is known as {' or '.join(missing)}; there are "
            f"{', '.join(stated)}. Name it by {options}{no_images}."
        )
    return columns


def _all_answers(opened: Opened, columns: dict[str, str | None]) -> _RightAnswers:
    answers, ids = _RightAnswers(), set()
    for _, row in opened.records:
        if columns["id"] is not None:
            identity = hash(str(row.get(columns["id"])))
            answers.ids_repeat |= identity in ids
            ids.add(identity)
        query = _query_of(row, columns)
        if isinstance(query, _Query):
            plain = normalised(query.answer)
            answers.about[query.about].add(plain)
            to_question = answers.to[normalised(query.question)]
            if len(to_question) < _MOST_ANSWERS:
                to_question.setdefault(plain, query.answer)
    return answers


def _query_of(row: Row, columns: dict[str, str | None]) -> _Query | str:
    """Returns what a row asks, or why it is not taken."""
    question, answer = row.get(str(columns["question"])), row.get(str(columns["answer"]))
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, list):
        return f"it has {len(answer)} reference answers; accepted is one"
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = f"{answer:g}"
    for name, text in (("question", question), ("answer", answer)):
        if not isinstance(text, str) or not text.strip():
            return f"its {name} is {shortened(repr(text))}; give text"
    image = row.get(columns["image"]) if columns["image"] is not None else None
    if isinstance(image, list) and len(image) == 1:
        image = image[0]
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if columns["image"] is not None and not (isinstance(image, str | bytes) and image):
        return f"its image is {shortened(repr(image))}; give one path, data URL or stored image"
    return _Query(str(question).strip(), str(answer).strip(), image)


def _lines(
    opened: Opened,
    columns: dict[str, str | None],
    settings: VqaSettings,
    answers: _RightAnswers,
    imported: Imported,
) -> Iterator[tuple[str, Row]]:
    for location, row in opened.records:
        query = _query_of(row, columns)
        if isinstance(query, str):
            imported.unread.append(unread(location, query, row))
            continue
        stated = row.get(columns["id"]) if columns["id"] is not None else None
        case_id = location.replace(" ", "-") if stated in (None, "") else str(stated)
        random = Random(f"{settings.seed} {case_id}")
        rule, negative = _negative(query, answers, settings.rules, random)
        if negative is None:
            answer = shortened(repr(query.answer))
            reason = f"no rule makes of {answer} what is no answer to it in the file"
            imported.unread.append(unread(location, reason, row))
            continue
        yield location, _line(case_id, query, negative, rule, row, columns, random.random() < 0.5)


def _negative(
    query: _Query, answers: _RightAnswers, rules: Sequence[str], random: Random
) -> tuple[str, str | None]:
    """Returns the rule that makes a wrong answer, and that answer; None: no rule does."""
    references = answers.about[query.about]
    for rule in rules:
        negative = (
            wrong_answer(rule, query.answer, references, random)
            if rule != OTHER_IMAGE
            else _of_another_image(query, answers, references, random)
        )
        if negative is not None:
            return rule, negative
    return "", None


def _of_another_image(
    query: _Query, answers: _RightAnswers, references: Collection[str], random: Random
) -> str | None:
    of_type = answers.by_type(normalised(query.question))[answer_type(query.answer)]
    right = list(map(said, references))
    alike = [text for text, stated in of_type if not any(may_agree(stated, each) for each in right)]
    return random.choice(alike) if alike else None


def _line(
    case_id: str,
    query: _Query,
    negative: str,
    rule: str,
    row: Row,
    columns: dict[str, str | None],
    right_first: bool,
) -> Row:
    pair = (query.answer, negative) if right_first else (negative, query.answer)
    derived = f"{DERIVED}{rule}"
    groups = {key: row[key] for key in (*GROUPS, *INDEPENDENT) if key in row and key != "source"}
    used = {*columns.values(), *groups}
    extra = {
        key: cell
        for key, cell in row.items()
        if key not in used and isinstance(cell, str | int | float)
    }
    return {
        "case_id": case_id,
        "images": [] if query.image is None else [query.image],
        "question": query.question,
        "answer_a": pair[0],
        "answer_b": pair[1],
        "annotator": derived,
        "votes": {DIMENSION: "A" if right_first else "B"},
        "source": derived,
        **groups,
        **({"extra": extra} if extra else {}),
    }

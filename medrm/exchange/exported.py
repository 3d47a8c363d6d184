"""What exporters are given, and how they count what their form cannot carry."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medrm.config.option import option
from medrm.data.sources import CaseDraft
from medrm.exchange.case_files import ImageCopies
from medrm.files import write_atomically

_EXAMPLES = 20
"""Cases that the report names for each reason."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How cases are written for another program."""

    dimensions: list[str] = option(
        [], "dimensions to ask about or to write rows of (default: all that are voted on)"
    )
    seed: int = option(0, "label_studio, sheet: draws the order in which answers are shown")
    embed_images: bool = option(
        False, "label_studio: images inside tasks.json in place of files beside it"
    )
    table: Literal["xlsx", "ods", "csv"] = option("xlsx", "sheet: the form of the table")
    annotator: str | None = option(None, "sheet: name of the reader that the rows are for")
    with_votes: bool = option(
        False, "sheet: a row for each reader with the votes so far, in place of empty rows for one"
    )


class CaseFacts(NamedTuple):
    """What an exporter must know of all cases before it writes the first.

    Attributes:
        cases: their number.
        answers: how many answers a case has: each number that occurs, in order.
        images: the least and the largest number of a case's images.
        has_context: whether some question goes on a conversation.
        dimensions: that some vote is about.
    """

    cases: int
    answers: tuple[int, ...]
    images: tuple[int, int]
    has_context: bool
    dimensions: tuple[str, ...]


def facts_of(drafts: Iterable[CaseDraft]) -> CaseFacts:
    """Returns what is known of cases once all were read."""
    answers: set[int] = set()
    images: set[int] = set()
    dimensions: dict[str, None] = {}
    count, has_context = 0, False
    for draft in drafts:
        count += 1
        answers.add(len(draft.answers))
        images.add(len(draft.images))
        dimensions |= dict.fromkeys(draft.votes)
        has_context |= bool(draft.context)
    extent = (min(images), max(images)) if images else (0, 0)
    return CaseFacts(count, tuple(sorted(answers)), extent, has_context, tuple(dimensions))


@dataclass
class Export:
    """One export: what is written, where, and what is left out.

    Attributes:
        name: of the set.
        folder: a draft of the output.
        cases: returns the chosen cases, as often as it is asked.
        facts: of these cases.
        dimensions: that are asked about, or that rows are written of.
        options: of the command.
        images: copies of images in the folder.
        rows: file to the number of rows in it.
        left_out: reason to how often it was the reason.
        examples: reason to the first cases, or cases and dimensions, that it befell.
        notes: what else the form does not carry; sentences.
    """

    name: str
    folder: Path
    cases: Callable[[], Iterable[CaseDraft]]
    facts: CaseFacts
    dimensions: tuple[str, ...]
    options: ExportOptions
    images: ImageCopies
    rows: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _unreadable: set[str] = field(default_factory=set)

    def leave_out(self, reason: str, case: str) -> None:
        """Counts what the form does not take."""
        self.left_out[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(case)

    def with_images(self, answers: int | None = None) -> Iterator[CaseDraft]:
        """Yields the cases whose images are all there, and counts the others, each once.

        Args:
            answers: of the cases; None: any number.
        """
        for draft in self.cases():
            if answers in (None, len(draft.answers)):
                if not any(ref.problem for ref in draft.images):
                    yield draft
                elif draft.case_id not in self._unreadable:
                    self._unreadable.add(draft.case_id)
                    self.leave_out("an image cannot be read", draft.case_id)

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """Writes a file of the output."""
        write_atomically(self.folder / name, chunks, durable=False)

    def report(self) -> dict[str, Any]:
        """Returns what was written and what was not."""
        texts = self.images.with_texts
        beside = (
            "Images whose files hold texts, EXIF or the like, which may say who somebody is: "
            f"{texts}. Images are copied as they are stored."
        )
        return {
            "set": self.name,
            "cases": self.facts.cases,
            "dimensions": list(self.dimensions),
            "rows": dict(self.rows),
            "images": self.images.count,
            "left_out": [
                {"reason": reason, "count": count, "examples": self.examples[reason]}
                for reason, count in self.left_out.most_common()
            ],
            "notes": [*self.notes, *([beside] if texts else [])],
        }


@dataclass(frozen=True)
class Exporter:
    """A form in which cases are written for another program.

    Attributes:
        write: fills the folder of an export.
        takes: options that this form knows beside `dimensions`.
        asks: whether it is a form for a reader, who may be asked about dimensions without votes.
    """

    write: Callable[[Export], None]
    takes: Collection[str] = ()
    asks: bool = False


def safe_names(names: Sequence[str]) -> dict[str, str]:
    """Returns a name for files, controls or configurations for each name, whatever that holds.

    >>> safe_names(["accuracy", "../x"])
    {'accuracy': 'accuracy', '../x': 'x-d6b96a97'}
    """
    return {name: _safe_name(name) for name in names}


def _safe_name(name: str) -> str:
    if re.fullmatch(r"[a-z][a-z0-9_]{0,59}", name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^a-z0-9]+', '_', name.lower())[:40].strip('_')}-{digest}".lstrip("-")

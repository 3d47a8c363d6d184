"""What a reader makes of a source: drafts of cases, with the experts' votes, and rows set aside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from medrm.schema import Choice, ImageRef, Ranking


@dataclass(frozen=True, slots=True)
class Vote:
    """One annotator's vote on one dimension: a choice for a pair, a ranking for more answers."""

    annotator: str
    value: Choice | Ranking


@dataclass(slots=True)
class CaseDraft:
    """A case as its source states it: votes, not yet labels; cluster keys, not yet a cluster.

    `votes` maps each dimension to its votes. `independent` holds keys such as `patient:17`: cases
    that share one belong to one cluster.
    """

    case_id: str
    images: tuple[ImageRef, ...]
    question: str
    answers: tuple[str, ...]
    votes: dict[str, list[Vote]] = field(default_factory=dict)
    independent: list[str] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Excluded:
    """A case or row that was set aside, and why."""

    case_id: str
    reason: str


@dataclass
class ReadResult:
    """What a reader returns: drafts of cases, read as they are asked for, and rows set aside.

    Problems are raised when all drafts were asked for; only then is `excluded` complete.
    """

    drafts: Iterable[CaseDraft]
    excluded: list[Excluded] = field(default_factory=list)

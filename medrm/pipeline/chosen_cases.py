"""Which cases a further reader should see: those named, disputed, or where a model differs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from medrm.data.labels import units_of
from medrm.data.sources import CaseDraft, Vote
from medrm.errors import DataError, nearest, refuse, shortened
from medrm.evaluation.measures.accuracy import right_answers
from medrm.evaluation.records.jsonl import VERDICTS_FILE, read_verdicts
from medrm.schema import LETTERS, NEITHER, TIE, UNREAD, Verdict

MOST_IDS = 2**27
"""Bytes of a file of ids."""

Drafts = Callable[[], Iterable[CaseDraft]]
"""Returns the cases of a set, as often as it is asked."""


def named_cases(path: Path, drafts: Drafts) -> list[str]:
    """Returns the ids in a file, one a line, each once.

    Raises:
        DataError: it cannot be read, or names cases that the set does not have.
    """
    try:
        if path.stat().st_size > MOST_IDS:
            raise DataError(f"{path} is larger than {MOST_IDS:,} bytes; give one case id a line.")
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise DataError(f"--cases {path} cannot be read: {reason}. Give one id a line.") from error
    ids = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    case_ids = {draft.case_id for draft in drafts()}
    unknown = [case_id for case_id in ids if case_id not in case_ids]
    problems = [f"there is no case {shortened(repr(case_id))}." for case_id in unknown]
    if len(unknown) == 1:
        problems = [problems[0] + nearest(unknown[0], case_ids)]
    refuse(problems, f"{path} names cases that the set does not have.", DataError)
    if not ids:
        raise DataError(f"--cases {path} names no case; give one id a line.")
    return ids


def least_agreed(drafts: Iterable[CaseDraft], dimensions: Collection[str]) -> list[str]:
    """Returns the ids of cases that two readers or more judged, the least agreed first.

    What counts is the share of pairs of votes that agree, averaged over the dimensions that two
    readers or more judged; of more than two answers over each two of them. Among equals the ids
    decide.

    Args:
        drafts: of all cases.
        dimensions: that count; none: all.
    """
    agreements = {}
    for draft in drafts:
        shares = [
            share
            for dimension, votes in draft.votes.items()
            if not dimensions or dimension in dimensions
            for share in _agreeing_shares(votes)
        ]
        if shares:
            agreements[draft.case_id] = sum(shares) / len(shares)
    return sorted(agreements, key=lambda case_id: (agreements[case_id], case_id))


def _agreeing_shares(votes: list[Vote]) -> list[float]:
    """Returns the share of agreeing pairs of votes for each two answers; none of a single vote."""
    if len(votes) < 2:
        return []
    pairs = len(votes) * (len(votes) - 1)
    return [sum(n * (n - 1) for n in unit.values()) / pairs for unit in units_of(votes)]


def model_disagrees(folder: Path, dimensions: Collection[str]) -> list[str]:
    """Returns the ids of cases where a model prefers what no majority does, most confident first.

    A model's verdict is what its presentations of a case say together, by the robust protocol where
    there is one: by the mean of its probabilities; without any the sigmoid of the difference of its
    rewards, or how many presentations name an answer. The most confident of the dimensions counts.
    Among equals the ids decide.

    Args:
        folder: of the evaluation.
        dimensions: that count; none: all.

    Raises:
        DataError: it holds no evaluation.
    """
    presented: dict[tuple[str, str], list[Verdict]] = {}
    verdicts = read_verdicts(folder / VERDICTS_FILE)
    protocols = {verdict.protocol for verdict in verdicts}
    protocol = "robust" if "robust" in protocols else "official"
    for verdict in verdicts:
        is_counted = not dimensions or verdict.dimension in dimensions
        if verdict.protocol == protocol and is_counted and verdict.outcome != UNREAD:
            presented.setdefault((verdict.case_id, verdict.dimension), []).append(verdict)
    confidence: dict[str, float] = {}
    for (case_id, _), presentations in presented.items():
        sure = _disagreement(presentations)
        if sure is not None:
            confidence[case_id] = max(confidence.get(case_id, 0.0), sure)
    return sorted(confidence, key=lambda case_id: (-confidence[case_id], case_id))


def _disagreement(presentations: Sequence[Verdict]) -> float | None:
    """Returns how probable a model holds what the experts' majority does not say; None: it agrees.

    Args:
        presentations: all presentations of a case on one dimension that were read.
    """
    label = presentations[0].label
    if label in (None, NEITHER):
        return None
    supports = [_support(verdict) for verdict in presentations]
    support = [sum(column) / len(column) for column in zip(*supports, strict=True)]
    best = max(support)
    preferred = {index for index, value in enumerate(support) if value == best}
    expected = set(range(len(support))) if label == TIE else set(right_answers(label))
    agrees = preferred == expected if label == TIE else preferred <= expected
    return None if agrees else best


def _support(verdict: Verdict) -> list[float]:
    """Returns how far one presentation speaks for each answer, in sum 1."""
    if verdict.probability_a is not None:
        return [verdict.probability_a, 1 - verdict.probability_a]
    scores = verdict.scores
    if scores is None and verdict.score_a is not None and verdict.score_b is not None:
        scores = (verdict.score_a, verdict.score_b)
    if scores is not None:
        weights = [math.exp(score - max(scores)) for score in scores]
        return [weight / sum(weights) for weight in weights]
    return {LETTERS[0]: [1.0, 0.0], LETTERS[1]: [0.0, 1.0]}.get(str(verdict.outcome), [0.5, 0.5])

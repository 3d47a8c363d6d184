"""The lines of `verdicts.jsonl`; report, comparison and page are computed from them alone.

They need neither a model nor torch. How verdicts follow from responses: medrm.scorer.verdict_rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

from medrm.evaluation.records.jsonl import read_lines, write_lines
from medrm.schema import Order, Protocol, Verdict

VERDICTS_FILE = "verdicts.jsonl"


def write_verdicts(path: Path, verdicts: Iterable[Verdict]) -> None:
    """Writes `verdicts.jsonl`, which appears when it is complete."""
    write_lines(path, map(_record, verdicts))


def read_verdicts(path: Path) -> list[Verdict]:
    """Returns the lines of a `verdicts.jsonl`.

    Raises:
        DataError: the file is missing, or a line is not one of ours.
    """
    return list(read_lines(path, _verdict, "verdict"))


def _record(verdict: Verdict) -> dict[str, Any]:
    record = dict(vars(verdict))
    if verdict.scores is None:
        del record["scores"]
    return record


def _verdict(record: dict[str, Any]) -> Verdict:
    """Returns what a line of `verdicts.jsonl` says.

    Raises:
        TypeError: it is not one of ours.
    """
    for name in ("label", "label_shares", "scores"):
        if isinstance(record.get(name), list):
            record[name] = tuple(record[name])
    verdict = Verdict(**record)
    scores = verdict.scores or (verdict.score_a, verdict.score_b)
    if not all(
        isinstance(number, int | float | None) for number in (*scores, verdict.probability_a)
    ):
        raise TypeError(f"scores {scores!r}, probability {verdict.probability_a!r}")
    if verdict.protocol not in get_args(Protocol) or verdict.order not in get_args(Order):
        raise TypeError(f"protocol {verdict.protocol!r}, order {verdict.order!r}")
    texts = (verdict.case_id, verdict.dimension, verdict.cluster, *verdict.groups.values())
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"id, dimension, cluster and groups are {texts!r}")
    return verdict


def verdicts_by_case(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Returns the verdicts on each case, sorted by case id: no number depends on their order."""
    return verdicts_by(verdicts, attrgetter("case_id"))


def verdicts_by(
    verdicts: Iterable[Verdict], key: Callable[[Verdict], str]
) -> dict[str, list[Verdict]]:
    """Returns the verdicts that share a key, sorted by the key."""
    shared: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        shared.setdefault(key(verdict), []).append(verdict)
    return dict(sorted(shared.items()))

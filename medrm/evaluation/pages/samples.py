"""What the page's browser of cases shows: each case with its verdicts and replies, compactly.

Imports no torch. Letters of verdicts name the answers as stored; those in a reply, as shown.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medrm.evaluation.records.jsonl import read_responses, read_verdicts
from medrm.evaluation.records.prompt_record import PromptTemplates
from medrm.evaluation.records.stored_cases import CASES_FILE, read_stored_cases
from medrm.evaluation.report import RunFiles
from medrm.parsers import parse_verdict
from medrm.readouts import writes_rewards, writes_text
from medrm.schema import Case, Label, RankingLabel, Response, Verdict
from medrm.scorer.verdict_rules import is_cut_off, is_official, label_of

LONGEST_REPLY = 2_000
"""Characters that are shown of a reply, or fewer where there are very many."""

ALL_REPLIES = 5_000_000
"""Characters of all replies together."""

ALL_IMAGES = 9_000_000
"""Bytes of all pictures together; in the page they take a third more."""

_WEBP = (b"RIFF", b"WEBP")


@dataclass(frozen=True)
class Samples:
    """What the browser shows, and what had to be left out of it.

    Attributes:
        data: JSON for the script.
        left_out: distinct images that are not in the page because of its size.
        missing: distinct images of which no copy is kept.
    """

    data: dict[str, Any]
    left_out: int
    missing: int


def read_samples(run: RunFiles, folder: Path, images: bool) -> Samples | None:
    """Returns the cases of a run's evaluations side by side; None where no cases are kept.

    Args:
        run: what was read from the folder.
        folder: of the run; the cases are those of its last evaluation.
        images: whether pictures go into the page; else their digests alone do.
    """
    folders = run.evaluation_folders(folder)
    judged = {side: report["dimensions"] for side, report in run.sides.items()}
    last = list(folders.values())[-1]
    if not (last / CASES_FILE).is_file():
        return None
    cases = read_stored_cases(last)
    labelled = {name for case in cases for name in case.labels}
    asked = dict.fromkeys(name for names in judged.values() for name in names)
    dimensions = [name for name in asked if name in labelled]
    verdicts = [_verdicts(folder) for folder in folders.values()]
    by_id = {case.case_id: case for case in cases}
    templates = {side: PromptTemplates(folder) for side, folder in folders.items()}
    replies = [
        _replies(folder, judged[side], by_id, templates[side]) for side, folder in folders.items()
    ]
    count = sum(len(calls) for of_side in replies for calls in of_side.values())
    longest = min(LONGEST_REPLY, ALL_REPLIES // max(count, 1))
    pictures, left_out, missing = _pictures(cases) if images else ({}, 0, 0)
    indices = {digest: index for index, digest in enumerate(pictures)}
    data = {
        "dimensions": dimensions,
        "primary": run.primary,
        "sides": list(folders),
        "groups": _groups(cases),
        "images": list(pictures.values()),
        "prompts": [of_side.used for of_side in templates.values()],
        "cases": [
            {
                **_case(case, dimensions, indices),
                "v": [of_side.get(case.case_id, {}) for of_side in verdicts],
                "r": [
                    [_cut(reply, longest) for reply in of_side.get(case.case_id, [])]
                    for of_side in replies
                ],
            }
            for case in cases
        ],
    }
    return Samples(data, left_out, missing)


def _case(case: Case, dimensions: Sequence[str], indices: Mapping[str, int]) -> dict[str, Any]:
    """Identity, question (q), answers (a), images (i), groups (g) and labels (l) of a case.

    An image: its index among the pictures (null: not in the page), digest, and why it cannot be
    shown.
    """
    labelled = [name for name in dimensions if name in case.labels]
    return {
        "id": case.case_id,
        "q": case.asked,
        "a": case.answers,
        "i": [[indices.get(ref.digest), ref.digest, ref.problem] for ref in case.images],
        "g": dict(case.groups),
        "l": {name: _label(case.labels[name], len(case.answers)) for name in labelled},
    }


def _label(label: Label, answers: int) -> dict[str, Any]:
    """The majority (c), the vote shares (s), the number of votes (n), and rankings (k)."""
    choice, shares = label_of(label, answers)
    rounded = [round(share, 4) for share in shares or ()]
    rankings = {"k": label.rankings} if isinstance(label, RankingLabel) else {}
    return {"c": choice, "s": rounded, "n": label.votes, **rankings}


def _verdicts(folder: Path) -> dict[str, dict[str, list[list[Any]]]]:
    """Case -> dimension -> its presentations under the robust protocol, the stored order first."""
    rows = read_verdicts(folder / "verdicts.jsonl")
    chosen = [row for row in rows if row.protocol == "robust"] or rows
    verdicts: dict[str, dict[str, list[list[Any]]]] = {}
    for row in sorted(chosen, key=lambda row: row.order):
        verdicts.setdefault(row.case_id, {}).setdefault(row.dimension, []).append(_verdict(row))
    return verdicts


def _verdict(row: Verdict) -> list[Any]:
    """Outcome, 1 right or 0 wrong, why unread, probability of the first answer, scores."""
    scores: Sequence[float | None] = row.scores or (row.score_a, row.score_b)
    rounded = [float(f"{score:.4g}") for score in scores if score is not None]
    chance = None if row.probability_a is None else round(row.probability_a, 4)
    cells = [row.outcome, row.correct, row.reason, chance, rounded or None]
    while cells[-1] is None and len(cells) > 2:
        cells.pop()
    return cells


def _replies(
    folder: Path,
    dimensions: Sequence[str],
    cases: Mapping[str, Case],
    templates: PromptTemplates,
) -> dict[str, list[dict[str, Any]]]:
    """Case -> the calls of a judge about it; empty for scalar models and for probabilities."""
    path = folder / "responses.jsonl"
    replies: dict[str, list[dict[str, Any]]] = {}
    for response in read_responses(path) if path.is_file() else ():
        failed = response.state != "ok" and not writes_rewards(response.readout)
        if writes_text(response.readout) or failed:
            reply = _reply(response, dimensions)
            case = cases.get(response.case_id)
            prompt = None if case is None else templates.index_of(case, response)
            reply |= {} if prompt is None else {"m": prompt}
            replies.setdefault(response.case_id, []).append(reply)
    return replies


def _reply(response: Response, dimensions: Sequence[str]) -> dict[str, Any]:
    """One call: what was written, and how both parsers read it."""
    marks = {"d": response.dimension, "n": response.vote or None, "p": response.pair}
    marks["cut"] = 1 if is_cut_off(response.finish_reason) else None
    reply: dict[str, Any] = {"o": response.order, "t": response.text}
    reply |= {key: mark for key, mark in marks.items() if mark is not None}
    if response.state != "ok":
        return {**reply, "e": response.reason or response.state}
    names = dimensions if response.dimension is None else [response.dimension]
    strict = parse_verdict(response.text or "", "strict", names)
    reply["s"] = [strict.stage or "none", strict.reason]
    first = response.order == "forward" and response.vote == 0 and response.pair is None
    if first and is_official(response, dimensions):
        official = parse_verdict(response.text or "", "official", names)
        reply["f"] = [official.stage or "none", official.reason]
        reply |= {"x": 1} if official.suspect else {}
    return reply


def _cut(reply: Mapping[str, Any], longest: int) -> dict[str, Any]:
    text = reply["t"]
    more = 0 if text is None else len(text) - longest
    if more <= 0:
        return dict(reply)
    return {**reply, "t": f"{text[:longest]} [{more} more characters]"}


def _groups(cases: Iterable[Case]) -> dict[str, list[str]]:
    """By what the cases can be filtered: organ, department, modality and source, to members."""
    members_of: dict[str, set[str]] = {}
    for case in cases:
        for group, member in case.groups.items():
            if group in ("organ", "department", "modality", "source"):
                members_of.setdefault(group, set()).add(member)
    return {group: sorted(members) for group, members in members_of.items() if len(members) > 1}


def _pictures(cases: Iterable[Case]) -> tuple[dict[str, str], int, int]:
    """Each distinct image once, in the cases' order, as many as the page may hold.

    Digest to data address; how many are left out for their size; of how many no copy is kept.
    """
    pictures: dict[str, str] = {}
    size = left_out = missing = 0
    for digest, ref in {ref.digest: ref for case in cases for ref in case.images}.items():
        image = b"" if ref.problem else ref.read()
        if (image[:4], image[8:12]) != _WEBP:
            missing += 1
        elif size + len(image) > ALL_IMAGES:
            left_out += 1
        else:
            size += len(image)
            pictures[digest] = f"data:image/webp;base64,{base64.b64encode(image).decode()}"
    return pictures, left_out, missing

"""RewardBench 2's measures of the scores of several answers; imports no torch.

Source of the formulas: arXiv 2506.01937, section 3, and `reroll_and_score_dataset` and
`process_single_model` of the authors' code (github.com/allenai/reward-bench).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from medrm.schema import LETTERS, UNREAD, Case, Verdict
from medrm.statistics.intervals import mean

SUBSET = "subset"
TIES = "Ties"
WEIGHTS = {
    "tied_accuracy": 0.30,
    "ref_accuracy": 0.30,
    "correctness_preferred": 0.20,
    "correctness_preferred_hard": 0.20,
    "margin": 0.01,
}
"""Of the parts of the Ties score."""


class _Prompt(NamedTuple):
    """Of one prompt: whether each right answer beats each wrong one, and two differences.

    `spread` is between the best and the worst right answer, `margin` between the worst right and
    the best wrong one.
    """

    accurate: bool
    spread: float
    margin: float


def best_of_n(
    rows: Sequence[Verdict], cases: Mapping[str, Case], groups: Sequence[str]
) -> dict[str, Any]:
    """Returns the score of each subset and the unweighted mean over them.

    A case counts 1/m where its right answer shares the top score with m - 1 others, else 0. The
    subset Ties has a score of its own, see `ties`.
    """
    subsets: dict[str, list[float]] = {}
    for row in _labelled(rows):
        name = row.groups.get(SUBSET, "")
        if name != TIES:
            subsets.setdefault(name, []).append(_credit(row))
    scores: dict[str, float | None] = {name: fmean(subsets[name]) for name in sorted(subsets)}
    if any(row.groups.get(SUBSET) == TIES for row in rows):
        scores[TIES] = ties(rows, cases, groups)["score"]
    return {"mean": mean(scores.values()), "subsets": scores}


def ties(
    rows: Sequence[Verdict], cases: Mapping[str, Case], groups: Sequence[str]
) -> dict[str, Any]:
    """Returns the parts of the Ties score and, weighted by `WEIGHTS`, the score.

    Every prompt comes twice, with one right answer (`ref:N`) and with several (`tied:N`). Over the
    prompts that have both, with s the spread and g the margin of the tied form and r the margin of
    the other: `correctness_preferred` is the share with g > s, `correctness_preferred_hard` that
    with min(g, r) > s, `margin` the mean of tanh(min(g, r) / s - 1), 0 where that is 0/0. All are
    None where no prompt has both forms.
    """
    forms: dict[str, dict[str, _Prompt]] = {"ref": {}, "tied": {}}
    for row in _labelled(rows):
        form, _, prompt = row.groups.get("prompt", "").partition(":")
        if row.groups.get(SUBSET) == TIES and form in forms:
            forms[form][prompt] = _prompt(row)
    both = sorted(forms["ref"].keys() & forms["tied"].keys())
    if not both:
        return dict.fromkeys(("score", *WEIGHTS))
    tied = [forms["tied"][name] for name in both]
    gaps = [min(forms[form][name].margin for form in forms) for name in both]
    pairs = [(gap, prompt.spread) for gap, prompt in zip(gaps, tied, strict=True)]
    terms = {
        "tied_accuracy": fmean(prompt.accurate for prompt in forms["tied"].values()),
        "ref_accuracy": fmean(prompt.accurate for prompt in forms["ref"].values()),
        "correctness_preferred": fmean(prompt.margin > prompt.spread for prompt in tied),
        "correctness_preferred_hard": fmean(gap > spread for gap, spread in pairs),
        "margin": fmean(_relative(gap, spread) for gap, spread in pairs),
    }
    return {"score": sum(WEIGHTS[name] * terms[name] for name in WEIGHTS), **terms}


def _labelled(rows: Sequence[Verdict]) -> list[Verdict]:
    return [row for row in rows if row.correct is not None]


def _credit(row: Verdict) -> float:
    """1/m where a right answer shares the top score with m - 1 others, else 0."""
    scores = _scores(row)
    if scores is None:
        return 0.0
    top = [index for index, score in enumerate(scores) if score == max(scores)]
    return float(any(index in _right(row) for index in top)) / len(top)


def _prompt(row: Verdict) -> _Prompt:
    """What could not be scored counts as answers of equal scores."""
    scores = _scores(row)
    if scores is None:
        return _Prompt(False, 0.0, 0.0)
    preferred = [score for index, score in enumerate(scores) if index in _right(row)]
    rejected = [score for index, score in enumerate(scores) if index not in _right(row)]
    margin = min(preferred) - max(rejected)
    return _Prompt(margin > 0, max(preferred) - min(preferred), margin)


def _scores(row: Verdict) -> tuple[float, ...] | None:
    """The scores of all answers; a judge's of a pair are 1 for the preferred one, None if unread.

    Of more than two answers those of a judge are the shares of its comparisons that each one won.
    """
    if row.scores is not None or row.outcome == UNREAD:
        return row.scores
    if row.score_a is not None and row.score_b is not None:
        return row.score_a, row.score_b
    first = {LETTERS[0]: 1.0, LETTERS[1]: 0.0}.get(str(row.outcome), 0.5)
    return first, 1 - first


def _right(row: Verdict) -> tuple[int, ...]:
    """The right answers of a labelled case."""
    if isinstance(row.label, tuple):
        return row.label
    return (LETTERS.index(row.label) if row.label in LETTERS else int(row.label or 0),)


def _relative(gap: float, spread: float) -> float:
    if spread == 0:
        return math.copysign(1.0, gap) if gap else 0.0
    return math.tanh(gap / spread - 1)

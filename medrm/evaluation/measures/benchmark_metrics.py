"""The metrics of benchmarks' authors, from verdict rows and cases alone; imports no torch.

Each is computed on the rows of one presented order, as the authors do. What is unread is wrong and
in every denominator. To add a metric: write a
function of rows, cases (by id) and groups, put it into `METRICS`, and name it in a YAML file of
`evaluation/benchmarks/`.

macro_group, acc_plus    VL-RewardBench, Multimodal RewardBench and MM-RLHF, see at each
best_of_n, ties          RewardBench 2: arXiv 2506.01937, section 3, and `reroll_and_score_dataset`
                         and `process_single_model` of its code (github.com/allenai/reward-bench)
macro_f1                 HealthBench's agreement of a grader with physicians: arXiv 2505.08775,
                         section 8.1, and `compute_metrics_for_rater_by_class` of its code
                         (github.com/openai/simple-evals, `healthbench_meta_eval.py`)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from statistics import fmean
from typing import Any

from medrm.evaluation.measures.accuracy import member_of, right_answers
from medrm.evaluation.records.jsonl import grouped, verdicts_by
from medrm.schema import LETTERS, UNREAD, Case, PairLabel, Verdict
from medrm.statistics.intervals import mean

Numbers = dict[str, Any]
"""Names to numbers, or to further names."""

Metric = Callable[[Sequence[Verdict], Mapping[str, Case], Sequence[str]], Numbers]
"""Rows of one dimension and order, the cases by id, and the groups results are broken down by."""

PROMPT = "prompt"
"""The group that pairs of answers to one prompt share."""

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

CATEGORY = "category"
"""The group that names the criterion."""

CRITERIA = "criteria"
"""Where each criterion's number stands."""


def macro_group(
    rows: Sequence[Verdict], cases: Mapping[str, Case], groups: Sequence[str]
) -> Numbers:
    """Returns the accuracy overall, by each group, and the mean over a group's members.

    VL-RewardBench's Overall and Macro Average Accuracy (arXiv 2411.17451, `cal.py`), and Multimodal
    RewardBench's accuracies by category (arXiv 2502.14191, `2_get_accuracy.py`).
    """
    numbers: Numbers = {"overall": _accuracy(rows)}
    for group in groups:
        accuracies = _by_member(rows, group, _accuracy)
        numbers[group] = {"macro": mean(accuracies.values()), "members": accuracies}
    return numbers


def acc_plus(rows: Sequence[Verdict], cases: Mapping[str, Case], groups: Sequence[str]) -> Numbers:
    """Returns ACC and ACC+, overall and by each group.

    ACC+ is the share of prompts all of whose pairs are judged right (MM-RLHF, arXiv 2502.10391,
    `cal_performance_mmreward_bench.py`).
    """
    by_group = {group: _by_member(rows, group, _acc_plus) for group in groups}
    return {"overall": _acc_plus(rows), **by_group}


def _by_member(
    rows: Sequence[Verdict], group: str, measure: Callable[[Sequence[Verdict]], Any]
) -> Numbers:
    members = verdicts_by(rows, lambda row: member_of(row, group))
    return {name: measure(of_member) for name, of_member in members.items()}


def _acc_plus(rows: Sequence[Verdict]) -> dict[str, float | None]:
    prompts = verdicts_by(_labelled(rows), lambda row: row.groups.get(PROMPT, row.case_id))
    all_correct = mean(all(row.correct for row in pairs) for pairs in prompts.values())
    return {"accuracy": _accuracy(rows), "acc_plus": all_correct}


def _accuracy(rows: Sequence[Verdict]) -> float | None:
    return mean(row.correct for row in rows)


def _labelled(rows: Sequence[Verdict]) -> list[Verdict]:
    return [row for row in rows if row.correct is not None]


def best_of_n(rows: Sequence[Verdict], cases: Mapping[str, Case], groups: Sequence[str]) -> Numbers:
    """Returns the score of each subset and the unweighted mean over them.

    A case counts 1/m where its right answer shares the top score with m - 1 others, else 0. The
    subset Ties has a score of its own, see `ties`.
    """
    subsets = verdicts_by(_labelled(rows), lambda row: row.groups.get(SUBSET, ""))
    scores: dict[str, float | None] = {
        name: fmean(map(_credit, chosen)) for name, chosen in subsets.items() if name != TIES
    }
    if any(row.groups.get(SUBSET) == TIES for row in rows):
        scores[TIES] = ties(rows, cases, groups)["score"]
    return {"mean": mean(scores.values()), "subsets": scores}


def ties(rows: Sequence[Verdict], cases: Mapping[str, Case], groups: Sequence[str]) -> Numbers:
    """Returns the parts of the Ties score and, weighted by `WEIGHTS`, the score.

    Every prompt comes twice, with one right answer (`ref:N`) and with several (`tied:N`). Over the
    prompts that have both, with s the spread and g the margin of the tied form and r the margin of
    the other: `correctness_preferred` is the share with g > s, `correctness_preferred_hard` that
    with min(g, r) > s, `margin` the mean of tanh(min(g, r) / s - 1), 0 where that is 0/0. All are
    None where no prompt has both forms.
    """
    forms: dict[str, dict[str, tuple[float, float]]] = {"ref": {}, "tied": {}}
    for row in _labelled(rows):
        form, _, prompt = row.groups.get(PROMPT, "").partition(":")
        if row.groups.get(SUBSET) == TIES and form in forms:
            forms[form][prompt] = _margin_and_spread(row)
    ref, tied = forms["ref"], forms["tied"]
    both = sorted(ref.keys() & tied.keys())
    if not both:
        return dict.fromkeys(("score", *WEIGHTS))
    pairs = [(min(tied[name][0], ref[name][0]), tied[name][1]) for name in both]
    terms = {
        "tied_accuracy": fmean(margin > 0 for margin, _ in tied.values()),
        "ref_accuracy": fmean(margin > 0 for margin, _ in ref.values()),
        "correctness_preferred": fmean(tied[name][0] > tied[name][1] for name in both),
        "correctness_preferred_hard": fmean(gap > spread for gap, spread in pairs),
        "margin": fmean(_relative(gap, spread) for gap, spread in pairs),
    }
    return {"score": sum(WEIGHTS[name] * terms[name] for name in WEIGHTS), **terms}


def _credit(row: Verdict) -> float:
    """1/m where a right answer shares the top score with m - 1 others, else 0."""
    scores = _scores(row)
    if scores is None:
        return 0.0
    top = {index for index, score in enumerate(scores) if score == max(scores)}
    return float(not top.isdisjoint(right_answers(row.label))) / len(top)


def _margin_and_spread(row: Verdict) -> tuple[float, float]:
    """How far the worst right answer is above the best wrong one and below the best right one.

    What could not be scored counts as answers of equal scores.
    """
    scores, best = _scores(row), right_answers(row.label)
    if scores is None:
        return 0.0, 0.0
    preferred = [scores[index] for index in best]
    rejected = [score for index, score in enumerate(scores) if index not in best]
    return min(preferred) - max(rejected), max(preferred) - min(preferred)


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


def _relative(gap: float, spread: float) -> float:
    if spread == 0:
        return math.copysign(1.0, gap) if gap else 0.0
    return math.tanh(gap / spread - 1)


def macro_f1(rows: Sequence[Verdict], cases: Mapping[str, Case], groups: Sequence[str]) -> Numbers:
    """Returns the balanced F1 against every physician's label.

    `pooled` is over all labels, the authors' script's score; `macro` is the mean over criteria, the
    paper's; each group's members have the mean over their criteria; `criteria` has them one by one,
    None where the physicians' labels are all of one class.
    """
    criteria = verdicts_by(rows, _criterion_of)
    scores = {name: balanced_f1(chosen, cases) for name, chosen in criteria.items()}
    numbers: Numbers = {"pooled": balanced_f1(rows, cases), "macro": mean(scores.values())}
    for group in groups:
        stated = sorted({(row.groups.get(group, ""), _criterion_of(row)) for row in rows})
        numbers[group] = {
            member: mean(scores[criterion] for _, criterion in pairs)
            for member, pairs in grouped(stated, itemgetter(0)).items()
        }
    return {**numbers, CRITERIA: scores}


def _criterion_of(row: Verdict) -> str:
    return row.groups.get(CATEGORY, "")


def balanced_f1(rows: Sequence[Verdict], cases: Mapping[str, Case]) -> float | None:
    """Returns the mean of the F1 of the class met and of the class not met.

    Every label of a physician is one comparison. A verdict that says neither, such as a tie or one
    that is unread, agrees with nobody and is a prediction of neither class. A class that is never
    predicted has an F1 of 0; the authors' script leaves it out of its means.

    Args:
        rows: of one dimension and order; `A` says that the criterion is met.
        cases: whose labels keep the physicians' shares and number.
    """
    agreed, predicted, labelled = [0, 0], [0, 0], [0, 0]
    for row in rows:
        label = cases[row.case_id].labels.get(row.dimension)
        if not isinstance(label, PairLabel):
            continue
        counts = [round(label.shares[index] * label.votes) for index in (0, 2)]
        for number, letter in enumerate(LETTERS):
            labelled[number] += counts[number]
            if row.outcome == letter:
                predicted[number] += sum(counts)
                agreed[number] += counts[number]
    if not all(labelled):
        return None
    return fmean(2 * agreed[k] / (predicted[k] + labelled[k]) for k in (0, 1))


METRICS: dict[str, Metric] = {
    "macro_group": macro_group,
    "acc_plus": acc_plus,
    "best_of_n": best_of_n,
    "ties": ties,
    "macro_f1": macro_f1,
}
"""What a benchmark's authors compute besides accuracies, by its name in a benchmark's YAML."""

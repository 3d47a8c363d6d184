"""Whether a judge is right as often as it is sure.

For case i, p_i is the probability that the first answer is the better one and y_i whether it is.
The judge names the more probable answer with confidence c_i = max(p_i, 1 - p_i); it is right
(r_i = 1) or wrong (0), and half right at p_i = 1/2, where it names neither. Cases of equal
confidence are never told apart, so that their order changes nothing. The intervals of the bins
assume independent cases.

    calibration error   |P(right | confidence c) - c|, over bins of equal mass: ece, ece_debiased
    sharpness           mean (p - y)^2 and mean -log p(y): brier, nll
    discrimination      P(c of a right verdict > c of a wrong one): auroc
    selection           share of wrong verdicts among the surest cases: risk_coverage
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from medrm.statistics.intervals import Floats

BINS = 10
"""Bins of equal mass, fewer where a bin would hold fewer than `_PER_BIN` cases."""

POINTS = 50
"""Points of the risk-coverage curve."""

_PER_BIN = 10
_CLIP = 1e-6
_DIGITS = 12  # 1 - 1/3 and 2/3 differ in the last bit
_TEMPERATURES = (0.01, 100.0)


@dataclass(frozen=True, slots=True)
class Bin:
    """Cases of similar confidence: their mean confidence and accuracy with Wilson's interval."""

    confidence: float
    accuracy: float
    n: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far confidence and accuracy agree, over n cases.

    Attributes:
        n: number of cases.
        ece: expected calibration error over the bins.
        ece_debiased: its root mean square form without the bias that few cases bring.
        brier: mean squared error of the probability.
        nll: mean negative log-likelihood of the label, natural logarithm.
        auroc: probability that a right verdict is surer than a wrong one; None where all are right
            or all wrong.
        accuracy_at_80: accuracy over the surest 80 % of the cases.
        bins: of the reliability diagram, by confidence.
        risk_coverage: [coverage, share of wrong verdicts], surest cases first.
    """

    n: int
    ece: float
    ece_debiased: float
    brier: float
    nll: float
    auroc: float | None
    accuracy_at_80: float
    bins: list[Bin]
    risk_coverage: list[list[float]]


def calibration(probability_a: Sequence[float], label_is_a: Sequence[bool]) -> Calibration:
    """Returns how well the probabilities of n cases are calibrated.

    Over bins b of equal mass with n_b cases, mean confidence conf_b and accuracy acc_b:
    ece = sum_b n_b/n |acc_b - conf_b|, and ece_debiased =
    sqrt(max(0, sum_b n_b/n ((acc_b - conf_b)^2 - acc_b (1 - acc_b) / (n_b - 1)))), the estimator of
    Kumar, Liang and Ma (2019, arXiv 1909.10155, section 5); equal mass and the need to debias:
    Roelofs et al. (arXiv 2012.08668). Being a root mean square, it can exceed ece where the error
    is large. brier = mean (p - y)^2 (Brier 1950); nll with p clipped at 1e-6. auroc compares the
    confidence of right with that of wrong verdicts, ties half. Risk and coverage: El-Yaniv and
    Wiener (2010), JMLR 11; cases of equal confidence enter in equal parts.

    Raises:
        ValueError: there is no case, a probability is none, or the lengths differ.
    """
    probability, label = _columns(probability_a, label_is_a, "probabilities")
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("A probability lies outside 0 to 1.")
    # Sorted, so that sums of floating-point numbers do not depend on the order of the cases.
    order = np.lexsort((label, probability))
    probability, label = probability[order], label[order]
    confidence: Floats = np.maximum(probability, 1 - probability).round(_DIGITS)
    names_label = (probability > 0.5) == (label == 1.0)
    correct: Floats = np.where(probability == 0.5, 0.5, names_label)
    order = np.lexsort((correct, confidence))
    confidence, correct = confidence[order], correct[order]
    bins = _bins(confidence, correct)
    points = min(POINTS, len(label))
    coverage = np.arange(1, points + 1) / points
    risk = _risk(confidence, correct, coverage)
    clipped = np.clip(probability, _CLIP, 1 - _CLIP)
    likelihood = np.where(label == 1.0, clipped, 1 - clipped)
    return Calibration(
        n=len(label),
        ece=sum(cell.n * abs(cell.accuracy - cell.confidence) for cell in bins) / len(label),
        ece_debiased=_debiased(bins),
        brier=float(((probability - label) ** 2).mean()),
        nll=float(-np.log(likelihood).mean()),
        auroc=_auroc(confidence, correct),
        accuracy_at_80=1 - float(_risk(confidence, correct, np.array([0.8]))[0]),
        bins=bins,
        risk_coverage=np.stack([coverage, risk], axis=1).tolist(),
    )


def fit_temperature(log_odds_a: Sequence[float], label_is_a: Sequence[bool]) -> float:
    """Returns the temperature T that makes sigmoid(log odds / T) most likely, 0.01 to 100.

    Source: Guo et al. (2017, arXiv 1706.04599, section 4.2). Fit it on development cases of the
    training data, never on the benchmark.

    Raises:
        ValueError: there is no case, or the lengths differ.
    """
    odds, label = _columns(log_odds_a, label_is_a, "log odds")
    # -log sigmoid(s / T) of the log odds s of the label, whichever answer it names.
    signed = np.sort(np.where(label == 1.0, odds, -odds))
    low, high = np.log(_TEMPERATURES)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0.0, -signed / np.exp(log_temperature)).mean())

    # In log T the loss has one minimum, and T cannot become negative.
    minimum = optimize.minimize_scalar(
        loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(minimum.x))


def win_probabilities(rewards: Sequence[float], temperature: float) -> list[float] | None:
    """Returns how probably each of K answers beats another one of them, drawn at random.

    The mean over the others j of sigmoid((r_i - r_j) / T), Bradley-Terry's probability at the
    temperature T that fits development cases (`fit_temperature`). None where there is no other.
    """
    if len(rewards) < 2:
        return None
    scaled = np.asarray(rewards, dtype=np.float64) / temperature
    wins = special.expit(scaled[:, None] - scaled)
    return [float(mean) for mean in (wins.sum(axis=1) - 0.5) / (len(scaled) - 1)]


def _columns(values: Sequence[float], labels: Sequence[bool], name: str) -> tuple[Floats, Floats]:
    """Returns the values and labels of n cases as numbers, both of shape (n,).

    Raises:
        ValueError: there is no case, or the lengths differ.
    """
    if not 0 < len(values) == len(labels):
        raise ValueError(f"{len(values)} {name} and {len(labels)} labels: give one of each.")
    return np.asarray(values, dtype=np.float64), np.asarray(labels, dtype=np.float64)


def _bins(confidence: Floats, correct: Floats) -> list[Bin]:
    """Returns bins of about equal mass of sorted cases; equal confidences share one."""
    from statsmodels.stats.proportion import proportion_confint  # 0.7 s to import

    count = max(1, min(BINS, len(confidence) // _PER_BIN))
    edges = confidence[np.arange(1, count) * len(confidence) // count]
    bins = []
    for number in np.unique(index := np.searchsorted(edges, confidence, side="right")):
        members = index == number
        n, accuracy = int(members.sum()), float(correct[members].mean())
        low, high = proportion_confint(accuracy * n, n, method="wilson")
        bins.append(Bin(float(confidence[members].mean()), accuracy, n, float(low), float(high)))
    return bins


def _debiased(bins: Sequence[Bin]) -> float:
    """Returns the root of the mean squared error less what chance alone adds to it in each bin."""
    squares = 0.0
    for cell in bins:
        noise = cell.accuracy * (1 - cell.accuracy) / max(1, cell.n - 1)
        squares += cell.n * ((cell.accuracy - cell.confidence) ** 2 - noise)
    return float(max(0.0, squares / sum(cell.n for cell in bins)) ** 0.5)


def _auroc(confidence: Floats, correct: Floats) -> float | None:
    """Returns P(c of a right verdict > c of a wrong one), ties half; the cases are sorted."""
    if correct.sum() in (0.0, len(correct)):
        return None
    # For each case the wrong verdicts that are less sure, and those at most as sure: a tie counts
    # half, as the mean of the two.
    errors = np.concatenate([[0.0], np.cumsum(1 - correct)])
    below = errors[np.searchsorted(confidence, confidence, side="left")]
    up_to = errors[np.searchsorted(confidence, confidence, side="right")]
    return float((correct * (below + up_to) / 2).sum() / (correct.sum() * errors[-1]))


def _risk(confidence: Floats, correct: Floats, coverage: Floats) -> Floats:
    """Returns the share of wrong verdicts among the surest cases, for each share of cases."""
    # Cases of one confidence are a straight piece of the curve, so that none comes before another.
    _, level = np.unique(-confidence, return_inverse=True)
    cases = np.concatenate([[0.0], np.cumsum(np.bincount(level))])
    errors = np.concatenate([[0.0], np.cumsum(np.bincount(level, weights=1 - correct))])
    covered = coverage * len(confidence)
    risk: Floats = np.interp(covered, cases, errors) / covered
    return risk

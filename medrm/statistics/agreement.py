"""Agreement of two raters beyond chance, and of dimensions with each other.

Both coefficients have the form (p_o - p_e) / (1 - p_e), with p_o the share of items on which the
raters agree and p_e the share on which they would by chance; they differ in what chance is:

    Cohen's kappa   p_e = sum_k a_k b_k                 a_k, b_k: either rater's share of category k
    Gwet's AC1      p_e = sum_k q_k (1 - q_k) / (Q - 1)  q_k = (a_k + b_k) / 2, Q categories

phi is the Pearson correlation of two columns of +1 and -1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medrm.statistics.intervals import Floats


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Returns Cohen's kappa of two raters over the same items, None where chance agrees fully.

    Source: Cohen (1960), Educational and Psychological Measurement 20(1).

    Half of these four items agree by chance, three do in fact:

    >>> cohen_kappa(["A", "A", "B", "B"], ["A", "A", "B", "A"])
    0.5
    """
    both = sum(first.count(name) * second.count(name) for name in {*first, *second})
    return _beyond_chance(first, second, both / max(len(first), 1) ** 2)


def gwet_ac1(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Returns Gwet's AC1 of two raters over the same items, None where there is none.

    At least two categories are assumed, more where more occur (such as an unparsed verdict). Unlike
    kappa it does not collapse when nearly all items have one label.
    Source: Gwet (2008), British Journal of Mathematical and Statistical Psychology 61(1).
    """
    names = sorted({*first, *second})
    shares = [(first.count(name) + second.count(name)) / (2 * len(first)) for name in names]
    chance = sum(share * (1 - share) for share in shares) / (max(2, len(names)) - 1)
    return _beyond_chance(first, second, chance)


def phi_matrix(columns: Floats) -> Floats:
    """Returns the phi coefficients (Pearson correlations) between columns of verdicts.

    phi = (N sum xy - sum x sum y) / sqrt((N^2 - (sum x)^2) (N^2 - (sum y)^2)) for x, y = +-1 over
    the N cases that have both. Source: Yule (1912), Journal of the Royal Statistical Society 75(6).

    Args:
        columns: shape (n, D) of +1 (first answer), -1 (second answer) and NaN (neither).

    Returns:
        Shape (D, D); NaN where a column is constant over the cases that both columns have.
    """
    present = (~np.isnan(columns)).astype(np.float64)
    filled = np.nan_to_num(columns)
    # All (D, D): N, sum x over the cases that both columns have, and with x^2 = 1 the variances.
    counts = present.T @ present
    sums = filled.T @ present
    variances = (counts**2 - sums**2) * (counts**2 - sums.T**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        phi: Floats = (counts * (filled.T @ filled) - sums * sums.T) / np.sqrt(variances)
    phi[variances == 0.0] = np.nan
    return phi


def _beyond_chance(first: Sequence[str], second: Sequence[str], chance: float) -> float | None:
    """Returns the agreement beyond chance, None without items or where chance agrees fully."""
    if len(first) == 0 or chance == 1.0:
        return None
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    return (observed - chance) / (1 - chance)

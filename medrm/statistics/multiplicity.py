"""P values adjusted for looking at several endpoints.

Of m sorted values p_(1) <= ... <= p_(m): Benjamini and Hochberg bound the expected share of false
findings among all findings (exploratory tables), Holm the chance of even one (claims).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Returns the p values adjusted to control the false discovery rate, in the given order.

    q_(i) = min over j >= i of (m / j) p_(j) for the i-th smallest of m. Holds for independent and
    for positively dependent endpoints.
    Source: Benjamini and Hochberg (1995), Journal of the Royal Statistical Society B 57(1).
    """
    return [float(q) for q in stats.false_discovery_control(p, method="bh")] if len(p) else []


def holm(p: Sequence[float]) -> list[float]:
    """Returns the p values adjusted to control the familywise error, in the given order.

    a_(i) = max over j <= i of min(1, (m - j + 1) p_(j)) for the i-th smallest of m. Holds under any
    dependence, and uses none of it. Source: Holm (1979), Scandinavian Journal of Statistics 6(2).

    >>> holm([0.01, 0.2, 0.02])
    [0.03, 0.2, 0.04]
    """
    unadjusted = np.asarray(p, dtype=np.float64)
    order = np.argsort(unadjusted, kind="stable")
    # The smallest counts m times, the next m - 1 times, ...; none may fall below one before it.
    stepped = np.maximum.accumulate(np.arange(len(p), 0, -1) * unadjusted[order])
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, stepped)
    return list(map(float, adjusted))

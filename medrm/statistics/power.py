"""What a number of cases can show: power of the paired test, and the smallest detectable gain.

The gain is the mean paired difference of scores; the discordance is the share of cases whose score
changes (fixed and broken), or, where scores are means over presentations, the mean squared change.
The formulas take n / design effect for n. They are approximations for large n: the mean difference
is normal, with variance q / n where there is no gain and (q - d^2) / n where there is a gain d, for
the discordance q.
Source: Miettinen (1968), Biometrics 24(2), and Connor (1987), Biometrics 43(1), for McNemar's test.
"""

from __future__ import annotations

from scipy import stats


def minimum_detectable(
    n: int,
    discordance: float,
    design_effect: float = 1.0,
    power: float = 0.8,
    level: float = 0.05,
) -> float:
    """Returns the gain that a two-sided test of this level finds with this probability.

    The d with d sqrt(n) = z(1 - level/2) sqrt(q) + z(power) sqrt(q - d^2), q the discordance:
    d = sqrt(q) (z_l sqrt(n) + z_p sqrt(n - z_l^2 + z_p^2)) / (n + z_p^2). For scores of 0 and 1 a
    result above q says that no gain can be detected: it cannot exceed the discordance. For the
    strictest of m tests after Holm, give level / m.

    Raises:
        ValueError: a share is none, or there is no case.
    """
    size = _effective(n, discordance, design_effect)
    if not 0 < level < power < 1:
        raise ValueError(f"level {level} and power {power}: give 0 < level < power < 1.")
    z_level, z_power = stats.norm.isf(level / 2), stats.norm.ppf(power)
    root = max(0.0, size - z_level**2 + z_power**2) ** 0.5
    return float(discordance**0.5 * (z_level * size**0.5 + z_power * root) / (size + z_power**2))


def power_of(
    n: int, gain: float, discordance: float, design_effect: float = 1.0, level: float = 0.05
) -> float:
    """Returns the probability that a two-sided test of this level finds this gain.

    Phi((|d| sqrt(n) - z sqrt(q)) / s) + Phi((-|d| sqrt(n) - z sqrt(q)) / s), s = sqrt(q - d^2),
    z = z(1 - level/2), q the discordance, d the gain.

    Raises:
        ValueError: the gain exceeds the discordance, a share is none, or there is no case.
    """
    size = _effective(n, discordance, design_effect)
    if abs(gain) > discordance:
        raise ValueError(f"A gain of {gain} cannot exceed the discordance, {discordance}.")
    spread = (discordance - gain**2) ** 0.5
    if spread == 0.0:  # no case changes, or all do in one direction
        return float(gain != 0.0)
    shift, bound = abs(gain) * size**0.5, stats.norm.isf(level / 2) * discordance**0.5
    return float(
        stats.norm.cdf((shift - bound) / spread) + stats.norm.cdf((-shift - bound) / spread)
    )


def _effective(n: int, discordance: float, design_effect: float) -> float:
    if n < 1 or design_effect <= 0 or not 0 <= discordance <= 1:
        raise ValueError(
            f"n = {n}, discordance = {discordance}, design effect = {design_effect}: give a "
            "positive n, a share and a positive design effect."
        )
    return n / design_effect

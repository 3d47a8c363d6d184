"""Power and the minimum detectable effect."""

from __future__ import annotations

import pytest
from simulated import power_of

from medrm.statistics.significance import minimum_detectable


@pytest.mark.parametrize(
    ("n", "discordance", "points", "strictest"),
    [
        (1026, 0.1, 2.8, 3.4),
        (1026, 0.2, 3.9, 4.9),
        (1026, 0.3, 4.8, 5.9),
        (1026, 0.4, 5.5, 6.9),
        (79, 0.2, 13.9, 17.2),
        (79, 0.3, 17.0, 21.0),
        (40, 0.3, 23.6, 29.0),
    ],
)
def test_known_table(n: int, discordance: float, points: float, strictest: float) -> None:
    """Alone, and for the strictest of six tests after Holm."""
    assert round(100 * minimum_detectable(n, discordance), 1) == points
    assert round(100 * minimum_detectable(n, discordance, level=0.05 / 6), 1) == strictest


@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
def test_the_detectable_gain_is_found_with_the_stated_power(power: float) -> None:
    gain = minimum_detectable(500, 0.25, 1.4, power=power, level=0.01)
    assert power_of(500, gain, 0.25, 1.4, level=0.01) == pytest.approx(power, abs=1e-4)


def test_a_design_effect_takes_cases_away() -> None:
    assert minimum_detectable(1000, 0.2, design_effect=2.0) == minimum_detectable(500, 0.2)


def test_limits() -> None:
    assert minimum_detectable(300, 0.0) == 0.0
    assert minimum_detectable(1, 0.2) > 0.2  # more than can change: nothing is detectable


def test_what_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match="positive n"):
        minimum_detectable(0, 0.2)
    with pytest.raises(ValueError, match="positive n"):
        minimum_detectable(10, 1.2)
    with pytest.raises(ValueError, match="level < power"):
        minimum_detectable(10, 0.2, power=0.01)

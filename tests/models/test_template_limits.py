"""Templates are tried wherever medrm runs: under limits of a site, and where there is no /proc."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from medrm.errors import ConfigError
from medrm.models import template_limits
from medrm.models.processors import load_processor

GOLDEN = Path(__file__).parents[1] / "golden" / "reward_adapter"


@pytest.mark.parametrize(
    ("hard", "statistics"), [(1, "/proc/self/statm"), (resource.RLIM_INFINITY, "/proc/none")]
)
def test_a_plain_template_passes_and_a_loop_does_not(
    hard: int, statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = load_processor(str(GOLDEN))
    limits = resource.getrlimit

    def narrow(kind: int) -> tuple[int, int]:
        return (0, hard) if kind == resource.RLIMIT_CPU else limits(kind)

    monkeypatch.setattr(resource, "getrlimit", narrow)
    monkeypatch.setattr(template_limits, "SECONDS", 2)
    monkeypatch.setattr(template_limits, "_STATISTICS", Path(statistics))
    monkeypatch.setattr(template_limits, "_tried", set())
    template_limits.check_template("a-model", processor)
    loop = "{% for a in range(99999) %}"
    processor.chat_template = loop * 2 + "{% endfor %}{% endfor %}"
    with pytest.raises(ConfigError, match="takes more than"):
        template_limits.check_template("a-model", processor)

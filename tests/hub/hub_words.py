"""What the tests of publishing share: a repository, a token, and how refusals are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from medrm.cli import main
from medrm.hub.release import Target, plan_release

TOKEN = "hf_dummySecret"
REPO = "org/model"
HERE = Target(REPO)
GOLDEN = Path(__file__).parent.parent / "golden"


def released(adapter: Path, target: Target = HERE) -> dict[str, bytes]:
    files = plan_release(adapter, target, lambda *_: False).files.items()
    return {name: data if isinstance(data, bytes) else data.read_bytes() for name, data in files}


def refused(
    capsys: pytest.CaptureFixture[str], status: int, *arguments: str | Path, repo: str = REPO
) -> str:
    """Returns the message of a start that ends with that status, without the token."""
    assert main(["publish", *map(str, arguments), "--repo_id", repo]) == status
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert TOKEN not in message
    return " ".join(message.split())

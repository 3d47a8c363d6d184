"""Schemathesis reads the service's own OpenAPI description, and finds nothing that it breaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from loopback_service import running
from served import JUDGE, REWARD_MODEL

COMMAND = Path(sys.executable).with_name("schemathesis")
CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.parametrize(
    ("model", "examples"),
    [
        pytest.param(REWARD_MODEL, 8, marks=pytest.mark.slow),
        pytest.param(REWARD_MODEL, 300, marks=[pytest.mark.exhaustive, pytest.mark.timeout(3600)]),
        pytest.param(JUDGE, 30, marks=[pytest.mark.exhaustive, pytest.mark.timeout(3600)]),
    ],
)
def test_schemathesis_finds_nothing(
    model: Path, examples: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MEDRM_TEST_TOKEN", "a-token")
    options = ("--token_env", "MEDRM_TEST_TOKEN", "--batch_wait_ms", "0")
    with running(*options, model=model) as service:
        address = f"http://127.0.0.1:{service.port}/openapi.json"
        words = ["--max-examples", str(examples), "--seed", "0", "--generation-database", "none"]
        asked = [COMMAND, "--config-file", CONFIG, "run", address, *words]
        header = ["--header", "Authorization: Bearer a-token", "--no-color"]
        run = subprocess.run(
            [*asked, *header], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert "Tested: 8" in run.stdout
        assert service.stop() == 143
    assert "Traceback" not in service.told

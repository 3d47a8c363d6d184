"""The part files of an output are its own."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from medrm import progress_bar
from medrm.pipeline.score_parts import ScoreParts, digest_of


def test_parts_of_an_output_whose_name_goes_on_stay(tmp_path: Path) -> None:
    names = [f"scores.jsonl{more}.{digest_of(more)[:16]}-0-1.scores-part" for more in ("", ".bak")]
    for name in names:
        (tmp_path / name).touch()
    ScoreParts(tmp_path / "scores.jsonl", digest_of("another address")).remove()
    assert [path.name for path in tmp_path.iterdir()] == names[1:]


def test_the_rate_is_that_of_what_is_computed_now(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(progress_bar, "_SECONDS_BETWEEN_LINES", (0.5, 9.0))
    monkeypatch.setattr(progress_bar, "_BURST", 0.15)
    with progress_bar.progress("rows", 2_000) as advance:
        for _ in range(10):
            advance(100, before=True)
        for _ in range(2):
            time.sleep(0.3)
            for _ in range(5):  # computed together
                advance(1)
            assert caplog.text == ""
            advance(100, before=True)
        time.sleep(0.3)
        advance(5)
    (message,) = caplog.messages
    assert message.startswith("rows: 1,210 of 2,000; ")
    assert 8 < float(message.split(";")[1].split()[0]) < 17

"""The part files of an output are its own."""

from __future__ import annotations

from pathlib import Path

from medrm.pipeline.score_parts import ScoreParts, digest_of


def test_parts_of_an_output_whose_name_goes_on_stay(tmp_path: Path) -> None:
    names = [f"scores.jsonl{more}.{digest_of(more)[:16]}-0-1.scores-part" for more in ("", ".bak")]
    for name in names:
        (tmp_path / name).touch()
    ScoreParts(tmp_path / "scores.jsonl", digest_of("another address")).remove()
    assert [path.name for path in tmp_path.iterdir()] == names[1:]

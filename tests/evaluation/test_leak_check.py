"""The leak check of an evaluation, and how it is told."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mock_scorers import Rewards, make_benchmark, make_cases, oracle

from medrm.data.images import ImageFacts
from medrm.errors import DataError
from medrm.evaluation.evaluator import NamedModel, evaluate, rescore
from medrm.evaluation.leak_check import UNTRAINED, LeakCheck, check_images, leak_line, pooled
from medrm.evaluation.pages.report_page import write_page
from medrm.evaluation.report import read_report
from medrm.models.training_images import KnownImages, digests_of
from medrm.pipeline import seen_images
from medrm.schema import ImageRef

PIXELS = [f"{number + 1:02x}" * 32 for number in range(4)]


def pictured(*shown: int) -> Any:
    """A benchmark whose cases show images of these numbers, and their facts."""
    cases = tuple(
        dataclasses.replace(case, images=(ImageRef(f"{n}.png", f"{n:064}", lambda: b""),))
        for case, n in zip(make_cases("AB"), shown, strict=False)
    )
    facts = {f"{n:064}": ImageFacts(None, pixel_digest=PIXELS[n]) for n in range(4)}
    return make_benchmark(cases), facts


def test_what_is_known_decides() -> None:
    benchmark, facts = pictured(0, 1)
    known = KnownImages(digests_of(PIXELS[2:]))
    assert check_images(known, benchmark, facts) == LeakCheck("passed", 2, 2)
    gap = dataclasses.replace(known, gap="a gap")
    assert check_images(gap, benchmark, facts) == LeakCheck("not_possible", 2, 2, "a gap")
    nothing = check_images(KnownImages(None, "lost"), benchmark, facts)
    assert nothing == LeakCheck("not_possible", reason="lost")
    texts = check_images(known, make_benchmark(make_cases("AB")), {})
    assert (texts.outcome, texts.benchmark_images) == ("not_possible", 0)
    assert "no image" in str(texts.reason)
    for seen in (known, gap):
        benchmark, facts = pictured(0, 3)
        with pytest.raises(DataError, match=r"case \S*1: image 3.png") as error:
            check_images(seen, benchmark, facts)
        assert "image 0.png" not in str(error.value)


def test_a_digest_may_end_in_zeros() -> None:
    benchmark, facts = pictured(0)
    facts = {
        name: dataclasses.replace(fact, pixel_digest="ab" * 15 + "00" * 17)
        for name, fact in facts.items()
    }
    seen = KnownImages(digests_of([fact.pixel_digest for fact in facts.values()]))
    with pytest.raises(DataError, match=r"image 0\.png"):
        check_images(seen, benchmark, facts)


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (LeakCheck("passed", 1234, 56), "none of the 1,234 distinct images .* among the 56"),
        (LeakCheck("not_possible", reason="lost"), "unknown: lost"),
        (UNTRAINED, "medrm has not trained the model"),
        (None, "does not say"),
    ],
)
def test_every_evaluation_says_what_became_of_it(
    check: LeakCheck | None, said: str, tmp_path: Path
) -> None:
    benchmark = make_benchmark(make_cases("ABBA"))
    evaluate(Rewards(oracle), benchmark, tmp_path, NamedModel("model", "weights", check))
    written = read_report(tmp_path)
    outcome = "not_recorded" if check is None else check.outcome
    assert written["leak_check"] == outcome
    line = leak_line(written)
    assert line.startswith(f"leak_check: {outcome} (")
    assert re.search(said, line)
    assert rescore(tmp_path)["leak_check"] == outcome
    assert line in write_page(tmp_path).read_text(encoding="utf-8")
    assert leak_line({}) == leak_line({"leak_check": "not_recorded", "leak_check_details": None})


def test_folds_are_as_sure_as_the_least_sure() -> None:
    passed, lost = (
        dataclasses.asdict(check)
        for check in (LeakCheck("passed", 4, 9), LeakCheck("not_possible", 2, 1, "lost"))
    )
    assert pooled([passed, passed]) == {**passed, "benchmark_images": 8}
    assert pooled([passed, lost]) == {**lost, "benchmark_images": 6, "training_images": 9}
    assert pooled([passed, None]) is None


@pytest.mark.parametrize("gap", [None, "a gap"])
def test_what_an_adapter_starts_with_counts_as_learned(
    monkeypatch: pytest.MonkeyPatch, gap: str | None
) -> None:
    benchmark, facts = pictured(0, 1)
    run = SimpleNamespace(judge=SimpleNamespace(init_adapter=None))
    splits = SimpleNamespace(train=benchmark.cases, development=(), facts=facts)
    alone = seen_images.images_of_training(run, splits)  # type: ignore[arg-type]
    assert alone.digests.tolist() == digests_of(PIXELS[:2]).tolist()
    run.judge.init_adapter = "earlier"
    monkeypatch.setattr(seen_images, "saved_folder", Path)
    for digests, count in ((digests_of(PIXELS[1:3]), 3), (None, 2)):
        images = KnownImages(digests, gap if digests is not None else "lost")
        monkeypatch.setattr(seen_images, "images_of", lambda _, known=images: known)
        both = seen_images.images_of_training(run, splits)  # type: ignore[arg-type]
        assert len(both.digests) == count
        assert (both.gap is None) == (digests is not None and gap is None)

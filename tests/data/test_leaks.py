from __future__ import annotations

import io
from functools import partial

import numpy as np
import pytest
from files import picture, png
from PIL import Image

from medrm.data.contamination import find_leaks, same_pictures
from medrm.data.images import bytes_image, examine
from medrm.schema import Case


def shown(case_id: str, data: bytes, question: str = "q") -> Case:
    image = bytes_image(f"{case_id}.png", partial(bytes, data))
    return Case(case_id, (image,), f"{question} {case_id}", (f"a {case_id}", f"b {case_id}"))


def leaks(train: list[Case], benchmark: list[Case], synthetic: bool = False) -> tuple[str, ...]:
    facts = examine([*train, *benchmark])
    return find_leaks(train, benchmark, facts, synthetic).fatal


LARGE = picture(1, (160, 150))
NEAR = {
    "jpeg": lambda: png(LARGE, format="JPEG", quality=90),
    "half": lambda: png(LARGE.resize((80, 75))),
    "brighter by one": lambda: png(LARGE.point(lambda grey: min(grey + 1, 255))),
}


def test_equal_bytes_and_equal_pixels_are_fatal_even_for_drawn_images():
    train = [shown("t1", png(LARGE)), shown("t2", png(picture(2)))]
    benchmark = [
        shown("b1", png(LARGE)),
        shown("b2", png(picture(2), format="BMP")),
        shown("b3", png(picture(3))),
    ]
    for synthetic in (False, True):
        found = leaks(train, benchmark, synthetic)
        assert len(found) == 2
        assert "'b1' has the same bytes as image 't1.png' of training case 't1'" in found[0]
        assert "'b2' has the same pixels as image 't2.png' of training case 't2'" in found[1]


@pytest.mark.parametrize("change", NEAR)
def test_near_copies_are_fatal_for_real_images_alone(change):
    train = [shown("t1", png(LARGE))]
    benchmark = [shown("b1", NEAR[change]())]
    (message,) = leaks(train, benchmark)
    assert "nearly the same pixels" in message
    assert leaks(train, benchmark, synthetic=True) == ()


def test_a_perceptual_hit_needs_the_pixels_too():
    """Ten greys brighter: the same hash, but more than 2 of 255 apart."""
    grey = LARGE.convert("L")
    brighter = Image.fromarray((np.asarray(grey) * 0.8 + 20).astype(np.uint8))
    train, benchmark = [shown("t", png(grey))], [shown("b", png(brighter))]
    facts = examine([*train, *benchmark])
    first, second = (fact.perceptual_hash for fact in facts.values())
    assert (first ^ second).bit_count() <= 10
    assert leaks(train, benchmark) == ()


def test_unreadable_images_are_compared_by_bytes():
    train, benchmark = [shown("t", b"broken")], [shown("b1", b"broken"), shown("b2", b"other")]
    (message,) = leaks(train, benchmark)
    assert "'b1'" in message


def test_repeated_texts_are_counted_and_fatal_for_text_only_cases():
    train = [
        Case("t1", (), "What is it?", ("one", "two")),
        Case("t2", (), "Which side?", ("left", "right")),
    ]
    benchmark = [
        Case("b1", (), "what  is it?", ("Two", "one")),
        Case("b2", (), "What is it?", ("three", "four")),
        Case("b3", (), "New?", ("left", "new")),
    ]
    report = find_leaks(train, benchmark, {}, synthetic=False)
    assert (report.repeated_questions, report.repeated_answers) == (2, 2)
    assert report.fatal == (
        "text-only benchmark case 'b1' has the question and the answers of training case 't1'",
    )
    image = bytes_image("1.png", partial(bytes, png(picture(1))))
    pictured = [Case("b1", (image,), "What is it?", ("one", "two"))]
    facts = examine(pictured)
    assert find_leaks(train, pictured, facts, synthetic=False).fatal == ()


def test_copies_within_one_set_are_found_once():
    buffer = io.BytesIO()
    LARGE.save(buffer, "JPEG", quality=90)
    cases = [shown("c1", png(LARGE)), shown("c2", buffer.getvalue()), shown("c3", png(picture(9)))]
    found = same_pictures(cases, cases, examine(cases), synthetic=False)
    assert {frozenset((same.original.name, same.copy.name)) for same in found} == {
        frozenset(("c1.png", "c2.png"))
    }


def test_in_one_set_every_two_alike_are_found_for_likeness_does_not_pass_on():
    grey = np.asarray(LARGE.convert("L"), dtype=np.int16)
    cases = [
        shown(f"c{step}", png(Image.fromarray(np.clip(grey + 1.5 * step, 0, 255).astype(np.uint8))))
        for step in (3, 0, 1, 2)  # the first that is like 1 is 0, the first that is like 2 is 3
    ]
    found = same_pictures(cases, cases, examine(cases), synthetic=False)
    assert {frozenset((same.original.name, same.copy.name)) for same in found} == {
        frozenset((f"c{step}.png", f"c{step + 1}.png")) for step in range(3)
    }
    assert len(found) == 3

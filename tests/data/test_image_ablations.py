from __future__ import annotations

import pickle
import random
from functools import partial
from typing import Any

import pytest
from files import picture, png

from medrm.data.image_ablations import IMAGE_ABLATIONS, ablate_images, shuffled_images
from medrm.data.images import bytes_image, decode, examine
from medrm.errors import DataError
from medrm.schema import Case, ImageRef, PairLabel


def stored(seed: int, **options: Any) -> ImageRef:
    return bytes_image(f"{seed}.png", partial(bytes, png(picture(seed, (31, 17)), **options)))


def broken(name: str = "broken") -> ImageRef:
    return bytes_image(name, partial(bytes, b"no image"))


def case(case_id: str, *refs: ImageRef, cluster: str = "", organ: str = "brain") -> Case:
    label = {"overall": PairLabel((1.0, 0.0, 0.0))}
    name = cluster or f"cluster {case_id}"
    return Case(case_id, refs, "q", ("a", "b"), label, name, {"organ": organ} if organ else {})


def shuffled(cases: list[Case], synthetic: bool = False) -> dict[str, tuple[str, ...]]:
    """The names of the pictures that each case is given."""
    found = shuffled_images(cases, examine(cases), synthetic)
    return {one.case_id: tuple(ref.name for ref in one.images) for one in found}


MANY = [case(f"c{i}", stored(i), organ=("brain", "chest", "eye")[i % 3]) for i in range(60)]


def test_blank_images_keep_size_and_cluster():
    cases = [case("c1", stored(1), cluster="kept")]
    (blank,) = ablate_images("blank_images", cases, examine(cases), synthetic=False)
    found = decode(pickle.loads(pickle.dumps(blank.images[0])))
    assert found.size == (31, 17)
    assert found.getcolors() == [(31 * 17, (128, 128, 128))]
    assert blank.cluster == "kept"


def test_text_only_removes_the_images():
    cases = [case("c1", stored(1), stored(2)), case("c2")]
    found = ablate_images("text_only", cases, examine(cases), synthetic=False)
    assert [one.images for one in found] == [(), ()]


@pytest.mark.parametrize("name", IMAGE_ABLATIONS)
def test_controls_change_nothing_but_pictures_that_can_be_read(name: str):
    gone = ImageRef("gone", "", bytes, "there is no file")
    cases = [
        *(case("c1", stored(1), cluster="k1"), case("c2", stored(2), cluster="k2"), case("c3")),
        *(case("c4", stored(4), broken()), case("c5", gone)),
    ]
    found = ablate_images(name, cases, examine(cases), synthetic=False)
    for old, new in zip(cases, found, strict=True):
        for field in ("case_id", "question", "answers", "labels", "cluster", "groups"):
            assert getattr(new, field) == getattr(old, field)
        readable = old.case_id in ("c1", "c2")
        assert (new.images != old.images) == readable


def test_shuffled_pictures_are_of_the_same_organ_and_of_another_cluster():
    found = shuffled_images(MANY, examine(MANY), synthetic=False)
    owner = {one.images[0].digest: one for one in MANY}
    for old, new in zip(MANY, found, strict=True):
        giver = owner[new.images[0].digest]
        assert giver.cluster != old.cluster
        assert giver.groups["organ"] == old.groups["organ"]
    assert len({one.images[0].digest for one in found}) > 20  # not one picture for all


def test_another_organ_helps_out_where_an_organ_has_one_cluster():
    cases = [
        case("c1", stored(1), cluster="k", organ="foot"),
        case("c2", stored(2), cluster="k", organ="foot"),
        case("c3", stored(3), organ="eye"),
        case("c4", stored(4), organ=""),
    ]
    found = shuffled(cases)
    assert {found["c1"][0], found["c2"][0]} <= {"3.png", "4.png"}


def test_a_stored_copy_of_the_own_picture_is_not_given():
    large = picture(1, (160, 150))

    def ref(name: str, **options: Any) -> ImageRef:
        return bytes_image(name, partial(bytes, png(large, **options)))

    same, near = ref("same.bmp", format="BMP"), ref("near.jpg", format="JPEG", quality=90)
    cases = [case("c1", ref("own.png")), case("c2", same), case("c3", near), case("c4", stored(4))]
    found = shuffled(cases)
    assert [found[name][0] for name in ("c1", "c2", "c3")] == ["4.png"] * 3
    drawn = shuffled([cases[0], cases[1], cases[2]], synthetic=True)
    assert (drawn["c1"], drawn["c2"]) == (("near.jpg",), ("near.jpg",))
    cases = [case("c1", stored(1)), case("c2", stored(1), stored(2)), case("c3", stored(3))]
    assert shuffled(cases)["c1"] == ("3.png",)  # c2 shares a picture with it


def test_the_number_of_pictures_stays():
    cases = [case("c1", *map(stored, (1, 2, 3))), case("c2", stored(4)), case("c3", stored(4))]
    cases += [case("c4", stored(5)), case("c5")]
    found = shuffled(cases)
    assert [len(found[one.case_id]) for one in cases] == [3, 1, 1, 1, 0]
    assert set(found["c1"]) == {"4.png", "5.png"}
    often = [case(f"often {number}", stored(4)) for number in range(20)]
    found = shuffled([case("c1", stored(1), stored(2)), case("c4", stored(5)), *often])
    assert set(found["c1"]) == {"4.png", "5.png"}  # each once before one is repeated


def test_order_and_the_state_of_random_numbers_change_nothing():
    first = shuffled(MANY)
    random.seed(3)
    mixed = random.sample(MANY, len(MANY))
    assert shuffled(mixed) == first
    other = shuffled_images(MANY, examine(MANY), False, seed=1)
    assert [one.images[0].name for one in other] != [first[one.case_id][0] for one in MANY]


def test_leaving_out_cases_moves_only_those_that_had_their_pictures():
    whole, gone = shuffled(MANY), {"c3", "c17", "c41"}
    part = shuffled([one for one in MANY if one.case_id not in gone])
    lost = {f"{name[1:]}.png" for name in gone}
    assert {name for name in part if part[name] != whole[name]} == {
        name for name in part if whole[name][0] in lost
    }


def test_pictures_that_all_belong_together_cannot_be_exchanged():
    cases = [case("c1", stored(1), cluster="k"), case("c2", stored(2), cluster="k"), case("c3")]
    with pytest.raises(DataError, match="belong to one patient, study or picture"):
        shuffled(cases)

from __future__ import annotations

from functools import partial

import pytest
from files import picture, png, vote

from medrm import read_cases
from medrm.data.images import bytes_image
from medrm.data.organs import ORGANS, canonical_organ
from medrm.data.split import split_by_cluster
from medrm.errors import ConfigError, DataError
from medrm.schema import Case

SHARES = (0.7, 0.1, 0.2)


def make(sizes: list[int]) -> list[Case]:
    return [
        Case(f"c{cluster}-{index}", (), "q", ("a", "b"), cluster=f"cluster {cluster}")
        for cluster, size in enumerate(sizes)
        for index in range(size)
    ]


def test_clusters_join_patient_study_and_image(votes_file):
    path = votes_file(
        vote("c1", patient="p1"),
        vote("c2", image="images/2.png", patient="p1", study="s1"),
        vote("c3", image="images/3.png", study="s1"),
        vote("c4", image=..., images=["images/2.png"]),
        vote("c5", image=..., images=[], question="Same?"),
        vote("c6", image=..., images=[], question="Same?", answer_a="other"),
        vote("c7", image=..., images=[], question="Another?"),
        vote("c8", image="images/none.png"),
        vote("c9", image="images/none too.png"),
    )
    names = [case.cluster for case in read_cases(path)]
    assert len({*names[:4]}) == 1
    assert names[4] == names[5]
    assert len({names[0], names[4], *names[6:]}) == 5
    assert "p1" not in names[0]


def test_equal_bytes_under_two_names_are_one_cluster(votes_file):
    path = votes_file(vote("c1"), vote("c2", image="images/copy.png"))
    (path.parent / "images" / "copy.png").write_bytes(
        (path.parent / "images" / "1.png").read_bytes()
    )
    first, second = read_cases(path)
    assert first.cluster == second.cluster


def test_parts_cover_the_cases_and_cut_no_cluster():
    cases = make([1, 5, 2, 9, 1, 1, 3, 4] * 30)
    parts = split_by_cluster(cases, SHARES, seed=0)
    assert sorted(case.case_id for part in parts for case in part) == sorted(
        case.case_id for case in cases
    )
    clusters = [{case.cluster for case in part} for part in parts]
    assert sum(len(names) for names in clusters) == len(set.union(*clusters))
    for part, share in zip(parts, SHARES, strict=True):
        assert len(part) / len(cases) == pytest.approx(share, abs=0.015)
        assert part == sorted(part, key=cases.index)


def test_split_follows_the_seed_and_not_the_order():
    cases = make([1, 2] * 50)

    def names(part: list[Case]) -> set[str]:
        return {case.case_id for case in part}

    first = split_by_cluster(cases, SHARES, seed=1)
    again = split_by_cluster(cases[::-1], SHARES, seed=1)
    other = split_by_cluster(cases, SHARES, seed=2)
    assert [names(part) for part in first] == [names(part) for part in again]
    assert names(first[2]) != names(other[2])


def test_copies_of_one_picture_stay_together():
    cases = [
        Case(
            f"c{i}",
            (bytes_image(f"{i}.png", partial(bytes, png(picture(i)))),),
            "q",
            ("a", "b"),
            cluster=f"{i}",
        )
        for i in range(20)
    ]
    digests = [case.images[0].digest for case in cases]
    pairs = [(digests[i], digests[i + 1]) for i in range(0, 20, 2)]
    for part in split_by_cluster(cases, (0.5, 0.5), 0, pairs):
        numbers = {int(case.cluster) for case in part}
        assert numbers == {number ^ 1 for number in numbers}


def test_shares_and_small_sets_are_checked():
    cases = make([1] * 10)
    for shares in ((0.7, 0.1), (0.5, 0.6, -0.1), (1.0, 0.0)):
        with pytest.raises(ConfigError, match="positive shares that sum to 1"):
            split_by_cluster(cases, shares, seed=0)
    with pytest.raises(DataError, match="a part would be empty"):
        split_by_cluster(make([10]), SHARES, seed=0)


def test_organs_are_the_thirteen_and_aliases_lead_to_them():
    assert len(ORGANS) == 13
    names = ["GI tract", "Gastrointestinal Tract", "lower limb", "Lower-Limb", "LUNG", "pelvis"]
    assert [canonical_organ(name) for name in names] == [
        "gastrointestinal_tract",
        "gastrointestinal_tract",
        "lower_limb",
        "lower_limb",
        "lung",
        "pelvic_cavity",
    ]
    assert all(canonical_organ(organ) == organ for organ in ORGANS)
    assert canonical_organ(" Knee joint ") == "Knee joint"

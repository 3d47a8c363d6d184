from __future__ import annotations

import hashlib
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from files import picture, png, vote

from medrm import read_cases
from medrm.data import splits
from medrm.data.images import bytes_image
from medrm.data.organs import ORGANS, canonical_organ
from medrm.data.splits import cluster_names, parts_of
from medrm.errors import ConfigError, DataError
from medrm.schema import Case, ImageRef

SHARES = (0.7, 0.1, 0.2)


def make(sizes: list[int]) -> list[Case]:
    return [
        Case(f"c{cluster}-{index}", (), "q", ("a", "b"), cluster=f"cluster {cluster}")
        for cluster, size in enumerate(sizes)
        for index in range(size)
    ]


def split_by_cluster(
    cases: list[Case],
    fractions: tuple[float, ...],
    seed: int,
    same_images: list[tuple[str, str]] | None = None,
) -> list[list[Case]]:
    numbers = splits.split_by_cluster(cases, fractions, seed, same_images or [])
    return parts_of(cases, numbers, len(fractions))


def connected(members: list[list[str]]) -> list[str]:
    """For each member the least key of all that are connected to it by shared keys."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for keys in members:
        for key in keys:
            low, high = sorted((root(keys[0]), root(key)))
            parent[high] = low
    return [root(keys[0]) for keys in members]


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


def test_a_case_without_a_cluster_is_one_of_its_own() -> None:
    cases = [Case(f"c{number}", (), "q", ("a", "b")) for number in range(10)]
    assert [len(part) for part in split_by_cluster(cases, (0.5, 0.5), 0)] == [5, 5]


@pytest.mark.parametrize("seed", range(8))
def test_no_part_stays_empty_while_there_are_clusters(seed):
    """Four clusters, one of them of nearly all cases, and a part of a tenth."""
    parts = split_by_cluster(make([12, 2, 1, 1]), (0.7, 0.1, 0.2), seed)
    assert all(len(part) for part in parts)


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


def test_clusters_are_the_union_over_shared_keys():
    """Against a union of text keys, on random cases: the same parts under the least key's name."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        keys = [
            [f"key {one}" for one in generator.integers(0, 60, generator.integers(1, 4))]
            for _ in range(50)
        ]
        names = cluster_names(pa.chunked_array([keys[:20], keys[20:]]))
        least = [sha256(key)[:16] for key in connected(keys)]
        assert [name.decode() for name in names.tolist()] == least


def test_parts_are_filled_in_the_order_of_a_hash_of_the_least_cluster():
    """Against the same on text keys, with pictures that hold two clusters together."""
    cases = [
        Case(f"c{n}", (ImageRef("", f"{n // 3:064x}", bytes),), "q", ("a", "b"), {}, f"k{n // 6}")
        for n in range(120)
    ]
    same = [(f"{1:064x}", f"{9:064x}"), (f"{9:064x}", f"{30:064x}")]
    keys = [[f"cluster:{case.cluster}", f"image:{case.images[0].digest}"] for case in cases]
    linked = connected(keys + [[f"image:{left}", f"image:{right}"] for left, right in same])
    block_of = {case.case_id: block for case, block in zip(cases, linked, strict=False)}
    assert len(set(block_of.values())) == 18
    filled: list[list[str]] = [[], [], []]
    for block in sorted({*block_of.values()}, key=lambda name: sha256(f"7 {name}")):
        lacking = [share * 120 - len(part) for share, part in zip(SHARES, filled, strict=True)]
        filled[lacking.index(max(lacking))] += [one for one in block_of if block_of[one] == block]
    parts = split_by_cluster(cases, SHARES, 7, same)
    order = list(block_of)
    assert [sorted(part, key=order.index) for part in filled] == [
        [case.case_id for case in part] for part in parts
    ]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

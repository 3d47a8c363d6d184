"""Folds: every case in one, no cluster in two, about equal sizes, the same in any order."""

from __future__ import annotations

import random
from collections import Counter
from functools import partial

import pytest
from files import picture, png

from medrm.data import splits
from medrm.data.images import bytes_image
from medrm.data.splits import parts_of
from medrm.errors import DataError
from medrm.schema import Case


def folds_by_cluster(
    cases: list[Case], folds: int, seed: int, same_images: list[tuple[str, str]] | None = None
) -> list[list[Case]]:
    return parts_of(cases, splits.folds_by_cluster(cases, folds, seed, same_images or []), folds)


def shapes() -> list[tuple[list[int], int]]:
    """Sizes of clusters and a number of folds: some by hand, many drawn."""
    found = [([1, 1], 2), ([50, 1], 2), ([1] * 20, 20), ([9, 9, 9, 1], 3), ([30, 1, 1, 1], 4)]
    for seed in range(60):
        draw = random.Random(seed)
        folds = draw.randint(2, 20)
        clusters = draw.randint(folds, 80)
        most = draw.choice([1, 3, 40])
        found.append(([draw.randint(1, most) for _ in range(clusters)], folds))
    return found


def make(sizes: list[int]) -> list[Case]:
    return [
        Case(f"c{cluster}-{index}", (), "q", ("a", "b"), cluster=f"cluster {cluster}")
        for cluster, size in enumerate(sizes)
        for index in range(size)
    ]


def ids(cases: list[Case]) -> list[str]:
    return [case.case_id for case in cases]


@pytest.mark.parametrize(("sizes", "count"), shapes())
def test_folds_of_any_shape(sizes: list[int], count: int) -> None:
    cases = make(sizes)
    folds = folds_by_cluster(cases, count, seed=0)
    assert len(folds) == count
    assert all(folds)
    assert Counter(ids(cases)) == Counter(name for fold in folds for name in ids(fold))
    clusters = [{case.cluster for case in fold} for fold in folds]
    assert sum(map(len, clusters)) == len(sizes)  # none in two folds
    assert max(map(len, folds)) - min(map(len, folds)) <= max(sizes)
    assert all(fold == sorted(fold, key=cases.index) for fold in folds)
    shuffled = random.Random(1).sample(cases, len(cases))
    again = folds_by_cluster(shuffled, count, seed=0)
    assert [set(ids(fold)) for fold in again] == [set(ids(fold)) for fold in folds]


def test_another_seed_gives_other_folds() -> None:
    cases = make([2] * 30)
    first, second = (folds_by_cluster(cases, 3, seed) for seed in (0, 1))
    assert [ids(fold) for fold in first] != [ids(fold) for fold in second]


def test_copies_of_one_picture_are_in_one_fold() -> None:
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
    for fold in folds_by_cluster(cases, 5, 0, pairs):
        numbers = {int(case.cluster) for case in fold}
        assert numbers == {number ^ 1 for number in numbers}
        others = [case for case in cases if case not in fold]
        for part in parts_of(others, splits.split_by_cluster(others, (0.8, 0.2), 0, pairs), 2):
            kept = {int(case.cluster) for case in part}
            assert kept == {number ^ 1 for number in kept}


def test_more_folds_than_clusters_are_refused() -> None:
    with pytest.raises(DataError, match=r"12 cases of 3 clusters .* cannot be cut into 4 folds"):
        folds_by_cluster(make([4, 4, 4]), 4, seed=0)

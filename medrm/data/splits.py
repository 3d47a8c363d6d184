"""What is independent: clusters of cases, and splits that never cut through one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medrm.data.drafts import CaseDraft
from medrm.data.store.columns import chosen, cluster_column, column, flat, owners
from medrm.errors import ConfigError, DataError
from medrm.schema import Case


def keys_of(draft: CaseDraft) -> list[str]:
    """Returns what a case has in common with those it depends on: patient, study and images.

    Of a text-only case it is the question in place of images.
    """
    images = [f"image:{ref.digest or ref.name}" for ref in draft.images]
    return [*draft.independent, *(images or [f"question:{draft.question}"])]


def cluster_names(
    marks: NDArray[np.int64], counts: NDArray[np.int32], key: Callable[[int, int], str]
) -> NDArray[np.bytes_]:
    """Returns each case's cluster: the union of the cases that share a key, or keys with another.

    A name is a digest of the cluster's least key: the same in any order of the cases, and it tells
    no patient's name.

    Args:
        marks: a number for each key of `keys_of`, those of one case after those of another.
        counts: how many keys each case has, at least one.
        key: (case, number of its key) to the key.
    """
    _, first, places = np.unique(marks, return_index=True, return_inverse=True)
    case_of, starts = owners(counts), np.cumsum(counts) - counts
    part_of = components(len(first), places[starts][case_of], places)
    names = np.zeros(part_of.max() + 1, "S16")
    order = np.argsort(part_of, kind="stable")
    for part, members in groupby(order.tolist(), key=part_of.__getitem__):
        found = first[list(members)].tolist()
        least = min(key(int(case_of[one]), int(one - starts[case_of[one]])) for one in found)
        names[part] = hashlib.sha256(least.encode()).hexdigest()[:16]
    clusters: NDArray[np.bytes_] = names[part_of[places[starts]]]
    return clusters


def components(
    count: int, left: NDArray[np.integer[Any]], right: NDArray[np.integer[Any]]
) -> NDArray[np.int32]:
    """Returns for each of `count` nodes the number of the part that the edges join it to."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(count, count))
    numbers: NDArray[np.int32] = connected_components(edges, directed=False)[1]
    return numbers


def connected(members: Sequence[Sequence[str]]) -> list[str]:
    """Returns for each member the least key of all that are connected to it by shared keys.

    >>> connected([["b", "c"], ["x"], ["c", "a"]])
    ['a', 'x', 'a']
    """
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


def split_by_cluster(
    cases: Sequence[Case],
    shares: Sequence[float],
    seed: int,
    same_images: Iterable[tuple[str, str]] = (),
) -> tuple[Sequence[Case], ...]:
    """Returns the cases in parts of about the given shares, no cluster in two parts.

    Clusters are taken in the order of a hash of seed and name, and each goes to the part that lacks
    most. Within a part the cases keep their order.

    Args:
        cases: what is split.
        shares: one positive share for each part; they sum to 1.
        seed: another seed gives another split.
        same_images: pairs of image digests that show the same picture (`leaks.same_pictures`);
            their clusters stay together.

    Raises:
        ConfigError: shares that are not positive or do not sum to 1.
        DataError: too few clusters, so that a part would be empty.
    """
    if any(share <= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(
            f"split_by_cluster: shares {', '.join(map(str, shares))} are not accepted; give "
            f"positive "
            "shares that sum to 1, such as 0.7,0.1,0.2."
        )
    blocks, sizes, names = _blocks(cases, same_images)
    filled = [0] * len(shares)
    part_of = np.zeros(len(sizes), np.int8)
    for block in _drawn(seed, names).tolist():
        lacking = [share * len(cases) - count for share, count in zip(shares, filled, strict=True)]
        part_of[block] = part = lacking.index(max(lacking))
        filled[part] += int(sizes[block])
    if not all(filled):
        raise DataError(
            f"{len(cases)} cases of {len(sizes)} clusters (patients, studies or images) cannot be "
            f"split into {len(shares)} parts of shares {', '.join(map(str, shares))}: a part would "
            "be empty. Give more cases; each part needs at least one cluster."
        )
    return tuple(
        chosen(cases, np.flatnonzero(part_of[blocks] == part)) for part in range(len(shares))
    )


def folds_by_cluster(
    cases: Sequence[Case],
    folds: int,
    seed: int,
    same_images: Iterable[tuple[str, str]] = (),
) -> tuple[Sequence[Case], ...]:
    """Returns the cases in folds of about equal size, no cluster in two folds.

    The largest clusters go first, equal ones in the order of a hash of seed and name, each to the
    smallest fold: no fold is larger than another by more than the largest cluster. Within a fold
    the cases keep their order.

    Args:
        cases: what is cut.
        folds: how many.
        seed: another seed gives other folds.
        same_images: as in `split_by_cluster`.

    Raises:
        DataError: fewer clusters than folds.
    """
    blocks, sizes, names = _blocks(cases, same_images)
    if len(sizes) < folds:
        raise DataError(
            f"{len(cases)} cases of {len(sizes)} clusters (patients, studies or images) cannot be "
            f"cut into {folds} folds; each needs at least one cluster. Give more cases, or fewer "
            "folds."
        )
    filled = [0] * folds
    fold_of = np.zeros(len(sizes), np.int32)
    drawn = _drawn(seed, names)
    for block in drawn[np.argsort(-sizes[drawn], kind="stable")].tolist():
        fold_of[block] = fold = filled.index(min(filled))
        filled[fold] += int(sizes[block])
    return tuple(chosen(cases, np.flatnonzero(fold_of[blocks] == fold)) for fold in range(folds))


def _blocks(
    cases: Sequence[Case], same_images: Iterable[tuple[str, str]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bytes_]]:
    """Returns the blocks of cases that must stay together.

    Returns:
        The block of each case, the size of each block, and its name: its least cluster.
    """
    names, cluster_of = np.unique(cluster_column(cases), return_inverse=True)
    shown = flat(cases, "image")
    case_of = owners(column(cases, "images"))[shown != b""]
    pairs = np.array(list(same_images), dtype="S64").reshape(-1, 2)
    images, image_of = np.unique(
        np.concatenate([shown[shown != b""], pairs.ravel()]), return_inverse=True
    )
    linked = image_of[len(case_of) :].reshape(-1, 2) + len(names)
    part_of = components(
        len(names) + len(images),
        np.concatenate([cluster_of[case_of], linked[:, 0]]),
        np.concatenate([image_of[: len(case_of)] + len(names), linked[:, 1]]),
    )[cluster_of]
    _, first, blocks, sizes = np.unique(
        part_of, return_index=True, return_inverse=True, return_counts=True
    )
    least = np.full(len(first), len(names))
    np.minimum.at(least, blocks, cluster_of)
    return blocks, sizes, names[least]


def _drawn(seed: int, names: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Returns the names' places in a random order that depends on seed and names alone."""
    drawn = (hashlib.sha256(b"%d cluster:%s" % (seed, name)).digest() for name in names.tolist())
    return np.argsort(np.fromiter(drawn, "S32", len(names)), kind="stable")

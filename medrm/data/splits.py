"""Clusters of cases that depend on each other, and splits that never cut through one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medrm.data.image_references import ConvertedFile
from medrm.data.pseudonyms import shared_keys
from medrm.data.sources import CaseDraft
from medrm.data.store.indexed_cases import cluster_column, list_column, select
from medrm.errors import ConfigError, DataError
from medrm.schema import Case


def cluster_keys(draft: CaseDraft) -> list[str]:
    """Returns what a case has in common with those it depends on: patient, study and images.

    For a text-only case the question is used in place of images.
    """
    patients = patient_keys(draft)
    images = [f"image:{ref.digest or ref.name}" for ref in draft.images]
    return [*patients, *shared_keys(patients), *(images or [f"question:{draft.question}"])]


def patient_keys(draft: CaseDraft) -> list[str]:
    """Returns the patient and the study of a case, and those of its DICOM files as keyed hashes."""
    converted = (ref.read for ref in draft.images if isinstance(ref.read, ConvertedFile))
    hashed = {key: None for read in converted for key in read.about.get("independent", ())}
    return list(dict.fromkeys([*draft.independent, *hashed]))


def cluster_names(keys: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Returns each case's cluster: the union of the cases that share a key, or keys with another.

    A name is a digest of the cluster's least key: the same in any order of the cases, and it tells
    no patient's name. Of a key only a hash is held in memory.

    Args:
        keys: the list of `cluster_keys` of each case, at least one.
    """
    counts = pc.list_value_length(keys).to_numpy()
    all_keys = pc.list_flatten(keys)
    hashes = (hash(key) for chunk in all_keys.chunks for key in chunk.to_pylist())
    _, first, key_numbers = np.unique(
        np.fromiter(hashes, np.int64, len(all_keys)), return_index=True, return_inverse=True
    )
    # Every distinct key is joined to the first key of each case that has it.
    first_keys = key_numbers[np.cumsum(counts) - counts]
    cluster_of = components(len(first), np.repeat(first_keys, counts), key_numbers)
    names = np.zeros(cluster_of.max() + 1, "S16")
    order = np.argsort(cluster_of, kind="stable")
    for cluster, numbers in groupby(order.tolist(), key=cluster_of.__getitem__):
        least = min(all_keys[index].as_py() for index in first[list(numbers)].tolist())
        names[cluster] = hashlib.sha256(least.encode()).hexdigest()[:16]
    clusters: NDArray[np.bytes_] = names[cluster_of[first_keys]]
    return clusters


def components(
    count: int, heads: NDArray[np.integer[Any]], tails: NDArray[np.integer[Any]]
) -> NDArray[np.int32]:
    """Returns for each of `count` nodes the number of its connected component.

    Args:
        count: of the nodes.
        heads: one node of each edge.
        tails: the other node of each edge.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(heads), dtype=bool), (heads, tails)), shape=(count, count))
    numbers: NDArray[np.int32] = connected_components(edges, directed=False)[1]
    return numbers


def split_by_cluster(
    cases: Sequence[Case],
    fractions: Sequence[float],
    seed: int,
    same_images: Iterable[tuple[str, str]] = (),
) -> NDArray[np.int32]:
    """Returns the part of each case, parts of about the given fractions, no cluster in two parts.

    Clusters are taken in the order of a hash of seed and name, and each goes to the part that lacks
    most.

    Args:
        cases: what is split.
        fractions: one positive fraction for each part; they sum to 1.
        seed: another seed gives another split.
        same_images: pairs of image digests that show the same picture
            (`contamination.same_pictures`); their clusters stay together.

    Raises:
        ConfigError: fractions that are not positive or do not sum to 1.
        DataError: too few clusters, so that a part would be empty.
    """
    if any(fraction <= 0 for fraction in fractions) or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"split_by_cluster: shares {', '.join(map(str, fractions))} are not accepted; give "
            "positive shares that sum to 1, such as 0.7,0.1,0.2."
        )
    blocks, sizes, names = linked_blocks(cases, same_images)
    part_of_block = _fill(_shuffled(seed, names), sizes, fractions)
    if len(np.unique(part_of_block)) < len(fractions):
        raise DataError(
            f"{len(cases)} cases of {len(sizes)} clusters (patients, studies or images) cannot be "
            f"split into {len(fractions)} parts of shares {', '.join(map(str, fractions))}: a part "
            "would be empty. Give more cases; each part needs at least one cluster."
        )
    return part_of_block[blocks]


def folds_by_cluster(
    cases: Sequence[Case],
    folds: int,
    seed: int,
    same_images: Iterable[tuple[str, str]] = (),
) -> NDArray[np.int32]:
    """Returns the fold of each case, folds of about equal size, no cluster in two folds.

    The largest clusters go first, equal ones in the order of a hash of seed and name, each to the
    smallest fold: no fold is larger than another by more than the largest cluster.

    Args:
        cases: what is cut.
        folds: how many.
        seed: another seed gives other folds.
        same_images: as in `split_by_cluster`.

    Raises:
        DataError: fewer clusters than folds.
    """
    blocks, sizes, names = linked_blocks(cases, same_images)
    if len(sizes) < folds:
        raise DataError(
            f"{len(cases)} cases of {len(sizes)} clusters (patients, studies or images) cannot be "
            f"cut into {folds} folds; each needs at least one cluster. Give more cases, or fewer "
            "folds."
        )
    order = _shuffled(seed, names)
    largest_first = order[np.argsort(-sizes[order], kind="stable")]
    return _fill(largest_first, sizes, [1 / folds] * folds)[blocks]


def _fill(
    order: NDArray[np.int64], sizes: NDArray[np.int64], fractions: Sequence[float]
) -> NDArray[np.int32]:
    """Returns the part of each block; in their order, each goes to the part that lacks most.

    The last blocks go to parts that are still empty, so that none stays so.

    Args:
        order: the blocks.
        sizes: of the blocks, in cases.
        fractions: of each part.
    """
    targets = np.array(fractions) * sizes.sum()
    filled = np.zeros(len(fractions))
    part_of_block = np.zeros(len(sizes), np.int32)
    for position, block in enumerate(order.tolist()):
        lacking = targets - filled
        empty = (filled == 0) & (targets > 0)
        if len(order) - position <= empty.sum():
            lacking[~empty] = -np.inf
        number = int(lacking.argmax())
        part_of_block[block] = number
        filled[number] += sizes[block]
    return part_of_block


def parts_of(
    cases: Sequence[Case], part_of_case: NDArray[np.integer[Any]], count: int
) -> list[Sequence[Case]]:
    """Returns the cases of each of `count` parts, in their order.

    Args:
        cases: what was split.
        part_of_case: the part of each case, from `split_by_cluster` or `folds_by_cluster`.
        count: of the parts.
    """
    return [select(cases, np.flatnonzero(part_of_case == number)) for number in range(count)]


def linked_blocks(
    cases: Sequence[Case], same_images: Iterable[tuple[str, str]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bytes_]]:
    """Returns the blocks of cases that must stay together: they share a cluster or a picture.

    Args:
        cases: any.
        same_images: as in `split_by_cluster`.

    Returns:
        The block of each case, the size of each block, and its name: its least cluster.
    """
    names, cluster_of_case = np.unique(cluster_column(cases), return_inverse=True)
    digests, case_indices = list_column(cases, "image_digests")
    case_indices, digests = case_indices[digests != b""], digests[digests != b""]
    pairs = np.array(list(same_images), dtype="S64").ravel()
    images, numbers = np.unique(np.concatenate([digests, pairs]), return_inverse=True)
    # Nodes are clusters, then images: an edge for each image of a case, and for each pair.
    numbers += len(names)
    linked = numbers[len(digests) :].reshape(-1, 2)
    block_of_cluster = components(
        len(names) + len(images),
        np.concatenate([cluster_of_case[case_indices], linked[:, 0]]),
        np.concatenate([numbers[: len(digests)], linked[:, 1]]),
    )
    _, blocks, sizes = np.unique(
        block_of_cluster[cluster_of_case], return_inverse=True, return_counts=True
    )
    least = np.full(len(sizes), len(names))
    np.minimum.at(least, blocks, cluster_of_case)
    return blocks, sizes, names[least]


def _shuffled(seed: int, names: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Returns the indices of names in a random order that depends on seed and names alone."""
    hashes = (hashlib.sha256(b"%d cluster:%s" % (seed, name)).digest() for name in names.tolist())
    return np.argsort(np.fromiter(hashes, "S32", len(names)), kind="stable")

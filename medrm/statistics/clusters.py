"""Sums over clusters and the weights of the cluster bootstrap: what every other module here needs.

Cases i = 1..n lie in clusters c = 1..G. Every statistic here is a function of the cluster sums
S_c = sum of x_i over the cases of c and of the sizes n_c. The cluster bootstrap draws G clusters
with replacement, so that a resample is a vector of G weights w_c: its mean is
sum_c w_c S_c / sum_c w_c n_c (Davison and Hinkley 1997, section 3.8), one matrix product for all.

Sums are taken by cluster, then by value, so that the order in which the cases are given changes no
bit of a result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
"""Resamples of a bootstrap."""

_AT_ONCE = 500


def cluster_sums(values: Floats, clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Returns sums of `values` (n) or (n, D) by cluster, in name order, and the clusters' sizes.

    Raises:
        ValueError: there are more values than names of clusters, or fewer.
    """
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values cannot lie in {len(clusters)} named clusters.")
    names, index, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    columns = values.reshape(len(values), -1).T
    order = np.lexsort((*columns, index))
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, index[order], values[order])
    return sums, sizes.astype(np.float64)


def labelled_sums(values: Floats, clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Returns sums and numbers of the values that are no NaN by cluster, both of shape (G, D).

    Args:
        values: shape (n, D); NaN where a case has no label.
        clusters: the cluster of each of the n cases.
    """
    sums, _ = cluster_sums(np.nan_to_num(values), clusters)
    counts, _ = cluster_sums((~np.isnan(values)).astype(np.float64), clusters)
    return sums, counts


def resampled_weights(clusters: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yields how often each of G clusters is drawn in each resample, in pieces (R, G)."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - start)
        drawn = generator.integers(0, clusters, size=(count, clusters), dtype=np.int32)
        # One count for all resamples of the piece: resample r counts in its own G bins.
        drawn += np.arange(count, dtype=np.int32)[:, None] * clusters
        weights = np.bincount(drawn.ravel(), minlength=count * clusters)
        yield weights.reshape(count, clusters).astype(np.float64)


def resampled_means(
    values: Floats, clusters: Sequence[str], resamples: int, seed: int
) -> tuple[Floats, Floats]:
    """Returns the column means of `values` (n, D) and of its resamples (R, D).

    Whole clusters are drawn with replacement, the same ones for all columns, so that differences
    between columns are paired. A mean is NaN where nothing with a label was drawn.
    """
    sums, counts = labelled_sums(values, clusters)
    pieces = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for weights in resampled_weights(len(sums), resamples, seed):
            pieces.append((weights @ sums) / (weights @ counts))
        return sums.sum(axis=0) / counts.sum(axis=0), np.concatenate(pieces)

"""Retrieval metrics on embeddings: recall at k and the trapezoid average precision.

Every metric follows from the ranks of all true matches, `hit_ranks`, which are counted exactly
over blocks of the similarity matrix; the matrix itself is never held whole. The pictures of a
ranking need only its top, which FAISS finds: `nearest`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bicrossnet_ros.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TIE = 1e-12  # similarities nearer than this are equal: the rounding of a dot product in float64
QUERY_BLOCK, GALLERY_BLOCK = 256, 8192  # 16 MiB of similarities at a time
UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class HitRanks:
    """Where the true matches of each query stand in its ranking.

    Attributes
    ----------
    ranks : ndarray of int64, shape (H,)
        0-based ranks of all hits of all queries, query by query, ascending within a query.
    first : ndarray of int64, shape (Q + 1,)
        ``ranks[first[q]:first[q + 1]]`` are those of query q; none if no gallery image shows its
        place.
    gallery_size : int
        Number of ranked images G.
    """

    ranks: NDArray[np.int64]
    first: NDArray[np.int64]
    gallery_size: int

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of hits of each query, shape (Q,)."""
        return np.diff(self.first)

    @property
    def best(self) -> NDArray[np.int64]:
        """Rank of each query's first hit, shape (Q,); G (behind all) where it has none."""
        found = self.counts > 0
        best = np.full(len(found), self.gallery_size, np.int64)
        best[found] = self.ranks[self.first[:-1][found]]
        return best


def retrieval_metrics(
    query: NDArray[np.float32],
    query_labels: NDArray[np.int64],
    gallery: NDArray[np.float32],
    gallery_labels: NDArray[np.int64],
    *,
    ks: tuple[int, ...] = (1, 5, 10),
) -> dict[str, float]:
    """Recall at k and average precision, means over the queries.

    Parameters
    ----------
    query : ndarray of float32, shape (Q, D)
        Rows of unit length, so that a dot product is the cosine similarity.
    query_labels : ndarray of int64, shape (Q,)
        The place that each query shows.
    gallery, gallery_labels : ndarrays, shapes (G, D) and (G,)
        The same of the images that are searched.
    ks : tuple of int
        Ranks at which recall is reported.

    Returns
    -------
    dict
        ``recall_at_<k>`` (share of queries with a hit among the first k),
        ``recall_at_1_percent`` (among the first ``round(G / 100) + 1``, as the benchmark counts
        it), ``ap``; all in 0..1.

    Raises
    ------
    ConfigError
        If shapes contradict each other, or no query has any match in the gallery.
    ModelError
        If an embedding is not of unit length (a value that is not finite included).

    Notes
    -----
    A tie with a wrong image counts against the query, so a network that maps all images to one
    point scores zero. A query without any match scores zero and stays in the denominator, as in
    the benchmark's code.

    References
    ----------
    Zheng, Wei and Yang 2020, University-1652, ACM Multimedia, and its public evaluation code.
    """
    ranks = hit_ranks(query, query_labels, gallery, gallery_labels)
    return metrics_of_ranks(ranks, ks=ks)


def metrics_of_ranks(ranks: HitRanks, *, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Summarise ranks as `retrieval_metrics` does."""
    best, size = ranks.best, ranks.gallery_size
    # A gallery smaller than k holds no more than all of its images.
    figures = {f'recall_at_{k}': float(np.mean(best < min(k, size))) for k in ks}
    one_percent = min(round(size * 0.01) + 1, size)
    figures['recall_at_1_percent'] = float(np.mean(best < one_percent))
    figures['ap'] = float(average_precision(ranks).mean())
    return figures


def average_precision(ranks: HitRanks) -> NDArray[np.float64]:
    """Area under each query's precision-recall curve by the trapezoid rule.

    For hit i of n with rank r_i (all 0-based) the precision steps from ``i / r_i`` (1 if r_i is
    0) to ``(i + 1) / (r_i + 1)``; their mean has the weight 1 / n.

    Returns
    -------
    ndarray of float64, shape (Q,)
        In 0..1; 0 for a query without a match.
    """
    counts = ranks.counts
    i = np.arange(len(ranks.ranks)) - np.repeat(ranks.first[:-1], counts)
    r = ranks.ranks
    before = np.where(r == 0, 1.0, i / np.maximum(r, 1))
    after = (i + 1) / (r + 1)
    areas = (before + after) / 2
    owner = np.repeat(np.arange(len(counts)), counts)
    sums = np.bincount(owner, weights=areas, minlength=len(counts))
    return np.asarray(sums / np.maximum(counts, 1))


def hit_ranks(
    query: NDArray[np.float32],
    query_labels: NDArray[np.int64],
    gallery: NDArray[np.float32],
    gallery_labels: NDArray[np.int64],
) -> HitRanks:
    """Rank every true match of every query among the gallery.

    The rank of hit i is i (the hits before it) plus the number of wrong images that are at least
    as similar. Similarities are float64, so that equal embeddings tie whatever the order of
    summation; 16 MiB of them exist at a time.

    Parameters and errors are those of `retrieval_metrics`.
    """
    query_labels, gallery_labels = np.asarray(query_labels), np.asarray(gallery_labels)
    _check(query, query_labels, gallery, gallery_labels)
    order = np.argsort(gallery_labels, kind='stable')  # the hits of a query become one slice
    labels = gallery_labels[order]
    start = np.searchsorted(labels, query_labels, 'left')
    stop = np.searchsorted(labels, query_labels, 'right')
    first = np.concatenate([[0], np.cumsum(stop - start)])
    if first[-1] == 0:
        raise ConfigError(
            f'none of {len(query)} queries shows a place of the gallery; queries and gallery are '
            'of different data sets or splits'
        )
    similar = _similarity_of_hits(query, gallery, order, start, stop, first)
    ahead = np.zeros(first[-1], np.int64)
    for g in range(0, len(gallery), GALLERY_BLOCK):
        block = gallery[order[g : g + GALLERY_BLOCK]].astype(np.float64)
        for q in range(0, len(query), QUERY_BLOCK):
            similarity = query[q : q + QUERY_BLOCK].astype(np.float64) @ block.T
            for row, k in zip(similarity, range(q, q + QUERY_BLOCK), strict=False):
                row[max(start[k] - g, 0) : max(stop[k] - g, 0)] = -np.inf
            similarity.sort(axis=1)
            for row, k in zip(similarity, range(q, q + QUERY_BLOCK), strict=False):
                mine = slice(first[k], first[k + 1])
                ahead[mine] += len(block) - np.searchsorted(row, similar[mine] - TIE, 'left')
    position = np.arange(first[-1]) - np.repeat(first[:-1], np.diff(first))
    return HitRanks(ahead + position, first, len(gallery))


def nearest(
    query: NDArray[np.float32], gallery: NDArray[np.float32], *, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the k most similar gallery images of each query, exactly (FAISS, IndexFlatIP).

    Returns
    -------
    tuple of ndarrays, shapes (Q, min(k, G))
        Similarities, descending, and rows of the gallery.
    """
    import faiss

    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(np.ascontiguousarray(gallery, np.float32))
    similarity, rows = index.search(np.ascontiguousarray(query, np.float32), min(k, len(gallery)))
    return similarity, rows


def recall_at(
    tiles: NDArray[np.float32], queries: NDArray[np.float32], ks: tuple[int, ...] = (1, 5, 20)
) -> dict[str, float]:
    """Share of queries whose own tile is among the k most similar.

    Parameters
    ----------
    tiles, queries : ndarray of float32, shape (N, D)
        Unit length; row k of both is the same place.
    ks : tuple of int
        Ranks to report.

    Returns
    -------
    dict
        ``{'recall_at_1': share, ...}``. A tie with a wrong tile counts against the query, and so
        does an embedding that is not a number.
    """
    similarity = queries @ tiles.T
    own = np.diagonal(similarity)[:, None]
    rank = (~(similarity < own)).sum(axis=1) - 1
    return {f'recall_at_{k}': float(np.mean(rank < k)) for k in ks}


def _similarity_of_hits(
    query: NDArray[np.float32],
    gallery: NDArray[np.float32],
    order: NDArray[np.int64],
    start: NDArray[np.int64],
    stop: NDArray[np.int64],
    first: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the similarity of each hit to its query, descending within a query."""
    similar = np.empty(first[-1])
    for k, (begin, end) in enumerate(zip(start, stop, strict=True)):
        hits = gallery[order[begin:end]].astype(np.float64) @ query[k].astype(np.float64)
        similar[first[k] : first[k + 1]] = np.sort(hits)[::-1]
    return similar


def _check(
    query: NDArray[np.float32],
    query_labels: NDArray[np.int64],
    gallery: NDArray[np.float32],
    gallery_labels: NDArray[np.int64],
) -> None:
    for name, rows, labels in (
        ('query', query, query_labels),
        ('gallery', gallery, gallery_labels),
    ):
        if rows.ndim != 2 or labels.shape != rows.shape[:1] or not len(rows):
            raise ConfigError(
                f'{name} has embeddings of shape {rows.shape} and labels of shape '
                f'{labels.shape}; expected (N, D) and (N,) with N >= 1'
            )
        norms = np.linalg.norm(rows, axis=1)
        wrong = np.flatnonzero(~(np.abs(norms - 1) < UNIT_TOLERANCE))
        if len(wrong):
            raise ModelError(
                f'{name}: {len(wrong)} of {len(rows)} embeddings are not of unit length (row '
                f'{wrong[0]}: {norms[wrong[0]]:.6g}); the model is unusable or they were not '
                'normalised'
            )
    if query.shape[1] != gallery.shape[1]:
        raise ConfigError(
            f'query embeddings have {query.shape[1]} values but those of the gallery have '
            f'{gallery.shape[1]}; embed both with the same model and feature'
        )

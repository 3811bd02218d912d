"""Recall of the view evaluation: ranks with several right tiles, and intervals of shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from training.flight_rows import wilson_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUERY_BLOCK = 256
RANKS = (1, 5)


@dataclass(frozen=True, eq=False)
class Ranking:
    """What a gallery answered.

    Attributes
    ----------
    ranks : ndarray of int64, shape (Q,)
        How many wrong tiles came before the best right one, or level with it.
    wrong, right : ndarray of int64, shape (Q,)
        The best wrong tile and the best right one.
    wrong_similarity, right_similarity : ndarray of float32, shape (Q,)
        Their cosine similarities; of several headings, the largest.
    """

    ranks: NDArray[np.int64]
    wrong: NDArray[np.int64]
    right: NDArray[np.int64]
    wrong_similarity: NDArray[np.float32]
    right_similarity: NDArray[np.float32]


def rank(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], right: NDArray[np.bool_]
) -> Ranking:
    """Rank the tiles for every query.

    Parameters
    ----------
    queries : ndarray of float32, shape (Q, K, D)
        K embeddings of each query, unit length: guesses of its heading. A tile's similarity is
        that of the best guess.
    gallery : ndarray of float32, shape (G, D)
        Unit length.
    right : ndarray of bool, shape (Q, G)
        Which tiles answer which query; at least one wrong and one right one each.
    """
    parts = []
    for start in range(0, len(queries), QUERY_BLOCK):
        block = slice(start, start + QUERY_BLOCK)
        parts.append(_rank(queries[block], gallery, right[block]))
    return Ranking(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _rank(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], right: NDArray[np.bool_]
) -> tuple[NDArray[Any], ...]:
    similarity = queries[:, 0] @ gallery.T
    for guess in range(1, queries.shape[1]):
        np.maximum(similarity, queries[:, guess] @ gallery.T, out=similarity)
    rows = np.arange(len(queries))
    to_right = np.where(right, similarity, -np.inf)
    to_wrong = np.where(right, -np.inf, similarity)
    best_right, best_wrong = to_right.argmax(axis=1), to_wrong.argmax(axis=1)
    limit = to_right[rows, best_right]
    ranks = (to_wrong >= limit[:, None]).sum(axis=1)
    return ranks, best_wrong, best_right, to_wrong[rows, best_wrong], limit


def figures(ranks: NDArray[np.int64]) -> dict[str, Any]:
    """Summarise the ranks of one query or more: recall with its interval.

    Returns
    -------
    dict
        ``queries``; ``recall_at_1``, ``recall_at_5`` (0 to 1); ``interval_at_1``,
        ``interval_at_5``: their Wilson 95 % intervals, two numbers each.
    """
    row: dict[str, Any] = {'queries': len(ranks)}
    for k in RANKS:
        hits = int((ranks < k).sum())
        row[f'recall_at_{k}'] = hits / max(1, len(ranks))
        row[f'interval_at_{k}'] = list(wilson_interval(hits, len(ranks)))
    return row


def by_group(ranks: NDArray[np.int64], groups: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Summarise the ranks of every group of queries, sorted by its name; see `figures`."""
    names = np.asarray(groups)
    return {name: figures(ranks[names == name]) for name in sorted(set(groups))}

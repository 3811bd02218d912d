"""Retrieval metrics against hand-worked cases and a slow, obvious reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bicrossnet_ros.errors import ConfigError, ModelError
from training import metrics
from training.metrics import (
    HitRanks,
    average_precision,
    hit_ranks,
    nearest,
    recall_at,
    retrieval_metrics,
)


def unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def at_angles(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane: the similarity to angle 0 falls as the angle grows."""
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def one_query(hits_at: list[int], size: int) -> dict[str, float]:
    """Metrics of one query whose true matches stand at the given ranks of a gallery."""
    labels = np.full(size, 9)
    labels[hits_at] = 4
    shuffled = np.random.default_rng(0).permutation(size)
    gallery = at_angles(*np.arange(size))[shuffled]
    return retrieval_metrics(at_angles(0), np.array([4]), gallery, labels[shuffled])


@pytest.mark.parametrize(
    ('hits_at', 'ap'),
    [
        ([0], 1),
        ([1], (0 / 1 + 1 / 2) / 2),
        ([4], (0 / 4 + 1 / 5) / 2),
        ([0, 1, 2], 1),
        ([0, 2], ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2),  # 19/24
        ([1, 2], ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2),  # 5/12
        ([0, 3, 4], (1 + (1 / 3 + 2 / 4) / 2 + (2 / 4 + 3 / 5) / 2) / 3),
    ],
)
def test_average_precision_worked_by_hand(hits_at, ap):
    assert one_query(hits_at, 6)['ap'] == pytest.approx(ap, abs=1e-12)


def test_recall_worked_by_hand():
    figures = one_query([4, 7], 200)
    assert figures['recall_at_1'] == 0
    assert figures['recall_at_5'] == figures['recall_at_10'] == 1
    # The benchmark looks at index round(200 * 0.01) of the cumulative curve: the first three.
    assert figures['recall_at_1_percent'] == 0
    assert one_query([2], 200)['recall_at_1_percent'] == 1
    assert one_query([3], 200)['recall_at_1_percent'] == 0


def test_means_over_queries():
    query = np.concatenate([at_angles(0), at_angles(3)])
    figures = retrieval_metrics(
        query, np.array([0, 1]), at_angles(0, 1, 4), np.array([0, 2, 1]), ks=(1, 2)
    )
    assert figures['recall_at_1'] == 1
    figures = retrieval_metrics(
        query, np.array([0, 0]), at_angles(0, 1, 4), np.array([0, 2, 1]), ks=(1, 2, 3)
    )
    assert (figures['recall_at_1'], figures['recall_at_2'], figures['recall_at_3']) == (
        0.5,
        0.5,
        1,
    )
    assert figures['ap'] == pytest.approx((1 + (0 + 1 / 3) / 2) / 2)


def reference(table, query, query_labels, gallery, gallery_labels, ks):
    """Sort each row, wrong images first among equals, and walk down it as the benchmark does."""
    recall, ap = dict.fromkeys(ks, 0.0), 0.0
    for q, label in zip(query, query_labels, strict=True):
        ranking = sorted(
            (-table[q, g], other == label)
            for g, other in zip(gallery, gallery_labels, strict=True)
        )
        is_hit = [hit for _, hit in ranking]
        if not any(is_hit):
            continue
        for k in ks:
            recall[k] += any(is_hit[:k])
        good = [rank for rank, hit in enumerate(is_hit) if hit]
        for i, rank in enumerate(good):
            precision = (i + 1) / (rank + 1)
            old = i / rank if rank else 1.0
            ap += (old + precision) / 2 / len(good)
    return {f'recall_at_{k}': recall[k] / len(query) for k in ks} | {'ap': ap / len(query)}


POOL = unit(np.random.default_rng(5).normal(size=(7, 4)))
TABLE = POOL.astype(np.float64) @ POOL.T.astype(np.float64)


@st.composite
def retrieval(draw):
    """Rows of a small pool, so that equal embeddings, and with them ties, are common."""
    rows = st.integers(0, len(POOL) - 1)
    label = st.integers(0, 4)
    gallery = draw(st.lists(st.tuples(rows, label), min_size=1, max_size=24))
    query = draw(st.lists(st.tuples(rows, label), min_size=1, max_size=12))
    return [np.array(column) for pairs in (query, gallery) for column in zip(*pairs, strict=True)]


@pytest.mark.parametrize('blocks', [(256, 8192), (1, 1), (3, 5)])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(retrieval())
def test_equals_sorting(blocks, case):
    query, query_labels, gallery, gallery_labels = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, 'QUERY_BLOCK', blocks[0])
        patch.setattr(metrics, 'GALLERY_BLOCK', blocks[1])
        if not set(query_labels.tolist()) & set(gallery_labels.tolist()):
            with pytest.raises(ConfigError, match='none of'):
                retrieval_metrics(POOL[query], query_labels, POOL[gallery], gallery_labels)
            return
        found = retrieval_metrics(
            POOL[query], query_labels, POOL[gallery], gallery_labels, ks=(1, 2, 5, 40)
        )
    expected = reference(TABLE, query, query_labels, gallery, gallery_labels, (1, 2, 5, 40))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_ranks_of_a_larger_case_equal_sorting():
    rng = np.random.default_rng(1)
    query, gallery = unit(rng.normal(size=(300, 16))), unit(rng.normal(size=(9000, 16)))
    query_labels, gallery_labels = rng.integers(0, 200, 300), rng.integers(0, 220, 9000)
    found = hit_ranks(query, query_labels, gallery, gallery_labels)
    order = np.argsort(-(query.astype(float) @ gallery.T.astype(float)), axis=1)
    for k in range(300):
        expected = np.flatnonzero(gallery_labels[order[k]] == query_labels[k])
        np.testing.assert_array_equal(found.ranks[found.first[k] : found.first[k + 1]], expected)


def test_a_network_that_maps_all_to_one_point_scores_nothing():
    """Whatever the kernel of the matrix product, equal embeddings tie."""
    point = unit(np.random.default_rng(2).normal(size=(1, 333)))
    labels = np.arange(50)
    figures = retrieval_metrics(point.repeat(50, 0), labels, point.repeat(50, 0), labels)
    assert figures['recall_at_1'] == figures['recall_at_10'] == 0
    assert figures['ap'] == pytest.approx(1 / 100)  # behind 49 wrong ones: (0 + 1/50) / 2


def test_equal_hits_do_not_push_each_other_back():
    gallery = at_angles(5, 5, 5, 9)
    figures = retrieval_metrics(at_angles(0), np.array([1]), gallery, np.array([1, 1, 1, 2]))
    assert figures['recall_at_1'] == figures['ap'] == 1


def test_queries_without_a_match_count_as_misses():
    query, gallery = at_angles(0, 0), at_angles(0, 40)
    ranks = hit_ranks(query, np.array([0, 7]), gallery, np.array([0, 1]))
    assert ranks.counts.tolist() == [1, 0]
    assert ranks.best.tolist() == [0, 2]
    figures = retrieval_metrics(query, np.array([0, 7]), gallery, np.array([0, 1]))
    assert figures['recall_at_1'] == figures['recall_at_10'] == figures['ap'] == 0.5
    with pytest.raises(ConfigError, match='none of 2 queries shows a place of the gallery'):
        retrieval_metrics(query, np.array([5, 7]), gallery, np.array([0, 1]))


def test_one_gallery_image():
    figures = retrieval_metrics(at_angles(80), np.array([3]), at_angles(0), np.array([3]))
    assert set(figures.values()) == {1.0}


def test_average_precision_of_no_hits_is_zero():
    ranks = HitRanks(np.array([0]), np.array([0, 0, 1]), 4)
    np.testing.assert_array_equal(average_precision(ranks), [0, 1])


def test_faiss_finds_what_the_ranks_say():
    rng = np.random.default_rng(3)
    query, gallery = unit(rng.normal(size=(200, 8))), unit(rng.normal(size=(400, 8)))
    query_labels, gallery_labels = rng.integers(0, 60, 200), rng.integers(0, 60, 400)
    similarity, rows = nearest(query, gallery, k=10)
    assert (np.diff(similarity, axis=1) <= 0).all()
    is_hit = gallery_labels[rows] == query_labels[:, None]
    figures = retrieval_metrics(query, query_labels, gallery, gallery_labels)
    for k in (1, 5, 10):
        assert figures[f'recall_at_{k}'] == pytest.approx(is_hit[:, :k].any(axis=1).mean())
    assert nearest(query, gallery[:3], k=10)[1].shape == (200, 3)


def test_recall_of_paired_rows_is_a_special_case():
    rng = np.random.default_rng(4)
    tiles = unit(rng.normal(size=(80, 6)))
    queries = unit(tiles + rng.normal(0, 0.4, tiles.shape))
    labels = np.arange(80)
    figures = retrieval_metrics(queries, labels, tiles, labels, ks=(1, 5, 20))
    paired = recall_at(tiles, queries)
    assert paired == {name: figures[name] for name in paired}
    assert 0 < paired['recall_at_1'] < 1
    same = np.ones((4, 1), np.float32)
    assert recall_at(same, same, ks=(1, 4)) == {'recall_at_1': 0, 'recall_at_4': 1}


def test_wrong_input():
    good, labels = at_angles(0, 1), np.array([0, 1])
    with pytest.raises(ConfigError, match=r'query has embeddings of shape \(2, 2\) and labels'):
        retrieval_metrics(good, labels[:1], good, labels)
    with pytest.raises(ConfigError, match=r'expected .* N >= 1'):
        retrieval_metrics(good, labels, good[:0], labels[:0])
    with pytest.raises(ConfigError, match='have 3 values but those of the gallery have 2'):
        retrieval_metrics(np.eye(2, 3, dtype=np.float32), labels, good, labels)
    for wrong in (0.5, np.nan):
        bad = good.copy()
        bad[1] *= wrong
        with pytest.raises(ModelError, match=r'gallery: 1 of 2 .* not of unit length \(row 1'):
            retrieval_metrics(good, labels, bad, labels)


def test_an_embedding_that_is_not_a_number_finds_nothing():
    tiles = np.eye(4, dtype=np.float32)
    queries = tiles.copy()
    queries[1] = np.nan
    assert recall_at(tiles, queries, (1,)) == {'recall_at_1': 0.75}

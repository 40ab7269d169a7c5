"""The nearest vectors are those of a plain float64 sort, whatever BLAS rounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fed_distill.serving import nearest as subject
from fed_distill.serving.nearest import at_most_kth, margin, nearest, recall


def unit(draw, count, width):
    found = draw.standard_normal((count, width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def slow(vectors, query, k, alive):
    """Rows by a full sort in float64, one product after another."""
    products = [float(np.dot(vector.astype(np.float64), query.astype(np.float64))) for vector in vectors]
    return sorted(np.flatnonzero(alive).tolist(), key=lambda row: (-round(products[row], 12), row))[:k]


@given(
    st.integers(0, 10**6), st.integers(0, 300), st.integers(1, 8), st.integers(1, 60), st.sampled_from([0.0, 0.3, 1.0])
)
def test_the_nearest_are_those_of_a_full_sort(seed, count, width, k, dead):
    draw = np.random.default_rng(seed)
    vectors = unit(draw, count, width)
    if count:
        vectors = vectors[draw.integers(0, count, count)]  # with equal vectors: the first of them is first
    queries, alive = unit(draw, 2, width), draw.random(count) >= dead
    for query, found in zip(queries, nearest(vectors, queries, k, alive), strict=True):
        assert found.rows.tolist() == slow(vectors, query, k, alive)
        expected = [np.dot(vectors[row].astype(np.float64), query.astype(np.float64)) for row in found.rows]
        np.testing.assert_allclose(found.similarities, expected, atol=1e-12)


def test_of_many_vectors_strips_are_selected_first_and_products_are_bounded(monkeypatch):
    draw = np.random.default_rng(0)
    vectors, queries = unit(draw, 5000, 4), unit(draw, 5, 4)
    alive = draw.random(5000) < 0.5
    monkeypatch.setattr(subject, "_STRIP", 8)
    monkeypatch.setattr(subject, "_PRODUCT_BYTES", 2 * 4 * 5000)
    for query, found in zip(queries, nearest(vectors, queries, 20, alive), strict=True):
        assert found.rows.tolist() == slow(vectors, query, 20, alive)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=100), st.data())
def test_at_least_k_values_reach_the_bound(values, data):
    k = data.draw(st.integers(1, len(values)))
    array = np.array(values, dtype=np.float32)
    original, subject._STRIP = subject._STRIP, 4
    try:
        assert (array >= at_most_kth(array, k)).sum() >= k
    finally:
        subject._STRIP = original


def test_rounding_stays_within_the_margin():
    draw = np.random.default_rng(1)
    for width in (1, 8, 64, 256):
        left, right = unit(draw, 200, width), unit(draw, 200, width)
        off = np.abs((left @ right.T) - left.astype(np.float64) @ right.astype(np.float64).T).max()
        assert 2 * off <= margin(width)


def test_recall_by_hand():
    expected = [np.array([1, 2, 3, 4]), np.array([5, 6]), np.array([], dtype=np.int64)]
    found = [np.array([4, 9, 1]), np.array([6, 5]), np.array([7])]
    assert recall(found, expected) == pytest.approx((0.5 + 1.0) / 2)

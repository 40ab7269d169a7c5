"""Exact nearest vectors by inner product, in NumPy.

A float32 matrix product selects a superset of the nearest vectors, whose similarities are then computed again in
float64. Results therefore do not depend on the order in which BLAS sums, and equal vectors have equal similarities.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]

_PRODUCT_BYTES = 64 * 2**20
"""Largest matrix of products that is held at once."""
_STRIP = 512
"""Rows of which one maximum is taken, before the largest maxima are selected."""


class Nearest(NamedTuple):
    """rows: positions of the nearest vectors, best first, int64 ``[n]``; of equal similarities the first row is first.
    similarities: their inner products with the query, float64 ``[n]``."""

    rows: Rows
    similarities: Values


def nearest(vectors: Vectors, queries: Vectors, k: int, alive: Mask | None = None) -> list[Nearest]:
    """Return the ``k`` nearest of ``vectors`` for each query; fewer if there are fewer.

    The cost is one pass over ``vectors`` for each query, shared by queries that are passed together.

    :param vectors: ``[n, width]``, of length 1 or 0
    :param queries: ``[m, width]``, of length 1 or 0
    :param alive: which vectors count, bool ``[n]``; None: all
    """
    return [
        ranked(vectors[rows], rows, query, k)
        for query, rows in zip(queries, candidates(vectors, queries, k, alive), strict=True)
    ]


def candidates(vectors: Vectors, queries: Vectors, k: int, alive: Mask | None = None) -> list[Rows]:
    """Return rows that include the ``k`` nearest of each query, ascending, int64 ``[at least k]``; parameters as of
    ``nearest``."""
    count = len(vectors) if alive is None else int(alive.sum())
    k = min(k, count)
    if not k:
        return [np.empty(0, dtype=np.int64) for _ in queries]
    batch = max(1, _PRODUCT_BYTES // (4 * len(vectors)))
    found = []
    for start in range(0, len(queries), batch):
        for products in queries[start : start + batch] @ vectors.T:
            if alive is not None:
                products[~alive] = -np.inf
            rows = np.flatnonzero(products >= at_most_kth(products, k) - margin(vectors.shape[1]))
            found.append(rows if alive is None else rows[alive[rows]])
    return found


def ranked(vectors: Vectors, rows: Rows, query: Vectors, k: int) -> Nearest:
    """Return the ``k`` of ``rows`` (``[n]``, ascending) whose ``vectors`` (``[n, width]``) are nearest to ``query``."""
    similarities = (vectors.astype(np.float64) * query.astype(np.float64)).sum(axis=1)
    order = np.argsort(-similarities, kind="stable")[:k]
    return Nearest(rows[order], similarities[order])


def margin(width: int) -> float:
    """Return how far apart two float32 products of unit vectors of ``width`` can be whose exact order is the other.

    Each is off by at most n u / (1 - n u), with the unit roundoff u = 2^-24, in any order of summation (Higham,
    Accuracy and Stability of Numerical Algorithms, 2002, eq. 3.5).
    """
    rounding = width * 2.0**-24
    return 2.0 * rounding / (1.0 - rounding)


def at_most_kth(values: npt.NDArray[np.float32], k: int) -> float:
    """Return a number that at least ``k`` of ``values`` (``[n]``, n >= k) reach, close to the k-th largest.

    Of many values it is the k-th largest of the maxima of strips: each strip has one value that reaches its maximum.
    """
    strips = len(values) // _STRIP
    if strips < 4 * k:
        return float(np.partition(values, len(values) - k)[len(values) - k])
    maxima = values[: strips * _STRIP].reshape(strips, _STRIP).max(axis=1)
    return float(np.partition(maxima, strips - k)[strips - k])


def recall(found: Sequence[Rows], expected: Sequence[Rows]) -> float:
    """Return the mean share of ``expected`` rows of a query that are in ``found``; queries without any are left out."""
    shares = [
        len(np.intersect1d(one, other)) / len(other) for one, other in zip(found, expected, strict=True) if len(other)
    ]
    return float(np.mean(shares)) if shares else 1.0

"""What an index misses: the recall of approximate vectors, and that of the first stage against the head.

Both compare with a search that misses nothing, on vectors of sample queries.
"""

import numpy as np

from fed_distill.serving.index import Segment, VectorStudent, nearest_rows
from fed_distill.serving.nearest import Rows, Vectors, nearest, recall


def graph_recall(segment: Segment, queries: Vectors, k: int, candidates: int) -> float:
    """Return the mean share of the ``k`` nearest vectors that are among the first ``k`` of ``candidates`` found.

    :param segment: products with a graph
    :param queries: ``[m, width]``
    """
    found = [nearest_rows([segment], query, max(k, candidates)).rows[:k] for query in queries]
    exact = nearest(segment.vectors, queries, k, segment.alive)
    return recall(found, [one.rows for one in exact])


def first_stage_recall(segment: Segment, student: VectorStudent, queries: Vectors, k: int, candidates: int) -> float:
    """Return the mean share of the ``k`` products of best expected gain that are among the ``candidates`` found first.

    The head scores every product for every query: n m evaluations.
    """
    rows = np.flatnonzero(segment.alive)
    vectors = segment.vectors if len(rows) == len(segment.alive) else segment.vectors[rows]
    best: list[Rows] = []
    for query in queries:
        scores = student.score_vectors(query, vectors)
        best.append(rows[np.argsort(-scores, kind="stable")[:k]])
    found = [nearest_rows([segment], query, candidates).rows for query in queries]
    return recall(found, best)

"""What an index misses: the recall of approximate vectors, and that of the first stage against the head.

Both compare with a search that misses nothing, on vectors of sample queries.
"""

import numpy as np

from fed_distill.serving.index import ProductBlock, VectorStudent, nearest_rows
from fed_distill.serving.nearest import Rows, Vectors, nearest, recall


def graph_recall(block: ProductBlock, queries: Vectors, k: int, candidates: int) -> float:
    """Return the mean share of the ``k`` nearest vectors that are among the first ``k`` of ``candidates`` found.

    :param block: products with a graph
    :param queries: ``[m, width]``
    """
    found = [nearest_rows([block], query, max(k, candidates)).rows[:k] for query in queries]
    exact = nearest(block.vectors, queries, k, block.alive)
    return recall(found, [one.rows for one in exact])


def first_stage_recall(block: ProductBlock, student: VectorStudent, queries: Vectors, k: int, candidates: int) -> float:
    """Return the mean share of the ``k`` products of best expected gain that are among the ``candidates`` found first.

    The head scores every product for every query: n m evaluations.
    """
    rows = np.flatnonzero(block.alive)
    vectors = block.vectors if len(rows) == len(block.alive) else block.vectors[rows]
    best: list[Rows] = []
    for query in queries:
        scores = student.score_vectors(query, vectors)
        best.append(rows[np.argsort(-scores, kind="stable")[:k]])
    found = [nearest_rows([block], query, candidates).rows for query in queries]
    return recall(found, best)

"""The weight of a search by words in the sum of its scores and a student's, chosen on judged queries."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fed_distill.data.examples import Ranking, Task
from fed_distill.evaluation.metrics import ndcg_by_query
from fed_distill.evaluation.with_words import with_bm25

WEIGHTS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Weights of BM25 among which ``best_weight`` chooses; 0 is the student alone."""


def by_weight(
    gains: npt.NDArray[np.floating],
    bm25: npt.NDArray[np.floating],
    view: Ranking,
    task: Task,
    weights: Sequence[float] = WEIGHTS,
) -> npt.NDArray[np.float64]:
    """Return nDCG@10 of the sum by weight and query of ``view`` with a gain, float64 ``[weights, queries]``.

    :param gains: a student's expected gains of the view's candidates, in [0, 1], ``[n]``
    :param bm25: scores of a search by words of the same candidates ``[n]``
    :param task: a task with gains
    :raises DataError: the task has no gains
    """
    return np.array([ndcg_by_query(with_bm25(gains, bm25, weight), view, task) for weight in weights])


def best_weight(gains: npt.NDArray[np.floating], bm25: npt.NDArray[np.floating], view: Ranking, task: Task) -> float:
    """Return the one of ``WEIGHTS`` with the best nDCG@10 on queries that are not test queries, the smallest of equally
    good ones.

    Parameters and errors are those of ``by_weight``.
    """
    found = by_weight(gains, bm25, view, task)
    return WEIGHTS[int(found.mean(axis=1).argmax())] if found.size else WEIGHTS[0]

"""The weight of a search by words in the sum of its scores and a student's, chosen on judged queries."""

import numpy as np
import numpy.typing as npt

from fed_distill.data.examples import Ranking, Task
from fed_distill.evaluation.metrics import ranking
from fed_distill.evaluation.with_words import with_bm25

WEIGHTS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Weights of BM25 among which ``best_weight`` chooses; 0 is the student alone."""


def best_weight(gains: npt.NDArray[np.floating], bm25: npt.NDArray[np.floating], view: Ranking, task: Task) -> float:
    """Return the weight with the best nDCG@10 on ``view``, the smallest of equally good ones.

    :param gains: a student's expected gains of the view's candidates, in [0, 1], ``[n]``
    :param bm25: scores of a search by words of the same candidates ``[n]``
    :param view: queries to choose on, which are not test queries
    :param task: a task with gains
    :raises DataError: the task has no gains
    """
    return max(WEIGHTS, key=lambda weight: ranking(with_bm25(gains, bm25, weight), view, task)["ndcg@10"] or 0.0)

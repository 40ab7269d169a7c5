"""The sum of a student's scores and those of a search by words, as a shop ranks that has both.

After Bruch, Gai and Ingber 2023, "An analysis of fusion functions for hybrid retrieval", ACM TOIS 42: a weighted sum is
above reciprocal rank fusion, and few queries are enough to choose its weight. They normalize the scores of each query;
here the log-odds of a student's expected gain take the place of that, so that each candidate has a score of its own.
"""

import numpy as np
import numpy.typing as npt

from fed_distill.data.examples import Ranking, Task
from fed_distill.evaluation.metrics import ranking

WEIGHTS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
"""Weights of BM25 among which ``best_weight`` chooses; 0 is the student alone."""
_CERTAIN = 1e-12


def with_bm25(
    gains: npt.NDArray[np.floating], bm25: npt.NDArray[np.floating], weight: float
) -> npt.NDArray[np.float64]:
    """Return the log-odds of expected gains plus ``weight`` times BM25, float64 ``[n]``.

    :param gains: a student's expected gains, in [0, 1], ``[n]``
    :param bm25: scores of a search by words ``[n]``
    """
    likely = np.clip(gains.astype(np.float64), _CERTAIN, 1.0 - _CERTAIN)
    return np.asarray(np.log(likely / (1.0 - likely)) + weight * bm25, dtype=np.float64)


def best_weight(gains: npt.NDArray[np.floating], bm25: npt.NDArray[np.floating], view: Ranking, task: Task) -> float:
    """Return the weight with the best nDCG@10 on ``view``, the smallest of equally good ones.

    :param gains: a student's expected gains of the view's candidates, in [0, 1], ``[n]``
    :param bm25: scores of a search by words of the same candidates ``[n]``
    :param view: queries to choose on, which are not test queries
    :param task: a task with gains
    :raises DataError: the task has no gains
    """
    return max(WEIGHTS, key=lambda weight: ranking(with_bm25(gains, bm25, weight), view, task)["ndcg@10"] or 0.0)

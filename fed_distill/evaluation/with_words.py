"""The sum of a student's scores and those of a search by words, as a shop ranks that has both.

After Bruch, Gai and Ingber 2023, "An analysis of fusion functions for hybrid retrieval", ACM TOIS 42: a weighted sum is
above reciprocal rank fusion, and few queries are enough to choose its weight. They normalize the scores of each query;
here the log-odds of a student's expected gain take the place of that, so that each candidate has a score of its own.
"""

import numpy as np
import numpy.typing as npt

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

"""BM25, which ranks titles by the words that they share with a query: what most shops search with, as a control; and
the sum of BM25 and a student, as a shop would rank that has both.

Robertson and Zaragoza 2009, "The probabilistic relevance framework: BM25 and beyond", equation 3.15, with the inverse
document frequency of Lucene, which is never negative: ln(1 + (N - n + 0.5) / (n + 0.5)). A weighted sum of lexical and
semantic scores is above reciprocal rank fusion, and few queries are enough to choose the weight (Bruch, Gai and Ingber
2023, "An analysis of fusion functions for hybrid retrieval", ACM TOIS 42).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from fed_distill.data.examples import Examples
from fed_distill.evaluation.recommenders import Recommender, Scores
from fed_distill.text.hashing import normalize

_SATURATION, _LENGTH = 1.2, 0.75
"""k1 and b, the defaults of Lucene."""
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Weights of BM25 in a sum with a student's log-odds: the best in validation is taken. 0 is the student alone."""
_CERTAIN = 1e-6
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+")


@cache
def words_of(text: str) -> tuple[str, ...]:
    """Return the case-folded words of a text; in Chinese and Japanese, its characters."""
    return tuple(_WORD.findall(normalize(text)))


def bm25(titles: Iterable[str]) -> Recommender:
    """Return BM25 with the document frequencies and the mean length of the distinct ``titles``."""
    documents = [words_of(title) for title in sorted(set(titles))]
    frequency = Counter(word for document in documents for word in set(document))
    count = len(documents)
    mean = sum(map(len, documents)) / max(count, 1) or 1.0

    def one(query: str, title: str) -> float:
        document = words_of(title)
        found, longer = Counter(document), 1 - _LENGTH + _LENGTH * len(document) / mean
        return sum(
            math.log1p((count - frequency[word] + 0.5) / (frequency[word] + 0.5))
            * (found[word] * (_SATURATION + 1) / (found[word] + _SATURATION * longer))
            for word in words_of(query)
            if word in found
        )

    def scores(examples: Examples) -> Scores:
        pairs: Sequence[str] = examples.pairs or ()
        return np.array([one(*pair) for pair in zip(examples.texts, pairs, strict=True)], dtype=np.float64)

    return scores


def with_bm25(gains: npt.NDArray[np.floating], words: Scores, weight: float) -> Scores:
    """Return the log-odds of a student's expected gains plus ``weight`` times BM25, less the smallest sum, ``[n]``.

    No score depends on the other candidates of a query, so that a search service can add the two for any candidate.

    :param gains: expected gains, in [0, 1], ``[n]``
    :param words: scores of BM25 ``[n]``
    """
    likely = np.clip(gains.astype(np.float64), _CERTAIN, 1.0 - _CERTAIN)
    scores: Scores = np.log(likely / (1.0 - likely)) + weight * words
    return np.asarray(scores - scores.min(initial=np.inf))

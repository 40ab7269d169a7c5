"""BM25, which ranks titles by the words that they share with a query: what most shops search with, as a control.

Robertson and Zaragoza 2009, "The probabilistic relevance framework: BM25 and beyond", equation 3.15, with the inverse
document frequency of Lucene, which is never negative: ln(1 + (N - n + 0.5) / (n + 0.5)). Scores have the scale of
Lucene 8 and later, without the factor k1 + 1 (which Elasticsearch has).
"""

import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np

from fed_distill.data.examples import Examples
from fed_distill.evaluation.recommenders import Recommender, Scores
from fed_distill.text.hashing import normalize

_SATURATION, _LENGTH = 1.2, 0.75
"""k1 and b, the defaults of Lucene."""
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_VARIATION_SELECTORS = "\ufe00-\ufe0f"


@cache
def words_of(text: str) -> tuple[str, ...]:
    """Return the case-folded words of a text, letters with their marks; in Chinese and Japanese, its characters."""
    return tuple(_word().findall(normalize(text)))


@cache
def _word() -> re.Pattern[str]:
    marks = "".join(filter(lambda one: unicodedata.category(one) in ("Mn", "Mc"), map(chr, range(sys.maxunicode + 1))))
    letter = rf"[^\W{_IDEOGRAPHS}]"
    return re.compile(rf"[{_IDEOGRAPHS}]|{letter}(?:{letter}|(?![{_VARIATION_SELECTORS}])[{re.escape(marks)}])*")


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
            * (found[word] / (found[word] + _SATURATION * longer))
            for word in words_of(query)
            if word in found
        )

    def scores(examples: Examples) -> Scores:
        pairs: Sequence[str] = examples.pairs or ()
        return np.array([one(*pair) for pair in zip(examples.texts, pairs, strict=True)], dtype=np.float64)

    return scores

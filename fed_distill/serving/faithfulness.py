"""Whether explanations name the words that the score depends on: deletion curves.

Words are deleted one after another, the most important first, and the student scores what is left (Samek et al., TNNLS
2017, section III; the deletion metric of Petsiuk et al., RISE, BMVC 2018, section 4.2). The faster the score falls, the
smaller the area under its curve; orders at random are the control.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fed_distill.models.prediction import predict
from fed_distill.models.word_contributions import Explanation, WordContribution
from fed_distill.serving.explain import explain
from fed_distill.serving.student import Student

Values = npt.NDArray[np.float64]


class DeletionAreas(NamedTuple):
    """Mean areas under the deletion curves of explained pairs. explained: the words of largest contribution first.
    random: in random orders."""

    explained: float
    random: float


def deletion_areas(
    student: Student, queries: Sequence[str], titles: Sequence[str], seed: int, orders: int = 5
) -> DeletionAreas:
    """Explain ``n`` pairs and return the areas under their deletion curves.

    :param orders: random orders of the words of each pair
    """
    draw = np.random.default_rng(seed)
    explained, random = [], []
    for query, title in zip(queries, titles, strict=True):
        explanation = explain(student, query, title)
        contributions = [word.contribution for word in (*explanation.query_words, *explanation.title_words)]
        first = np.argsort(-np.asarray(contributions), kind="stable")
        shuffled = [draw.permutation(len(contributions)) for _ in range(orders)]
        areas = [deletion_scores(student, explanation, order.tolist()).mean() for order in (first, *shuffled)]
        explained.append(areas[0])
        random.append(np.mean(areas[1:]))
    return DeletionAreas(float(np.mean(explained)), float(np.mean(random)))


def deletion_scores(student: Student, explanation: Explanation, order: Sequence[int]) -> Values:
    """Return the score with no word deleted, with the first of ``order``, the first two ..., float64 ``[words + 1]``.

    :param order: positions of all words of the query, then of the title
    """
    words = [(0, word) for word in explanation.query_words] + [(1, word) for word in explanation.title_words]
    texts: list[list[str]] = [[], []]
    for deleted in range(len(order) + 1):
        gone = [words[at] for at in order[:deleted]]
        for number, text in enumerate((explanation.query, explanation.title)):
            texts[number].append(_without(text, [word for of_text, word in gone if of_text == number]))
    probabilities = predict(student.model, student.model.encode(texts[0], texts[1]))
    scores: Values = probabilities.numpy().astype(np.float64) @ student.gains
    return scores


def _without(text: str, words: Sequence[WordContribution]) -> str:
    signs = list(text)
    for word in words:
        signs[word.start : word.stop] = [" "] * (word.stop - word.start)
    return "".join(signs)

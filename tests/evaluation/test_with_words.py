"""The sum of a student and a search by words, by hand."""

import math

import numpy as np
import pytest

from fed_distill.data.examples import Examples, Ranking
from fed_distill.data.tasks import RELEVANCE
from fed_distill.evaluation.bm25_weight import best_weight
from fed_distill.evaluation.with_words import with_bm25


def test_the_sum_is_of_log_odds_and_weighted_bm25():
    sums = with_bm25(np.array([0.5, 0.9, 0.0, 1.0]), np.array([2.0, 0.0, 1.0, 0.0]), 0.4)
    certain = math.log(1e12 - 1)
    assert sums == pytest.approx([0.8, math.log(9.0), 0.4 - certain, certain], rel=1e-4)


def test_a_weight_of_0_ranks_as_the_student_does():
    gains = np.random.default_rng(0).random(50)
    sums = with_bm25(gains.astype(np.float32), np.arange(50.0), 0.0)
    assert sums.argsort().tolist() == gains.argsort().tolist()


@pytest.mark.parametrize(("words", "expected"), [([0.0, 9.0], 0.5), ([9.0, 0.0], 0.0), ([0.0, 0.0], 0.0)])
def test_the_best_weight_is_the_smallest_that_ranks_best(words, expected):
    """The student gives the wrong title log-odds of log(9) = 2.197 and the right one 0: a score of 9 for the right one
    turns them from a weight of 0.244 on."""
    exact, irrelevant = RELEVANCE.positive_index, RELEVANCE.gains.index(0.0)
    examples = Examples(
        ("q", "q"), ("wrong", "right"), np.array([irrelevant, exact]), np.zeros(2, np.int64), ("m", "m")
    )
    view = Ranking(examples, np.zeros(2, np.int64))
    assert best_weight(np.array([0.9, 0.5]), np.array(words), view, RELEVANCE) == expected

"""The sum of a student and a search by words, by hand."""

import math

import numpy as np
import pytest

from fed_distill.evaluation.with_words import with_bm25


def test_the_sum_is_of_log_odds_and_weighted_bm25():
    sums = with_bm25(np.array([0.5, 0.9, 0.0, 1.0]), np.array([2.0, 0.0, 1.0, 0.0]), 0.4)
    certain = math.log(1e12 - 1)
    assert sums == pytest.approx([0.8, math.log(9.0), 0.4 - certain, certain], rel=1e-4)


def test_a_weight_of_0_ranks_as_the_student_does():
    gains = np.random.default_rng(0).random(50)
    sums = with_bm25(gains.astype(np.float32), np.arange(50.0), 0.0)
    assert sums.argsort().tolist() == gains.argsort().tolist()

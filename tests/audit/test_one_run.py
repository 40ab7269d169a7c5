"""The one-run bound by hand, in exact arithmetic, and against mechanisms whose epsilon is known."""

import functools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest

from fed_distill.audit.one_run import best_bound, epsilon_lower_bound, guess, p_value
from fed_distill.errors import DataError


def exact_p_value(canaries, guesses, correct, chance, delta):
    """Steinke et al. 2023, theorem 5.2, in fractions, term by term."""
    mass = [math.comb(guesses, k) * chance**k * (1 - chance) ** (guesses - k) for k in range(guesses + 1)]
    slopes = [sum(mass[correct - i : correct], Fraction(0)) / i for i in range(1, correct + 1)]
    return min(sum(mass[correct:]) + 2 * canaries * delta * max(slopes, default=Fraction(0)), Fraction(1))


@pytest.mark.parametrize("delta", [Fraction(0), Fraction(1, 10_000), Fraction(1, 100)])
@pytest.mark.parametrize(
    ("canaries", "guesses", "correct"), [(10, 10, 9), (40, 20, 20), (40, 20, 14), (30, 30, 0), (5, 0, 0)]
)
def test_p_values_equal_exact_arithmetic(canaries, guesses, correct, delta):
    chance = Fraction(3, 4)
    found = p_value(canaries, guesses, correct, math.log(3), float(delta))
    assert found == pytest.approx(float(exact_p_value(canaries, guesses, correct, chance, delta)), rel=1e-9)


def test_two_right_guesses_of_two_by_hand():
    """At epsilon 0 a guess is a fair coin: P[B = 2] = 1/4, and of P[B = 1] / 1 = 1/2 and P[B < 2] / 2 = 3/8 the first
    is the larger."""
    assert p_value(100, 2, 2, 0.0, 0.0) == pytest.approx(1 / 4)
    assert p_value(100, 2, 2, 0.0, 1e-4) == pytest.approx(1 / 4 + 2 * 100 * 1e-4 * 1 / 2)


def test_without_a_wrong_guess_the_bound_is_that_of_a_coin_that_never_failed():
    """q^r = 0.05 has q = 0.05^(1/r), and epsilon = log(q / (1 - q))."""
    chance = 0.05 ** (1 / 100)
    assert epsilon_lower_bound(1000, 100, 100, 0.0, 0.95) == pytest.approx(math.log(chance / (1 - chance)), abs=1e-5)


@pytest.mark.parametrize(("guesses", "correct"), [(100, 80), (500, 300), (2000, 1900)])
def test_without_delta_the_bound_is_the_log_odds_of_scipys_one_sided_clopper_pearson_limit(guesses, correct):
    limit = binomtest(correct, guesses, alternative="greater").proportion_ci(0.95, method="exact").low
    found = epsilon_lower_bound(2000, guesses, correct, 0.0, 0.95)
    assert found == pytest.approx(math.log(limit / (1 - limit)), abs=1e-5)


@pytest.mark.parametrize(("guesses", "correct"), [(0, 0), (100, 50), (100, 0), (4, 4)])
def test_guesses_that_chance_explains_bound_nothing(guesses, correct):
    assert epsilon_lower_bound(200, guesses, correct, 1e-5, 0.95) == 0.0


def test_a_larger_delta_and_more_confidence_lower_the_bound():
    bounds = [epsilon_lower_bound(1000, 200, 190, delta, 0.95) for delta in (0.0, 1e-5, 1e-4, 1e-3)]
    assert bounds == sorted(bounds, reverse=True) and len(set(bounds)) == 4
    assert epsilon_lower_bound(1000, 200, 190, 1e-5, 0.99) < bounds[1]


def test_the_bound_is_where_the_p_value_reaches_the_error_probability():
    found = epsilon_lower_bound(1000, 200, 180, 1e-4, 0.95)
    assert p_value(1000, 200, 180, found, 1e-4) < 0.05 <= p_value(1000, 200, 180, found + 1e-5, 1e-4)


@functools.cache
def bound_of(canaries, guesses, correct, delta):
    return epsilon_lower_bound(canaries, guesses, correct, delta, 0.95)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_randomized_response_is_bounded_below_its_epsilon_in_19_of_20_trials(epsilon):
    """Each coin is told truly with probability e^eps / (1 + e^eps): the mechanism for which the theorem is tight."""
    right = np.random.default_rng(0).binomial(400, 1 / (1 + math.exp(-epsilon)), 500)
    bounds = [bound_of(400, 400, int(correct), 0.0) for correct in right]
    assert np.mean(np.array(bounds) <= epsilon) >= 0.95 - 2 * math.sqrt(0.05 * 0.95 / 500)
    assert np.mean(bounds) > epsilon - 0.35


def test_randomized_response_with_many_canaries_is_bounded_close_to_its_epsilon():
    right = int(np.random.default_rng(1).binomial(50_000, 1 / (1 + math.exp(-1.0))))
    assert 0.95 < epsilon_lower_bound(50_000, 50_000, right, 0.0, 0.95) < 1.0


def test_a_mechanism_that_tells_all_with_probability_delta_is_bounded_below_its_epsilon():
    """Either every coin is told (probability delta), or each by randomized response: (epsilon, delta)-DP."""
    draw, delta, epsilon = np.random.default_rng(2), 0.04, 1.0
    right = draw.binomial(200, 1 / (1 + math.exp(-epsilon)), 400)
    right[draw.random(400) < delta] = 200
    with_delta = [bound_of(200, 200, int(correct), delta) <= epsilon for correct in right]
    without = [bound_of(200, 200, int(correct), 0.0) <= epsilon for correct in right]
    assert np.mean(with_delta) >= 0.95
    assert np.mean(without) < 0.95


def test_the_highest_scores_are_guessed_in_and_the_lowest_out():
    scores = np.array([0.3, -1.0, 2.0, 0.1, -0.5])
    assert guess(scores, 1, 2).tolist() == [0, -1, 1, 0, -1]
    assert guess(scores, 2, 0).tolist() == [1, 0, 1, 0, 0]
    assert guess(scores, 0, 0).tolist() == [0, 0, 0, 0, 0]


@pytest.mark.parametrize(("included", "excluded"), [(3, 3), (-1, 2)])
def test_more_guesses_than_canaries_are_refused(included, excluded):
    with pytest.raises(ValueError, match="excluded of 5 canaries"):
        guess(np.zeros(5), included, excluded)


def test_having_choices_costs_their_number_in_error_probability():
    included = np.arange(100) < 50
    scores = -np.arange(100.0)
    one = best_bound(scores, included, [(50, 50)], 0.0, 0.95)
    three = best_bound(scores, included, [(5, 5), (50, 50), (20, 20)], 0.0, 0.95)
    assert (one.correct, one.epsilon) == (100, pytest.approx(epsilon_lower_bound(100, 100, 100, 0.0, 0.95)))
    assert (three.included_guesses, three.correct, three.confidence) == (50, 100, 0.95)
    assert three.epsilon == pytest.approx(epsilon_lower_bound(100, 100, 100, 0.0, 1 - 0.05 / 3))


def test_the_best_choice_of_guesses_is_right_often_enough_when_the_best_of_four_is_taken():
    """Scores that tell nothing: a bound above 0 is wrong, whichever of the choices it came from."""
    draw = np.random.default_rng(5)
    choices = [(10, 10), (20, 20), (50, 50), (100, 100)]
    wrong = [
        best_bound(draw.normal(size=200), draw.random(200) < 0.5, choices, 0.0, 0.95).epsilon > 0 for _ in range(300)
    ]
    assert np.mean(wrong) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="11 correct of 10 guesses on 20 canaries"):
        p_value(20, 10, 11, 1.0, 0.0)


def test_a_bound_wants_choices_and_finite_scores():
    with pytest.raises(DataError, match="at least one choice of guesses"):
        best_bound(np.zeros(4), np.ones(4, dtype=bool), [], 0.0, 0.95)
    with pytest.raises(DataError, match="score of canary 1 is not finite"):
        best_bound(np.array([0.0, np.inf]), np.ones(2, dtype=bool), [(1, 1)], 0.0, 0.95)

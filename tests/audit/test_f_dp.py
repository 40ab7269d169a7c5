"""The f-DP bound against a convex program, trade-off curves that are known, and Gaussian mechanisms."""

import functools
import math

import dp_accounting
import numpy as np
import pytest
from scipy.optimize import brentq, minimize
from scipy.special import ndtr, ndtri

from fed_distill.audit.f_dp import Gaussian, SampledGaussian, best_curve_bound, lower_bound, rejected

DELTA = 1e-5


def slow_tail(mu, canaries, guesses, correct):
    """The largest probability of so many right guesses: over all distributions of their number that the inequalities
    of Mahloujifar et al. 2024 allow, a convex set, from several starts."""
    number, draw = np.arange(guesses + 1), np.random.default_rng(0)

    def slack(mass):
        right = np.cumsum((number * mass)[::-1])[::-1] / canaries
        wrong = np.cumsum(((guesses - number) * mass)[::-1])[::-1] / canaries
        return wrong[:-1] - ndtr(ndtri(np.clip(right[1:], 1e-300, 1 - 1e-16)) - mu)

    found = []
    for start in [np.full(guesses + 1, 1 / (guesses + 1)), *draw.dirichlet(np.full(guesses + 1, 0.5), 5)]:
        result = minimize(
            lambda mass: -mass[correct:].sum(),
            start,
            jac=lambda mass: -(number >= correct).astype(float),
            bounds=[(0, 1)] * (guesses + 1),
            constraints=[{"type": "ineq", "fun": slack}, {"type": "eq", "fun": lambda mass: mass.sum() - 1}],
            method="SLSQP",
            options={"maxiter": 1000, "ftol": 1e-14},
        )
        if result.success and slack(result.x).min() > -1e-8:
            found.append(-result.fun)
    return max(found)


@pytest.mark.parametrize(
    ("mu", "canaries", "guesses", "correct"),
    [(0.5, 8, 8, 7), (0.5, 8, 8, 8), (1.0, 10, 6, 5), (1.0, 10, 6, 6), (2.0, 12, 12, 11), (0.3, 20, 10, 8)],
)
def test_what_is_rejected_is_what_no_distribution_of_right_guesses_allows(mu, canaries, guesses, correct):
    tail = slow_tail(mu, canaries, guesses, correct)
    curve = Gaussian().curve(mu)
    assert not rejected(curve, canaries, guesses, correct, 1.0 - 0.999 * tail)
    assert rejected(curve, canaries, guesses, correct, 1.0 - 1.001 * tail)


def test_two_right_guesses_of_two_by_hand():
    """Where F(x) = x and p_2 = a, h_1 = p_1 / m is at least r_2 = 2 a / m, and p_0 then at least a: 4 a <= 1."""
    assert rejected(lambda x: x, 2, 2, 2, 1.0 - 0.26)
    assert not rejected(lambda x: x, 2, 2, 2, 1.0 - 0.24)


@pytest.mark.parametrize("bad", [(5, 6, 3, 0.9), (5, 4, 5, 0.9), (5, 4, 3, 1.0)])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(ValueError, match="impossible"):
        rejected(Gaussian().curve(1.0), *bad)


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
def test_epsilon_is_that_of_another_library(noise):
    expected = dp_accounting.get_epsilon_gaussian(noise, DELTA)
    assert Gaussian().epsilon(1.0 / noise, DELTA) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("rate", "noise"), [(0.1, 0.7), (0.5, 2.0)])
def test_one_sampled_steps_curve_is_that_of_its_likelihood_ratio_test(rate, noise):
    """Removing: reject N(0, s) for (1 - q) N(0, s) + q N(1, s) above a threshold; adding: the other way round."""
    curve = SampledGaussian(rate, 1).curve(1.0 / noise)

    def mixed(at):
        return (1 - rate) * ndtr(at) + rate * ndtr(at - 1.0 / noise)

    for x in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99):
        above = brentq(lambda at, x=x: 1.0 - mixed(at) - x, -20, 20)
        least = min(ndtr(-above), mixed(ndtri(x)))
        assert 0.98 * least <= curve(x) <= least + 1e-9


@functools.cache
def mu_of(epsilon):
    return brentq(lambda mu: Gaussian().epsilon(mu, DELTA) - epsilon, 0.01, 6.0)


@functools.cache
def bound_of(canaries, guesses, correct):
    return lower_bound(Gaussian(), canaries, guesses, correct, 0.95)


def scored(epsilon, canaries, draw):
    included = draw.random(canaries) < 0.5
    return draw.normal(size=canaries) + mu_of(epsilon) * (included - 0.5), included


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
@pytest.mark.parametrize("guesses", [100, 1000])
def test_gaussian_mechanisms_are_bounded_below_their_mu_in_19_of_20_trials(epsilon, guesses):
    draw, wrong = np.random.default_rng(0), 0
    for _ in range(300):
        scores, included = scored(epsilon, 1000, draw)
        order = np.argsort(scores)
        correct = int(included[order[-guesses // 2 :]].sum() + (~included[order[: guesses // 2]]).sum())
        wrong += bound_of(1000, guesses, correct) > mu_of(epsilon)
    assert wrong / 300 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize("canaries", [5_000, 50_000])
@pytest.mark.parametrize("epsilon", [1.0, 3.0, 10.0])
def test_a_gaussian_mechanism_is_bounded_by_four_tenths_of_its_epsilon(canaries, epsilon):
    scores, included = scored(epsilon, canaries, np.random.default_rng(1))
    choices = [(canaries // share, canaries // share) for share in (50, 20, 10)]
    bound = best_curve_bound(scores, included, choices, DELTA, 0.95, Gaussian())
    assert 0.4 * epsilon <= bound.epsilon <= epsilon


def test_scores_that_tell_nothing_bound_nothing():
    draw = np.random.default_rng(2)
    choices = [(10, 10), (50, 50), (100, 100)]
    wrong = [
        best_curve_bound(draw.normal(size=200), draw.random(200) < 0.5, choices, DELTA, 0.95, Gaussian()).epsilon > 0
        for _ in range(200)
    ]
    assert np.mean(wrong) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)

"""Randomized response with a prior: the paper's probabilities, exactly epsilon-DP, and the most useful that is."""

import itertools
import math
from decimal import Decimal, getcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from fed_distill.privacy.randomized_response import RESOLUTION, candidates, output_weights, posterior, randomized
from fed_distill.seeds import Keystream

getcontext().prec = 60
WHOLE = 2**53


def prior(*rows):
    return torch.tensor(np.array(rows), dtype=torch.float64)


def channel(row, epsilon):
    """Integer weights [true label][output] for one prior."""
    classes = len(row)
    several = prior(row).expand(classes, classes).contiguous()
    return output_weights(torch.arange(classes), candidates(several, epsilon), epsilon).tolist()


def shares(row, epsilon):
    return [[weight / WHOLE for weight in weights] for weights in channel(row, epsilon)]


def test_without_knowledge_it_is_k_ary_randomized_response():
    """By hand, e^epsilon = 2 and three classes: w = 1/3, 4/9, 1/2, so that all three are candidates."""
    expected = [[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4], [1 / 4, 1 / 4, 1 / 2]]
    np.testing.assert_allclose(shares([1 / 3] * 3, math.log(2)), expected, atol=1e-14)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_with_a_prior_unlikely_labels_are_never_released(order):
    """By hand, e^epsilon = 3 and the prior (0.6, 0.3, 0.1): w = 0.6, 3/4 * 0.9 = 0.675, 3/5: two candidates."""
    sorted_prior = [0.6, 0.3, 0.1]
    expected = np.array([[3 / 4, 1 / 4, 0], [1 / 4, 3 / 4, 0], [1 / 2, 1 / 2, 0]])
    place = list(order)
    found = shares([sorted_prior[one] for one in place], math.log(3))
    np.testing.assert_allclose(found, expected[np.ix_(place, place)], atol=1e-14)


def test_of_a_sure_prior_nothing_is_asked():
    """w = 0.9 for one candidate, and 3/4 * (0.9 + 0.1) for two."""
    assert channel([0.1, 0.9], math.log(3)) == [[0, WHOLE], [0, WHOLE]]


PRIORS = st.lists(st.integers(0, 1000), min_size=2, max_size=7).filter(sum)
EPSILONS = st.floats(0.01, 45.0)


@given(PRIORS, EPSILONS)
@settings(deadline=None, max_examples=300)
def test_no_output_is_more_likely_by_more_than_e_to_the_epsilon(counts, epsilon):
    """Over all pairs of labels and all outputs, in exact arithmetic."""
    found = channel([count / sum(counts) for count in counts], epsilon)
    most = Fraction(Decimal(epsilon).exp())
    for weights in found:
        assert sum(weights) == WHOLE == RESOLUTION
        assert min(weights) >= 0
    for one, other in itertools.permutations(found, 2):
        for output in range(len(counts)):
            assert one[output] <= most * other[output]


@given(st.lists(st.integers(0, 50), min_size=2, max_size=5).filter(sum), st.floats(0.05, 5.0))
@settings(deadline=None, max_examples=40)
def test_no_private_mechanism_keeps_more_labels(counts, epsilon):
    """Theorem 3: a linear program over all epsilon-DP channels has the same optimum as RRWithPrior."""
    known, size = np.array(counts) / sum(counts), len(counts)
    place = np.arange(size * size).reshape(size, size)
    pairs = list(itertools.permutations(range(size), 2))
    limits = np.zeros((len(pairs) * size, size * size))
    for row, ((one, other), output) in enumerate(itertools.product(pairs, range(size))):
        limits[row, place[one, output]] = 1.0
        limits[row, place[other, output]] = -math.exp(epsilon)
    sums = np.kron(np.eye(size), np.ones(size))
    gains = np.zeros(size * size)
    gains[place.diagonal()] = -known
    best = -linprog(gains, limits, np.zeros(len(limits)), sums, np.ones(size), (0, 1)).fun
    kept = sum(share * row[label] for label, (share, row) in enumerate(zip(known, shares(known, epsilon), strict=True)))
    assert kept == pytest.approx(best, abs=1e-7)


def test_labels_are_drawn_with_these_probabilities():
    """200,000 draws for each true label, within five standard deviations."""
    count, epsilon = 200_000, math.log(3)
    for label, weights in enumerate(channel([0.6, 0.3, 0.1], epsilon)):
        among = candidates(prior([0.6, 0.3, 0.1]), epsilon).expand(count, 3)
        drawn = randomized(torch.full((count,), label), among, epsilon, Keystream("secret", label))
        found = torch.bincount(drawn, minlength=3) / count
        for share, weight in zip(found.tolist(), weights, strict=True):
            expected = weight / WHOLE
            assert abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / count)


def test_the_posterior_is_that_of_bayes():
    """By hand, prior (0.6, 0.3, 0.1) and e^epsilon = 3: the likelihoods are (3, 1, 2) / 4 and (1, 3, 2) / 4."""
    epsilon, known = math.log(3), prior([0.6, 0.3, 0.1], [0.6, 0.3, 0.1])
    found = posterior(torch.tensor([0, 1]), known, candidates(known, epsilon), epsilon)
    expected = [[1.8 / 2.3, 0.3 / 2.3, 0.2 / 2.3], [0.6 / 1.7, 0.9 / 1.7, 0.2 / 1.7]]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_the_mean_posterior_over_outputs_is_the_prior():
    """As it must be if labels follow the prior: averaging over what is released gives back what was known."""
    known, epsilon = [0.5, 0.2, 0.2, 0.1], 1.0
    among = candidates(prior(known), epsilon)
    marginal = np.array(known) @ np.array(shares(known, epsilon))
    outputs = torch.arange(4)[among[0]]
    several = prior(known).expand(len(outputs), 4)
    each = posterior(outputs, several, among.expand(len(outputs), 4), epsilon)
    np.testing.assert_allclose(marginal[outputs.numpy()] @ each.numpy(), known, atol=1e-6)


@pytest.mark.parametrize(
    ("row", "epsilon"),
    [([0.5, 0.6], 1.0), ([1.5, -0.5], 1.0), ([math.nan, 1.0], 1.0), ([0.5, 0.5], 0.0), ([0.5, 0.5], math.inf)],
)
def test_what_is_no_prior_or_no_epsilon_is_refused(row, epsilon):
    with pytest.raises(ValueError, match=r"prior|epsilon"):
        candidates(prior(row), epsilon)

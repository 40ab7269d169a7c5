"""Randomized response with a prior: the papers' probabilities, exactly epsilon-DP, and the most useful that are."""

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

from fed_distill.privacy.randomized_response import RESOLUTION, bins, candidates, output_weights, posterior, randomized
from fed_distill.seeds import Keystream

getcontext().prec = 60
WHOLE = 2**53


def prior(*rows):
    return torch.tensor(np.array(rows), dtype=torch.float64)


def channel(row, epsilon, gains=None):
    """Integer weights [true label][output] for one prior."""
    classes = len(row)
    several = prior(row).expand(classes, classes).contiguous()
    outputs = candidates(several, epsilon) if gains is None else bins(several, torch.tensor(gains), epsilon)
    return output_weights(torch.arange(classes), outputs, epsilon).tolist()


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


@pytest.mark.parametrize("binned", [False, True])
@given(PRIORS, EPSILONS)
@settings(deadline=None, max_examples=300)
def test_no_output_is_more_likely_by_more_than_e_to_the_epsilon(binned, counts, epsilon):
    """Over all pairs of labels and all outputs, in exact arithmetic."""
    gains = [0.5**rank for rank in range(len(counts))] if binned else None
    found = channel([count / sum(counts) for count in counts], epsilon, gains)
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


def left_over(known, gains, bin_of, epsilon):
    """Expected variance of the gain once the output of randomized response on bins is known."""
    left = 0.0
    for output in set(bin_of):
        chances = [math.exp(epsilon) if one == output else 1.0 for one in bin_of]
        joint = known * np.array(chances) / (math.exp(epsilon) + len(set(bin_of)) - 1)
        if joint.sum() > 0:
            mean = joint @ gains / joint.sum()
            left += joint @ (gains - mean) ** 2
    return left


@given(st.lists(st.integers(0, 50), min_size=2, max_size=4).filter(sum), st.permutations(range(4)), EPSILONS)
@settings(deadline=None, max_examples=25)
def test_no_other_bins_tell_more_of_the_gain(counts, ranks, epsilon):
    """A slow twin: all partitions of the classes, runs of gains or not."""
    known = np.array(counts) / sum(counts)
    gains = np.array([0.4**rank for rank in ranks[: len(counts)]])
    found = bins(prior(known), torch.from_numpy(gains), epsilon)[0].tolist()
    best = min(
        left_over(known, gains, one, epsilon) for one in itertools.product(range(len(counts)), repeat=len(counts))
    )
    assert left_over(known, gains, found, epsilon) <= best + 1e-9
    assert len(set(found)) > 1


def test_a_bin_is_released_as_its_most_likely_class():
    """Prior (0.5, 0.1, 0.3, 0.1), gains (1, 0.1, 0.01, 0): whether it is class 0 tells most of the gain; of the other
    three, class 2 is the likeliest."""
    known = prior([0.5, 0.1, 0.3, 0.1])
    assert bins(known, torch.tensor([1.0, 0.1, 0.01, 0.0]), 1.0).tolist() == [[0, 2, 2, 2]]


def test_even_of_a_sure_prior_bins_ask_something():
    assert channel([0.0, 1.0, 0.0], math.log(3), [1.0, 0.5, 0.0])[1].count(0) == 1


def test_labels_are_drawn_with_these_probabilities():
    """200,000 draws for each true label, within five standard deviations."""
    count, epsilon = 200_000, math.log(3)
    for label, weights in enumerate(channel([0.6, 0.3, 0.1], epsilon)):
        outputs = candidates(prior([0.6, 0.3, 0.1]), epsilon).expand(count, 3)
        drawn = randomized(torch.full((count,), label), outputs, epsilon, Keystream("secret", label))
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
    outputs = candidates(prior(known), epsilon)
    marginal = np.array(known) @ np.array(shares(known, epsilon))
    released = outputs[0][outputs[0] >= 0]
    several = prior(known).expand(len(released), 4)
    each = posterior(released, several, outputs.expand(len(released), 4), epsilon)
    np.testing.assert_allclose(marginal[released.numpy()] @ each.numpy(), known, atol=1e-6)


@pytest.mark.parametrize("gains", [[1.0, math.nan], [1.0, math.inf], [1.0, 1e300], [0.0] * 65])
def test_gains_that_no_bins_can_be_found_for_are_refused(gains):
    with pytest.raises(ValueError, match="gains must be at most 64 finite numbers"):
        bins(prior([1 / len(gains)] * len(gains)), torch.tensor(gains), 1.0)


@pytest.mark.parametrize(
    ("row", "epsilon"),
    [
        ([0.5, 0.6], 1.0),
        ([1.5, -0.5], 1.0),
        ([math.nan, 1.0], 1.0),
        ([0.5, 0.5], 0.0),
        ([0.5, 0.5], 1e-9),
        ([0.5, 0.5], math.inf),
    ],
)
def test_what_is_no_prior_or_no_epsilon_is_refused(row, epsilon):
    with pytest.raises(ValueError, match=r"prior|epsilon"):
        candidates(prior(row), epsilon)

"""Noisy votes answer as Confident-GNMax and cost what other accountants find; the bounds with data hold."""

import math

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from fed_distill import seeds
from fed_distill.aggregation.votes import NO_ANSWER, plurality
from fed_distill.errors import BudgetExceeded
from fed_distill.mechanisms.vote import (
    VoteMechanism,
    calibrated,
    data_dependent_epsilon,
    log_miss,
    renyi_bound,
    vote_spends,
)
from fed_distill.privacy.accounting import Spend, epsilon

F64 = torch.float64


def stream(*purpose):
    return seeds.Keystream(0, "votes", *purpose)


def test_plurality_takes_the_first_of_equals():
    assert torch.equal(plurality(torch.tensor([[1, 3, 2], [2, 0, 2], [0, 0, 0]])), torch.tensor([1, 0, 0]))


def test_without_noise_those_who_reach_the_threshold_are_answered_by_plurality():
    histogram = torch.tensor([[5, 4, 1], [2, 8, 0], [0, 3, 7], [6, 0, 4]])
    answers = VoteMechanism(6, 0.0, 0.0, 9).answers(histogram, stream())
    assert torch.equal(answers, torch.tensor([NO_ANSWER, 1, 2, 0]))
    assert answers.dtype == torch.int64


def test_after_the_last_paid_answer_nothing_is_answered():
    histogram = torch.tensor([[9, 1], [1, 9], [5, 5], [2, 8], [9, 1], [0, 10]])
    answers = VoteMechanism(7, 0.0, 0.0, 3).answers(histogram, stream())
    assert torch.equal(answers, torch.tensor([0, 1, NO_ANSWER, 1, NO_ANSWER, NO_ANSWER]))


def exact_winners(votes, noise):
    """Pr[each class wins with noise], by integration over the winner's noisy count."""

    def density(count, winner):
        others = [count - other for place, other in enumerate(votes) if place != winner]
        return stats.norm.pdf(count, votes[winner], noise) * np.prod(stats.norm.cdf(others, scale=noise))

    reach = (min(votes) - 9 * noise, max(votes) + 9 * noise)
    return np.array(
        [
            integrate.quad(density, *reach, args=(winner,), points=votes, limit=200, epsabs=1e-14)[0]
            for winner in range(len(votes))
        ]
    )


def test_answers_come_as_often_as_the_probabilities_of_algorithm_1():
    votes, queries = [11.0, 9.0, 5.0], 20_000
    mechanism = VoteMechanism(12.0, 3.0, 4.0, queries)
    answers = mechanism.answers(torch.tensor(votes).repeat(queries, 1), stream("many"))
    answered = stats.norm.sf(12.0 - 11.0, scale=3.0)
    expected = [1 - answered, *(answered * exact_winners(votes, 4.0))]
    found = torch.bincount(answers + 1, minlength=4).numpy()
    assert stats.chisquare(found, queries * np.array(expected)).pvalue > 0.01


def test_answers_depend_on_the_stream_and_on_whole_or_real_votes_alike():
    histogram = torch.tensor([[6, 4, 5]] * 50)
    mechanism = VoteMechanism(5.0, 2.0, 3.0, 50)
    first = mechanism.answers(histogram, stream(1))
    assert torch.equal(first, mechanism.answers(histogram.float(), stream(1)))
    assert not torch.equal(first, mechanism.answers(histogram, stream(2)))


def test_a_replaced_vote_moves_the_counts_by_sqrt_2_and_the_largest_by_1_as_is_paid_for():
    votes = np.array([0, 0, 1, 2, 2, 1, 0])
    counts = np.bincount(votes, minlength=3)
    replaced, removed = [], []
    for voter in range(len(votes)):
        removed.append(np.bincount(np.delete(votes, voter), minlength=3))
        replaced += [np.bincount(np.r_[np.delete(votes, voter), other], minlength=3) for other in range(3)]
    neighbours = replaced + removed
    assert max(np.linalg.norm(counts - other) for other in neighbours) == pytest.approx(math.sqrt(2))
    assert max(np.linalg.norm(counts - other) for other in removed) == 1.0
    assert max(abs(counts.max() - other.max()) for other in neighbours) == 1
    check, answer = vote_spends(VoteMechanism(4.0, 3.0, 5.0, 6), queries=10, rounds=2)
    assert check == Spend(3.0 / 1.0, 1.0, 20)
    assert answer == Spend(5.0 / math.sqrt(2), 1.0, 12)


def test_no_more_answers_are_paid_for_than_there_are_queries():
    assert vote_spends(VoteMechanism(4.0, 3.0, 5.0, 100), 10)[1].steps == 10


def test_the_bound_without_data_is_dp_accountings_for_the_gaussian_mechanisms():
    accountant = RdpAccountant()
    check, answer = dp_accounting.GaussianDpEvent(30.0), dp_accounting.GaussianDpEvent(25.0 / math.sqrt(2))
    accountant.compose(dp_accounting.SelfComposedDpEvent(check, 500))
    accountant.compose(dp_accounting.SelfComposedDpEvent(answer, 100))
    found = epsilon(vote_spends(VoteMechanism(40.0, 30.0, 25.0, 100), 500), 1e-3, "rdp")
    assert found == pytest.approx(accountant.get_epsilon(1e-3), rel=0.01)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
@pytest.mark.parametrize(("target", "queries", "max_answers", "rounds"), [(1.0, 2000, 300, 1), (8.0, 40, 100, 3)])
def test_a_calibrated_mechanism_keeps_the_target_and_less_noise_does_not(
    target, queries, max_answers, rounds, accountant
):
    mechanism = calibrated(
        target,
        1e-3,
        queries=queries,
        max_answers=max_answers,
        voters=90,
        consensus=0.6,
        ratio=4.0,
        rounds=rounds,
        accountant=accountant,
    )
    assert mechanism.threshold == pytest.approx(54.0)
    assert mechanism.threshold_noise == pytest.approx(4.0 * mechanism.answer_noise)
    assert mechanism.max_answers == max_answers
    assert epsilon(vote_spends(mechanism, queries, rounds), 1e-3, accountant) <= target
    less = VoteMechanism(54.0, 0.99 * mechanism.threshold_noise, 0.99 * mechanism.answer_noise, max_answers)
    assert epsilon(vote_spends(less, queries, rounds), 1e-3, accountant) > target


# Published numbers: the tests of the authors' code, github.com/tensorflow/privacy, research/pate_2018.
# Local sensitivities of the threshold check with 30 votes, sigma 2, order 10, the winner having 20 (smooth sensitivity
# at distance d: the largest step of the bound where the winner has 20 - d or 20 + d).
# fmt: off
THRESHOLDS = {
    16.0: [
        0.0, 0.0, 0.0, 1.48454129e-04, 1.47826870e-02, 3.94153241e-02, 6.45775697e-02, 9.01543247e-02, 1.16054002e-01,
        1.42180452e-01, 1.42180452e-01, 1.48454129e-04, 1.47826870e-02, 3.94153241e-02, 6.45775697e-02, 9.01543266e-02,
        1.16054000e-01, 1.42180452e-01, 1.68302106e-01, 1.93127860e-01,
    ],
    2.0: [
        1.60212079e-01, 2.07021132e-01, 2.07021132e-01, 1.93127860e-01, 1.68302106e-01, 1.42180452e-01, 1.16054002e-01,
        9.01543247e-02, 6.45775697e-02, 3.94153241e-02, 1.47826870e-02, 1.48454129e-04,
    ],
    50.0: [
        1.35750725752e-19, 1.88990500499e-17, 2.05403154065e-15, 1.74298153642e-13, 1.15489723995e-11,
        5.97584949325e-10, 2.41486826748e-08, 7.62150641922e-07, 1.87846248741e-05, 0.000360973025976,
        0.000360973025976, 2.76377015215e-50, 1.00904975276e-53, 2.87254164748e-57, 6.37583360761e-61,
        1.10331620211e-64, 1.48844393335e-68, 1.56535552444e-72, 1.28328011060e-76, 8.20047697109e-81,
    ],
}
# fmt: on


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_the_bound_of_the_check_has_the_published_local_sensitivities(threshold):
    margins = (np.arange(31) - threshold) / 2.0
    unlikely = torch.from_numpy(stats.norm.logsf(np.abs(margins)))
    bound = renyi_bound(unlikely, math.sqrt(2) * 2.0, torch.tensor([10.0])).flatten().numpy()
    steps = np.abs(np.diff(bound))  # between v and v + 1 votes
    around = [max(steps[max(v - 1, 0) : v + 1], default=0.0) for v in range(31)]
    for distance, published in enumerate(THRESHOLDS[threshold]):
        places = [place for place in (20 - distance, 20 + distance) if 0 <= place <= 30]
        assert max(around[place] for place in places) == pytest.approx(published, rel=3e-8)


# The same of GNMax: votes, sigma, order, and the local sensitivity there.
GNMAX = [
    ([10, 0, 0], 0.5, 1.5, 3.13503646e-17),
    ([9, 1, 0], 0.5, 1.5, 1.60178280e-08),
    ([8, 2, 0], 0.5, 1.5, 5.90681786e-03),
    ([1298, 251, 251, 200, 0], 250.0, 10.0, 2.77693450548e-7),
    ([1299, 251, 250, 200, 0], 250.0, 10.0, 2.10853979548e-6),
]


@pytest.mark.parametrize(("votes", "noise", "order", "published"), GNMAX)
def test_the_bound_of_gnmax_has_the_published_local_sensitivities(votes, noise, order, published):
    """How far q may move with one vote: Papernot et al. 2018, proposition 9."""
    others = len(votes) - 1
    q = float(log_miss(torch.tensor([votes]), noise).exp())
    moved = [others / 2 * special.erfc(step / noise + special.erfcinv(2 * q / others)) for step in (0, 1, -1)]
    here, fewer, more = renyi_bound(torch.tensor(moved, dtype=F64).log(), noise, torch.tensor([order])).flatten()
    assert max(here - fewer, more - here).item() == pytest.approx(published, rel=1e-8)


# -log q below which the bound with data is the smaller one, by order (1.1, 2.5, 32, 250) for each sigma.
CROSSINGS = {
    1.5: [2.8, 2.6, 427],
    15.0: [4.8, 4.0, 4.7, 275],
    1500.0: [9.6, 8.8, 6.0, 4],
    15000.0: [12, 11.2, 8.6, 6.4],
}


@pytest.mark.parametrize("noise", CROSSINGS)
def test_data_help_from_the_published_agreement_on_and_not_before(noise):
    for order, crossing in zip((1.1, 2.5, 32.0, 250.0), CROSSINGS[noise], strict=False):
        orders = torch.tensor([order], dtype=F64)
        surer = -crossing - torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=F64) * math.log(2)
        assert bool((renyi_bound(surer, noise, orders).flatten().diff() < 0).all())
        less_sure = (math.exp(-crossing) + torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)).log()
        bound = renyi_bound(less_sure, noise, orders).flatten()
        torch.testing.assert_close(bound, torch.full((4,), order / noise**2, dtype=F64), rtol=1e-12, atol=0)


SMALL = [
    ([6.0, 2.0, 1.0], 1.0),
    ([9.0, 1.0], 1.5),
    ([12.0, 2.0, 2.0, 0.0], 2.0),
    ([4.0, 3.0, 2.0], 2.0),
]


@pytest.mark.parametrize(("votes", "noise"), SMALL)
def test_the_bound_on_a_miss_is_above_the_exact_probability_and_for_two_classes_equal(votes, noise):
    exact = 1.0 - exact_winners(votes, noise)[0]
    bound = float(log_miss(torch.tensor([votes]), noise).exp())
    assert bound >= exact - 1e-12
    if len(votes) == 2:
        assert bound == pytest.approx(exact, rel=1e-6)


def test_a_miss_is_never_likelier_than_without_any_votes():
    assert log_miss(torch.zeros(1, 4), 3.0).item() == pytest.approx(math.log(3 / 4))


def renyi(one, other, order):
    return math.log(np.sum(one**order * other ** (1.0 - order))) / (order - 1.0)


@pytest.mark.parametrize(("votes", "noise"), SMALL)
def test_the_exact_divergence_from_every_neighbour_is_within_the_bound_of_gnmax(votes, noise):
    orders = np.array([1.1, 1.5, 2.0, 3.0, 5.0, 9.0])
    bound = renyi_bound(log_miss(torch.tensor([votes]), noise), noise, torch.from_numpy(orders))[0].numpy()
    here = exact_winners(votes, noise)
    for source in range(len(votes)):
        for target in range(len(votes)):
            if votes[source] > 0 and source != target:
                moved = list(votes)
                moved[source] -= 1
                moved[target] += 1
                there = exact_winners(moved, noise)
                assert all(renyi(here, there, order) <= bound[place] for place, order in enumerate(orders))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.floats(-5.0, 45.0), st.floats(0.5, 8.0), st.floats(1.05, 60.0))
def test_the_exact_divergence_of_the_check_is_within_its_bound(most, threshold, noise, order):
    def outcomes(count):
        return np.array([stats.norm.sf(threshold - count, scale=noise), stats.norm.cdf(threshold - count, scale=noise)])

    unlikely = torch.tensor([stats.norm.logsf(abs(threshold - most) / noise)], dtype=F64)
    bound = renyi_bound(unlikely, math.sqrt(2) * noise, torch.tensor([order], dtype=F64)).item()
    here = outcomes(most)
    for there in (outcomes(most - 1), outcomes(most + 1)):
        if min(*here, *there) ** order > 1e-300:  # within the reach of float64
            assert renyi(here, there, order) <= bound * (1 + 1e-6) + 1e-12


def gnmax_bound(q, noise, order):
    """Renyi divergence of GNMax whose winner is missed with probability ``q``: Papernot et al. 2018, theorem 6 at the
    orders of proposition 10 (mu2 = noise sqrt(log 1/q), mu1 = mu2 + 1), and order / noise^2 where it does not hold."""
    without_data = order / noise**2
    mu2 = noise * math.sqrt(math.log(1 / q))
    mu1 = mu2 + 1
    if mu2 <= 1 or mu1 < order:
        return without_data
    epsilon1, epsilon2 = mu1 / noise**2, mu2 / noise**2
    if q > math.exp((mu2 - 1) * epsilon2) / (mu1 / (mu1 - 1) * mu2 / (mu2 - 1)) ** mu2:
        return without_data
    right = (1 - q) / (1 - (q * math.exp(epsilon2)) ** ((mu2 - 1) / mu2))
    wrong = math.exp(epsilon1) / q ** (1 / (mu1 - 1))
    bound = math.log((1 - q) * right ** (order - 1) + q * wrong ** (order - 1)) / (order - 1)
    return min(bound, without_data)


def by_hand(histograms, answered, mechanism, delta):
    """The least epsilon over a grid of orders, of checks (of one count, so of noise sqrt(2) as wide) and answers."""
    terms = []
    for votes, told in zip(histograms.tolist(), answered.tolist(), strict=True):
        most, *others = sorted(votes, reverse=True)
        margin = abs(most - mechanism.threshold) / mechanism.threshold_noise
        terms.append((special.erfc(margin / math.sqrt(2)) / 2, math.sqrt(2) * mechanism.threshold_noise))
        if told:  # proposition 7
            q = sum(special.erfc((most - other) / (2 * mechanism.answer_noise)) for other in others) / 2
            terms.append((min(q, 1 - 1 / len(votes)), mechanism.answer_noise))
    return min(
        sum(gnmax_bound(q, noise, order) for q, noise in terms)
        + math.log1p(-1 / order)
        - (math.log(delta) + math.log(order)) / (order - 1)
        for order in 1.0 + np.geomspace(0.01, 1000.0, 300)
    )


def test_epsilon_of_the_votes_as_they_were_adds_up_checks_and_given_answers():
    histograms = torch.tensor([[80, 5, 5], [30, 30, 30], [70, 15, 5], [50, 30, 10], [88, 1, 1]])
    mechanism = VoteMechanism(54.0, 10.0, 6.0, 9)
    answered = torch.tensor([True, False, True, False, True])
    found = data_dependent_epsilon(histograms, answered, mechanism, 1e-3)
    assert found == pytest.approx(by_hand(histograms, answered, mechanism, 1e-3), rel=1e-3)
    assert found < data_dependent_epsilon(histograms, ~answered | answered, mechanism, 1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10**6), st.floats(2.0, 40.0), st.floats(2.0, 40.0))
def test_with_data_votes_never_cost_more_than_without(queries, seed, threshold_noise, answer_noise):
    draw = np.random.default_rng(seed)
    histograms = torch.from_numpy(draw.multinomial(90, draw.dirichlet([0.3] * 4), size=queries))
    mechanism = VoteMechanism(60.0, threshold_noise, answer_noise, queries)
    answered = mechanism.answers(histograms, stream(seed)) != NO_ANSWER
    bound = epsilon(vote_spends(mechanism, queries), 1e-3, "rdp")
    assert data_dependent_epsilon(histograms, answered, mechanism, 1e-3) <= bound * (1 + 1e-3)


def test_votes_that_agree_cost_a_fraction_of_the_bound():
    histograms = torch.tensor([[90, 0, 0, 0]] * 200)
    mechanism = VoteMechanism(54.0, 7.0, 7.0, 200)
    found = data_dependent_epsilon(histograms, torch.ones(200, dtype=torch.bool), mechanism, 1e-3)
    assert found < 0.2 * epsilon(vote_spends(mechanism, 200), 1e-3)


def test_without_noise_votes_cost_everything():
    mechanism = VoteMechanism(3.0, 0.0, 1.0, 1)
    histograms, answered = torch.tensor([[4, 0]]), torch.tensor([True])
    assert data_dependent_epsilon(histograms, answered, mechanism, 1e-3) == math.inf
    assert epsilon(vote_spends(mechanism, 1), 1e-3) == math.inf


COUNTS = {"queries": 10, "max_answers": 5, "voters": 9, "consensus": 0.5, "ratio": 4.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VoteMechanism(5.0, -1.0, 1.0, 1), "noise on votes must be finite and at least 0"),
        (lambda: VoteMechanism(5.0, 1.0, math.nan, 1), "noise on votes must be finite"),
        (lambda: VoteMechanism(math.inf, 1.0, 1.0, 1), "a finite threshold"),
        (lambda: VoteMechanism(5.0, 1.0, 1.0, 0), "max_answers of at least 1"),
        (lambda: calibrated(1.0, 1e-3, **{**COUNTS, "consensus": 0.0}), "a consensus in"),
        (lambda: calibrated(1.0, 1e-3, **{**COUNTS, "ratio": 0.0}), "a ratio above 0"),
        (lambda: calibrated(1.0, 1e-3, **{**COUNTS, "voters": 0}), "counts of at least 1"),
        (
            lambda: data_dependent_epsilon(
                torch.ones(1, 2), torch.tensor([True]), VoteMechanism(1.0, 1.0, 1.0, 1), 1.0
            ),
            "delta must lie between 0 and 1",
        ),
    ],
)
def test_impossible_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_target_too_small_for_any_noise_is_refused():
    with pytest.raises(BudgetExceeded, match="no noise level keeps"):
        calibrated(0.001, 1e-5, **COUNTS, accountant="rdp")

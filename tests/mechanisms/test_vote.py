"""Noisy votes answer as Confident-GNMax, and what is paid for them covers the exact divergence and agrees with
another accountant."""

import math

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from fed_distill import seeds
from fed_distill.aggregation.votes import NO_ANSWER, plurality
from fed_distill.errors import BudgetExceeded
from fed_distill.mechanisms.vote import VoteMechanism, calibrated, vote_spends
from fed_distill.privacy.accounting import Spend, epsilon


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


SMALL = [
    ([6.0, 2.0, 1.0], 1.0),
    ([9.0, 1.0], 1.5),
    ([12.0, 2.0, 2.0, 0.0], 2.0),
    ([4.0, 3.0, 2.0], 2.0),
]


def renyi(one, other, order):
    return math.log(np.sum(one**order * other ** (1.0 - order))) / (order - 1.0)


@pytest.mark.parametrize(("votes", "noise"), SMALL)
def test_the_exact_divergence_of_an_answer_from_every_neighbours_is_within_what_is_paid(votes, noise):
    (_, answer), here = vote_spends(VoteMechanism(4.0, 1.0, noise, 1), 1), exact_winners(votes, noise)
    for source in range(len(votes)):
        for target in range(len(votes)):
            if votes[source] > 0 and source != target:
                moved = list(votes)
                moved[source] -= 1
                moved[target] += 1
                there = exact_winners(moved, noise)
                for order in (1.1, 1.5, 2.0, 3.0, 5.0, 9.0):
                    assert renyi(here, there, order) <= order / (2.0 * answer.noise_multiplier**2)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.floats(-5.0, 45.0), st.floats(0.5, 8.0), st.floats(1.05, 60.0))
def test_the_exact_divergence_of_a_threshold_test_is_within_what_is_paid(most, threshold, noise, order):
    def outcomes(count):
        return np.array([stats.norm.sf(threshold - count, scale=noise), stats.norm.cdf(threshold - count, scale=noise)])

    check, _ = vote_spends(VoteMechanism(threshold, noise, 1.0, 1), 1)
    here = outcomes(most)
    for there in (outcomes(most - 1), outcomes(most + 1)):
        if min(*here, *there) ** order > 1e-300:  # within the reach of float64
            assert renyi(here, there, order) <= order / (2.0 * check.noise_multiplier**2) * (1 + 1e-6) + 1e-12


def test_without_noise_votes_cost_everything():
    assert epsilon(vote_spends(VoteMechanism(3.0, 0.0, 1.0, 1), 1), 1e-3) == math.inf


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
    ],
)
def test_impossible_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_target_too_small_for_any_noise_is_refused():
    with pytest.raises(BudgetExceeded, match="no noise level keeps"):
        calibrated(0.001, 1e-5, **COUNTS, accountant="rdp")

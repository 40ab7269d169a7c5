"""ROC measures against scikit-learn, scipy and the textbook definitions."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score, roc_curve

from fed_distill.audit.roc import CURVE_RATES, auc_with_interval, clopper_pearson, detections, separation
from fed_distill.errors import DataError

tied_scores = st.lists(st.integers(0, 6), min_size=2, max_size=40).map(lambda values: np.array(values, dtype=float))


def labelled(members, nonmembers):
    return np.repeat([1, 0], [len(members), len(nonmembers)]), np.concatenate([members, nonmembers])


@settings(max_examples=60, deadline=None)
@given(tied_scores, tied_scores)
def test_auc_is_sklearns_whatever_the_ties(members, nonmembers):
    assert auc_with_interval(members, nonmembers, 0.95)[0] == pytest.approx(
        roc_auc_score(*labelled(members, nonmembers))
    )


@settings(max_examples=60, deadline=None)
@given(tied_scores, tied_scores, st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.25, 0.5, 1.0]))
def test_detections_are_the_best_of_sklearns_curve_at_no_more_false_positives(members, nonmembers, rate):
    false_positives, true_positives, _ = roc_curve(*labelled(members, nonmembers), drop_intermediate=False)
    detected, mistakes = detections(members, nonmembers, rate)
    best = true_positives[false_positives <= rate + 1e-12].max()
    assert detected / len(members) == pytest.approx(best)
    assert mistakes / len(nonmembers) <= rate + 1e-12


def test_the_deviation_of_the_auc_is_delongs_by_pairwise_placements():
    draw = np.random.default_rng(0)
    members, nonmembers = draw.integers(0, 9, 30).astype(float), draw.integers(0, 7, 25).astype(float)
    wins = (members[:, None] > nonmembers) + 0.5 * (members[:, None] == nonmembers)
    deviation = np.sqrt(wins.mean(axis=1).var(ddof=1) / 30 + wins.mean(axis=0).var(ddof=1) / 25)
    area, (low, high) = auc_with_interval(members, nonmembers, 0.9)
    assert (high - area, area - low) == pytest.approx((norm.ppf(0.95) * deviation,) * 2)


def test_the_aucs_interval_is_the_bootstraps():
    draw = np.random.default_rng(1)
    members, nonmembers = draw.normal(0.7, 1.0, 300), draw.normal(0.0, 1.0, 200)
    again = [auc_with_interval(draw.choice(members, 300), draw.choice(nonmembers, 200), 0.95)[0] for _ in range(600)]
    low, high = auc_with_interval(members, nonmembers, 0.95)[1]
    assert (low, high) == pytest.approx(tuple(np.quantile(again, [0.025, 0.975])), abs=0.01)


@pytest.mark.parametrize(("successes", "trials"), [(0, 12), (1, 12), (7, 12), (12, 12), (3, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_clopper_pearson_is_scipys_exact_interval(successes, trials, confidence):
    expected = binomtest(successes, trials).proportion_ci(confidence, method="exact")
    assert clopper_pearson(successes, trials, confidence) == pytest.approx((expected.low, expected.high))


def test_clopper_pearson_of_no_success_is_the_rule_of_three():
    assert clopper_pearson(0, 1000, 0.9) == pytest.approx((0.0, 0.003), abs=1e-5)


def test_scores_that_are_all_the_same_tell_nothing():
    found = separation(np.zeros(50), np.zeros(60))
    assert (found.auc, found.true_positive_rates[0.01].value, found.curve[0], found.curve[-1]) == (0.5, 0.0, 0.0, 1.0)


def test_a_perfect_score_has_every_member_and_no_false_positive():
    found = separation(np.arange(10.0) + 10, np.arange(10.0))
    assert (found.auc, found.auc_interval, set(found.curve)) == (1.0, (1.0, 1.0), {1.0})
    assert (found.true_positive_rates[0.001].value, found.true_positive_rates[0.001].false_positives) == (1.0, 0)


@pytest.mark.parametrize(("size", "allowed"), [(999, 0), (1000, 1), (2999, 2)])
def test_a_tenth_of_a_percent_allows_a_false_positive_for_each_thousand_nonmembers(size, allowed):
    assert detections(np.full(5, float(size)), np.arange(float(size)), 0.001) == (5, allowed)


def test_the_curve_never_falls():
    draw = np.random.default_rng(2)
    found = separation(draw.normal(1.0, 1.0, 500), draw.normal(0.0, 1.0, 500))
    assert len(found.curve) == len(CURVE_RATES)
    assert list(found.curve) == sorted(found.curve)


def test_a_separation_survives_json():
    found = separation(np.arange(5.0), np.arange(4.0)).to_json()
    assert json.loads(json.dumps(found)) == found
    assert set(found["tpr"]) == {"0.01", "0.001"}


@pytest.mark.parametrize(
    ("members", "nonmembers", "message"),
    [
        ([1.0], [1.0, 2.0], "at least two members, not 1"),
        ([1.0, 2.0], [], "at least two non-members, not 0"),
        ([1.0, 2.0], [0.0, np.nan], "row 1 of the non-members is nan"),
    ],
)
def test_scores_that_cannot_be_measured_are_refused(members, nonmembers, message):
    with pytest.raises(DataError, match=message):
        separation(np.array(members), np.array(nonmembers))

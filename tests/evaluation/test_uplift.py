"""Metrics of uplift against counts by hand, a slow twin that loops over customers, and generated truths."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_distill.evaluation.uplift import (
    Interval,
    Overlap,
    Totals,
    Trial,
    auuc,
    bootstrap,
    doubly_robust,
    qini,
    qini_curve,
    tenths,
    uplift_at,
    uplift_curve,
)


def trial(treated, bought, propensity=0.5, customers=None):
    count = len(treated)
    return Trial(
        np.array(treated, dtype=bool),
        np.array(bought, dtype=bool),
        np.broadcast_to(np.asarray(propensity, dtype=float), (count,)).copy(),
        np.arange(count) if customers is None else np.asarray(customers),
    )


SIX = trial([1, 0, 1, 0, 0, 1], [1, 0, 1, 1, 0, 0])
"""By decreasing score: treated and bought, control and not, treated and bought, control and bought, then neither."""
SCORES = np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])


def test_both_curves_of_six_customers_are_those_counted_by_hand():
    totals = Totals.of(SCORES, SIX)
    # R_t - R_c N_t / N_c: 1; 1 - 0·1/1; 2 - 0·2/1; 2 - 1·2/2; 2 - 1·2/3; 2 - 1·3/3; over three treated customers
    np.testing.assert_allclose(qini_curve(totals), np.array([0, 1, 1, 2, 1, 4 / 3, 1]) / 3)
    # R_t / N_t - R_c / N_c: undefined; 1 - 0; 1 - 0; 1 - 1/2; 1 - 1/3; 2/3 - 1/3, times the share
    np.testing.assert_allclose(uplift_curve(totals), np.array([0, 0, 2, 3, 2, 10 / 3, 2]) / 6)
    # the trapezoids of width 1/6: (1 + 1 + 2 + 1 + 4/3 + 1/2) / 18, less half of 1/3
    assert qini(totals) == pytest.approx(41 / 108 - 1 / 6)
    assert auuc(totals) == pytest.approx((2 + 3 + 2 + 10 / 3 + 1) / 36)
    assert uplift_at(totals, 0.5) == pytest.approx(1.0)
    assert uplift_at(totals, 1.0) == pytest.approx(1 / 3)


def slow_qini(scores, of):
    """Radcliffe's definition, customer by customer: only for distinct scores and equal propensities."""
    order = sorted(range(len(scores)), key=lambda at: -scores[at])
    heights = [0.0]
    for count in range(1, len(order) + 1):
        chosen = order[:count]
        arms = {arm: [at for at in chosen if of.treated[at] == arm] for arm in (True, False)}
        sold = {arm: sum(bool(of.bought[at]) for at in rows) for arm, rows in arms.items()}
        scaled = sold[False] * len(arms[True]) / len(arms[False]) if arms[False] else 0.0
        heights.append((sold[True] - scaled) / int(of.treated.sum()))
    area = sum((first + second) / 2 for first, second in pairwise(heights)) / len(order)
    return area - heights[-1] / 2


rows = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=4, max_size=30)


@settings(max_examples=60, deadline=None)
@given(rows, st.randoms(use_true_random=False), st.floats(0.1, 0.9))
def test_qini_is_that_of_a_slow_twin_whatever_the_equal_propensity(outcomes, random, propensity):
    treated, bought = zip(*outcomes, strict=True)
    of = trial([True, False, *treated], [True, True, *bought], propensity)
    scores = np.array(random.sample(range(1000), len(of)), dtype=float)
    assert qini(Totals.of(scores, of)) == pytest.approx(slow_qini(scores, of), abs=1e-12)


def test_equal_scores_are_one_step_in_any_order():
    of = trial([1, 0, 1, 0, 1, 0, 0, 1], [1, 0, 1, 1, 0, 0, 1, 0])
    assert qini(Totals.of(np.zeros(8), of)) == 0.0  # a constant does not rank
    scores = np.array([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    mixed = np.random.default_rng(0).permutation(8)
    again = trial(of.treated[mixed], of.bought[mixed])
    assert qini(Totals.of(scores, of)) == pytest.approx(qini(Totals.of(scores[mixed], again)))
    # half of the customers that are equal: the expectation of both arms, 1 of 2 treated and 1/2 of 2 others
    assert uplift_at(Totals.of(scores, of), 0.25) == pytest.approx(0.5)


def test_a_customer_who_counts_twice_is_two_customers():
    times = np.array([2.0, 1.0, 0.0, 3.0, 1.0, 1.0])
    repeated = np.repeat(np.arange(6), times.astype(int))
    copied = trial(SIX.treated[repeated], SIX.bought[repeated])
    assert qini(Totals.of(SCORES, SIX, times)) == pytest.approx(qini(Totals.of(SCORES[repeated], copied)))
    assert auuc(Totals.of(SCORES, SIX, times)) == pytest.approx(auuc(Totals.of(SCORES[repeated], copied)))


def confounded(count, seed=0):
    """Half of the customers are loyal: they buy anyway, have no effect, and are mailed far more often."""
    rng = np.random.default_rng(seed)
    loyal = rng.random(count) < 0.5
    propensity = np.where(loyal, 0.8, 0.2)
    treated = rng.random(count) < propensity
    without, with_it = np.where(loyal, 0.7, 0.1), np.where(loyal, 0.7, 0.3)
    bought = rng.random(count) < np.where(treated, with_it, without)
    return loyal, trial(treated, bought, propensity), without, with_it


def test_weights_remove_what_confounding_adds():
    loyal, of, _, _ = confounded(40_000)
    naive = of.bought[of.treated].mean() - of.bought[~of.treated].mean()
    assert naive > 0.35  # the true effect is 0.1 on average
    whole = Totals.of(np.zeros(len(of)), of)
    assert uplift_at(whole, 1.0) == pytest.approx(0.1, abs=0.02)
    assert uplift_at(Totals.of((~loyal).astype(float), of), 0.5) == pytest.approx(0.2, abs=0.03)
    assert auuc(Totals.of((~loyal).astype(float), of)) > auuc(Totals.of(loyal.astype(float), of)) + 0.04


@pytest.mark.parametrize("wrong", ["propensity", "responses"])
def test_the_doubly_robust_score_needs_only_one_right_model(wrong):
    loyal, of, without, with_it = confounded(60_000)
    if wrong == "propensity":
        of = trial(of.treated, of.bought, 0.5)
    else:
        without, with_it = np.full(len(of), 0.9), np.full(len(of), 0.2)
    found = doubly_robust(of, without, with_it)
    assert found.mean() == pytest.approx(0.1, abs=0.02)
    assert found[loyal].mean() == pytest.approx(0.0, abs=0.03)
    assert found[~loyal].mean() == pytest.approx(0.2, abs=0.03)


def test_the_doubly_robust_score_of_two_customers_by_hand():
    of = trial([1, 0], [1, 1], [0.25, 0.25])
    found = doubly_robust(of, np.array([0.5, 0.4]), np.array([0.6, 0.9]))
    np.testing.assert_allclose(found, [0.6 - 0.5 + (1 - 0.6) / 0.25, 0.9 - 0.4 - (1 - 0.4) / 0.75])


def test_bootstrap_intervals_have_the_width_of_theory_and_draw_customers_whole():
    rng = np.random.default_rng(1)
    values = rng.normal(size=400)
    four = trial([0, 1] * 800, [0] * 1600, 0.5, np.repeat(np.arange(400), 4))
    repeated = np.repeat(values, 4)
    found = bootstrap(lambda times: np.array([(repeated * times).sum() / times.sum()]), four, 800, rng)[0]
    error = values.std() / 20  # of 400 customers, not of 1,600 rows
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.15)
    assert found.covers(found.value) and not Interval(0.1, 0.0, 0.2).covers(0.3)


def test_intervals_of_qini_cover_the_truth_and_exclude_zero_only_if_there_is_something():
    _, of, without, with_it = confounded(6000, seed=3)
    rng = np.random.default_rng(0)
    effect, noise = with_it - without, rng.random(len(of))

    def both(times):
        return np.array([qini(Totals.of(scores, of, times)) for scores in (effect, noise)])

    good, random = bootstrap(both, of, 200, rng)
    # half of the customers have the effect 0.2 and come first: the curve rises to 0.1 and stays, 0.025 above the line
    assert good.covers(0.025) and good.low > 0
    assert random.covers(0.0)


def test_tenths_are_ten_equal_groups_the_best_first():
    found = tenths(np.arange(20, dtype=float))
    assert found.tolist() == [at // 2 for at in range(19, -1, -1)]
    assert np.bincount(tenths(np.zeros(25))).tolist() == [3, 2, 3, 2, 3, 2, 3, 2, 3, 2]


def test_overlap_counts_the_arms_by_propensity_and_kish_effective_sizes():
    of = trial([1, 1, 0, 0, 0], [0] * 5, [0.05, 0.5, 0.5, 0.55, 0.95])
    found = Overlap.of(of)
    assert found.treated == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0]
    assert found.control == [0, 0, 0, 0, 0, 2, 0, 0, 0, 1]
    assert found.clipped == pytest.approx(0.4)
    assert found.effective[0] == pytest.approx((20 + 2) ** 2 / (400 + 4))


def test_what_is_no_trial_is_refused():
    with pytest.raises(ValueError, match="different lengths"):
        Trial(np.zeros(2, bool), np.zeros(3, bool), np.full(2, 0.5), np.arange(2))
    with pytest.raises(ValueError, match="strictly between 0 and 1: clip it"):
        trial([1, 0], [1, 0], [0.0, 0.5])
    assert not trial([1, 1], [0, 1]).has_both_arms and SIX.has_both_arms


def test_resamples_without_an_arm_are_drawn_again():
    """Two of forty customers are treated: a resample has neither with a probability of 0.13."""
    few = trial([1, 1] + [0] * 38, [1, 0] * 20, 0.05)
    drawn = []

    def treated(times):
        drawn.append((times @ few.treated, times @ ~few.treated))
        return np.array([drawn[-1][0]])

    bootstrap(treated, few, 300, np.random.default_rng(0))
    assert len(drawn) == 301 and min(min(one) for one in drawn) > 0
    with pytest.raises(ValueError, match="one arm"):
        bootstrap(treated, trial([1, 1], [0, 1], 0.5), 3, np.random.default_rng(0))

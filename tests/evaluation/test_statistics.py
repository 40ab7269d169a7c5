"""Intervals against resampling, scipy, hand computation and simulations whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from fed_distill.evaluation.statistics import (
    difference,
    estimate,
    holm,
    interval,
    ratio,
    shrunk_accuracies,
    worst_tenth,
)

TEST_DATA = "test data"


def drawn(rng, shape, data=0.0, training=0.0, query=0.2, rest=0.1):
    """Draw scores of ``shape`` [data seeds, training seeds, queries] around 0 with these standard deviations."""
    seeds, rows, columns = shape
    return [
        rng.normal(0, data)
        + rng.normal(0, training, (rows, 1))
        + rng.normal(0, query, (1, columns))
        + rng.normal(0, rest, (rows, columns))
        for _ in range(seeds)
    ]


def test_one_training_seed_is_a_t_interval_over_the_queries():
    scores = np.random.default_rng(0).uniform(size=(1, 60))
    found = estimate([scores])
    expected = stats.ttest_1samp(scores[0], 0.0)
    interval = expected.confidence_interval(0.95)
    assert (found.value - found.half_width, found.value + found.half_width) == pytest.approx(
        (interval.low, interval.high)
    )
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.covers == (TEST_DATA,)


# Two-sided 95 % quantiles of Student's t, NIST/SEMATECH e-Handbook of Statistical Methods, table 1.3.6.7.2.
@pytest.mark.parametrize(("seeds", "quantile"), [(2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776), (11, 2.228)])
def test_the_interval_uses_students_t(seeds, quantile):
    values = [0.0] * (seeds - 1) + [1.0]
    mean, half = interval(values)
    deviation = np.sqrt((1 / seeds * (1 - 1 / seeds)) * seeds / (seeds - 1))
    assert mean == pytest.approx(1 / seeds)
    assert half == pytest.approx(quantile * deviation / np.sqrt(seeds), rel=1e-3)


def test_one_value_has_no_interval():
    assert interval([0.5]) == (0.5, None)
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_a_metric_without_queries_is_a_t_interval_over_the_seeds():
    values = [0.91, 0.93, 0.92]
    assert estimate([np.array(values)[:, None]]).half_width == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-5)
    assert estimate([np.array([[value]]) for value in values]).half_width == pytest.approx(0.0248414, rel=1e-5)
    assert estimate([np.array([[value]]) for value in values]).covers == ("data seeds",)


def test_a_single_value_has_no_interval():
    found = estimate([np.array([[0.5]])])
    assert (found.value, found.error, found.half_width, found.p_value, found.covers) == (0.5, None, None, None, ())


def test_the_error_over_queries_is_that_of_scipys_bootstrap():
    scores = np.random.default_rng(1).beta(8, 2, size=300)
    found = estimate([scores[None, :]])
    expected = stats.bootstrap((scores,), np.mean, n_resamples=4000, rng=np.random.default_rng(2))
    unbiased = expected.standard_error * (300 / 299) ** 0.5
    assert found.error == pytest.approx(unbiased, rel=0.05)
    assert found.value - found.half_width == pytest.approx(expected.confidence_interval.low, abs=0.002)


@pytest.mark.parametrize("shape", [(3, 1, 40), (5, 2, 20), (4, 3, 1)])
def test_several_data_seeds_are_resampled_whole(shape):
    """The error is that of drawn resamples of data seeds, rescaled, and the interval the t-interval of their means."""
    rng = np.random.default_rng(4)
    sample = drawn(np.random.default_rng(3), shape, data=0.01, training=0.03)
    means = np.array([part.mean() for part in sample])
    drawn_means = means[rng.integers(len(means), size=(20_000, len(means)))].mean(axis=1)
    found = estimate(sample)
    assert found.error == pytest.approx(drawn_means.std() * (len(means) / (len(means) - 1)) ** 0.5, rel=0.03)
    expected = stats.ttest_1samp(means, 0.0)
    interval = expected.confidence_interval(0.95)
    assert found.half_width == pytest.approx((interval.high - interval.low) / 2)
    assert found.p_value == pytest.approx(expected.pvalue)


def test_the_variance_of_a_crossed_design_by_hand():
    """Two training seeds and two queries: row means 1 and 7 give 18 / 2, column means 2 and 6 give 8 / 2, and the
    interaction of +-1 gives 4 / 1 / 4, which is in both."""
    found = [np.array([[0.0, 2.0], [4.0, 10.0]])]
    total = 9.0 + 4.0 - 1.0
    freedom = total**2 / (9.0**2 / 1 + 4.0**2 / 1 + 1.0**2 / 1)
    whole = stats.t.ppf(0.975, freedom) * total**0.5
    alone = stats.t.ppf(0.975, 1) * 9.0**0.5
    assert whole < alone
    assert estimate(found).error == pytest.approx(total**0.5)
    assert estimate(found).half_width == pytest.approx(alone)
    assert estimate(found, confidence=0.5).half_width == pytest.approx(stats.t.ppf(0.75, freedom) * total**0.5)


@pytest.mark.parametrize(
    ("shape", "spread"),
    [
        ((1, 3, 60), {"training": 0.03}),
        ((1, 5, 60), {"rest": 0.2}),
        ((3, 1, 60), {"data": 0.02}),
        ((3, 3, 60), {"rest": 0.3}),
    ],
)
def test_the_variance_is_neither_too_small_nor_counted_twice(shape, spread):
    rng = np.random.default_rng(14)
    found = [estimate(drawn(rng, shape, **spread)) for _ in range(3000)]
    estimated = np.mean([one.error**2 for one in found])
    assert estimated == pytest.approx(np.var([one.value for one in found]), rel=0.08)


def test_splits_of_the_same_rows_have_the_factor_of_nadeau_and_bengio():
    values = [0.91, 0.93, 0.92]
    found = estimate([np.array([[value]]) for value in values], shared=0.2 / 0.7)
    assert found.half_width == pytest.approx(4.302653 * 0.01 * (1 / 3 + 2 / 7) ** 0.5, rel=1e-5)
    one = [np.random.default_rng(0).uniform(size=(3, 40))]
    assert estimate(one, shared=0.2 / 0.7) == estimate(one), "one split shares its rows with no other"


def test_data_seeds_with_the_same_test_rows_have_the_chance_of_these_rows_too():
    """Three data seeds move a score by 0.004, tested on the same 500 rows, whose error remains."""
    rng, values = np.random.default_rng(15), []
    hits, trials = 0, 800
    for _ in range(trials):
        asked = rng.normal(0, 0.25, 500)
        sample = [(asked + rng.normal(0, 0.004) + rng.normal(0, 0.02, 500))[None, :] for _ in range(3)]
        found = estimate(sample, math.inf)
        values.append((found.value, found.error))
        hits += abs(found.value) <= found.half_width
    deviation = np.std([value for value, _ in values])
    assert np.mean([error**2 for _, error in values]) ** 0.5 == pytest.approx(deviation, rel=0.08)
    assert hits / trials >= 0.93
    assert estimate([part.mean(axis=1, keepdims=True) for part in sample], math.inf).covers == ("data seeds",)


def test_scores_without_spread_prove_no_difference():
    found = estimate([np.array([[0.01], [0.01 + 1e-17], [0.01]])])
    assert (found.value, found.half_width, found.p_value) == (pytest.approx(0.01), 0.0, None)


@pytest.mark.parametrize(
    ("shape", "spread", "most"),
    [
        ((1, 1, 60), {}, 0.97),
        ((1, 3, 60), {"training": 0.02}, 0.98),
        ((1, 2, 60), {"training": 0.1}, 0.98),
        ((1, 3, 60), {"query": 0.0, "rest": 0.3}, 1.0),  # two degrees of freedom, though the interaction has more
        ((3, 1, 60), {"data": 0.05}, 0.97),
        ((2, 1, 60), {"data": 0.1}, 0.97),
        ((3, 3, 60), {"data": 0.05, "training": 0.02}, 0.97),
        ((3, 3, 60), {}, 0.97),
        ((8, 1, 60), {"data": 0.02}, 0.97),
    ],
)
def test_intervals_cover_a_known_mean_as_often_as_they_say(shape, spread, most):
    rng = np.random.default_rng(5)
    repeats = 600
    hits = sum(abs((found := estimate(drawn(rng, shape, **spread))).value) <= found.half_width for _ in range(repeats))
    error = (0.95 * 0.05 / repeats) ** 0.5
    assert 0.95 - 2.6 * error <= hits / repeats <= most + 2.6 * error


@pytest.mark.parametrize("shape", [(1, 1, 200), (1, 3, 200), (3, 1, 200)])
def test_an_interval_excludes_zero_where_the_p_value_is_below_five_per_cent(shape):
    rng = np.random.default_rng(6)
    found = [estimate([part + 0.02 for part in drawn(rng, shape, data=0.005, training=0.01)]) for _ in range(300)]
    excluded = [abs(one.value) > one.half_width for one in found]
    assert any(excluded) and not all(excluded)
    assert excluded == [one.p_value < 0.05 for one in found]


def test_paired_differences_drop_what_both_rows_share():
    rng = np.random.default_rng(7)
    shared = drawn(rng, (1, 3, 100), query=0.3, rest=0.0)
    ours = [part + 0.01 + rng.normal(0, 0.01, part.shape) for part in shared]
    assert estimate(difference(ours, shared)).half_width < 0.1 * estimate(ours).half_width


def test_rows_of_other_queries_cannot_be_paired():
    with pytest.raises(ValueError, match="cannot be paired"):
        difference([np.zeros((1, 3))], [np.zeros((1, 4))])


def test_equal_rows_have_no_difference():
    row = drawn(np.random.default_rng(8), (1, 2, 10))
    found = estimate(difference(row, row))
    assert (found.value, found.half_width, found.p_value) == (0.0, 0.0, 1.0)


def test_the_interval_of_a_ratio_is_that_of_its_bootstrap():
    rng = np.random.default_rng(9)
    bottom = rng.normal(0.1, 0.2, 4000)
    top = 0.6 * bottom + rng.normal(0, 0.05, 4000)
    found = ratio([top[None, :]], [bottom[None, :]])
    expected = stats.bootstrap(
        (top, bottom), lambda a, b, axis: a.mean(axis) / b.mean(axis), paired=True, method="percentile",
        n_resamples=4000, rng=np.random.default_rng(10),
    ).confidence_interval  # fmt: skip
    assert found.value == pytest.approx(top.mean() / bottom.mean())
    assert found.half_width == pytest.approx((expected.high - expected.low) / 2, rel=0.06)


def test_a_value_is_clear_of_noise_at_two_half_widths():
    scores = np.array([[-1.0, 1.0] * 50])
    half = estimate([scores]).half_width
    assert estimate([scores + 2.01 * half]).is_clear
    assert not estimate([scores + 1.99 * half]).is_clear
    assert not estimate([scores - 3.0 * half]).is_clear
    assert not estimate([np.array([[0.5]])]).is_clear


def test_holm_against_the_values_of_r():
    """p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")"""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_holm_keeps_the_family_wise_error():
    """All hypotheses true: one is rejected in about five per cent of the families."""
    p_values = np.random.default_rng(11).uniform(size=(1500, 6))
    wrong = sum(min(holm(dict(enumerate(row))).values()) <= 0.05 for row in p_values)
    assert wrong / 1500 == pytest.approx(0.049, abs=0.02)  # 3.6 standard errors


def test_shrinkage_by_kleinmans_moments():
    """Kleinman (1973): for weights w_i that sum to one, with p = Σ w_i p_i and S = Σ w_i (p_i - p)²,
    ρ = (S - p (1 - p) Σ w_i (1 - w_i) / n_i) / (p (1 - p) (Σ w_i (1 - w_i) - Σ w_i (1 - w_i) / n_i))."""
    n, found = np.array([5, 40, 12, 3]), np.array([0.4, 0.9, 0.75, 1 / 3])
    w = n / n.sum()
    p = (w * found).sum()
    spread, sampled = (w * (1 - w)).sum(), (w * (1 - w) / n).sum()
    correlation = ((w * (found - p) ** 2).sum() - p * (1 - p) * sampled) / (p * (1 - p) * (spread - sampled))
    prior = (1 - correlation) / correlation
    assert 0.1 < correlation < 0.9
    names = ("a", "b", "c", "d")
    shrunk = shrunk_accuracies(dict(zip(names, found, strict=True)), dict(zip(names, n.tolist(), strict=True)))
    assert list(shrunk.values()) == pytest.approx(((n * found + p * prior) / (n + prior)).tolist())


def coverage_of_three_splits(moved_by_training: float, independent: bool) -> float:
    """Return how often an interval over three splits of 1,000 rows, 70 % training and 20 % test, has the truth.

    moved_by_training: standard deviation of the score due to the choice of training rows, divided by that due to test
    rows. independent: whether each data seed has rows of its own.
    """
    rng, rows, trials, hits = np.random.default_rng(3), 1000, 800, 0
    for _ in range(trials):
        sample = []
        for seed in range(3):
            if independent or seed == 0:
                taught, asked = rng.normal(size=(2, rows))
            order = rng.permutation(rows)
            test, train = order[: rows // 5], order[3 * rows // 10 :]
            level = moved_by_training * taught[train].mean() * math.sqrt(len(train))
            sample.append((level + math.sqrt(len(test)) * asked[test])[None, :])
        found = estimate(sample, 0.0 if independent else 0.2 / 0.7)
        hits += abs(found.value) <= found.half_width
    return hits / trials


@pytest.mark.parametrize(
    ("moved_by_training", "independent", "covered"),
    [(1.0, True, 0.95), (0.0, False, 0.95), (0.5, False, 0.925), (1.0, False, 0.90)],
)
def test_what_overlapping_splits_cost(moved_by_training, independent, covered):
    assert coverage_of_three_splits(moved_by_training, independent) == pytest.approx(covered, abs=0.025)


def test_merchants_that_differ_by_chance_only_get_the_common_mean():
    found = shrunk_accuracies({"a": 0.5, "b": 0.6, "c": 0.55}, {"a": 20, "b": 20, "c": 20})
    assert list(found.values()) == pytest.approx([0.55] * 3)
    assert shrunk_accuracies({"a": 1.0, "b": 1.0}, {"a": 5, "b": 9}) == {"a": 1.0, "b": 1.0}
    assert shrunk_accuracies({"only": 0.4}, {"only": 7}) == pytest.approx({"only": 0.4})
    assert shrunk_accuracies({}, {}) == {}


def test_shrunk_accuracies_are_closer_to_known_true_ones():
    rng = np.random.default_rng(12)
    truth = rng.beta(16, 4, 400)
    counts = rng.integers(5, 60, 400)
    names = [str(place) for place in range(400)]
    raw = rng.binomial(counts, truth) / counts
    found = shrunk_accuracies(dict(zip(names, raw, strict=True)), dict(zip(names, counts.tolist(), strict=True)))
    errors = [float(((np.array(one) - truth) ** 2).mean()) for one in (raw, list(found.values()))]
    # The best possible estimate, with the true prior of 16 and 4:
    best = float((((raw * counts + 16) / (counts + 20) - truth) ** 2).mean())
    assert best <= errors[1] <= 1.03 * best < 0.7 * errors[0]


def test_the_worst_tenth_is_not_ruled_by_the_smallest_merchant():
    accuracies = {str(place): 0.8 + 0.002 * (place % 5) for place in range(40)} | {"tiny": 0.0}
    counts = dict.fromkeys(accuracies, 300) | {"tiny": 2}
    assert worst_tenth(accuracies, counts) > 0.75
    assert worst_tenth({}, {}) is None

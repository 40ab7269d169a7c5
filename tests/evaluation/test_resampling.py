"""Scores on resampled data, against repeated rows and other libraries."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from fed_distill.data.campaign_cells import MARKETING_EFFECT
from fed_distill.evaluation.campaigns import qini_of
from fed_distill.evaluation.resampling import REPEATS, macro_f1_of, mean_of, qini_of_trial, resampled
from fed_distill.evaluation.uplift import Trial


def predictions(rng, rows, classes):
    return rng.dirichlet(np.ones(classes), rows)


def test_the_standard_error_of_a_mean_is_that_of_its_values():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(1.0, 1.0, 500), rng.normal(0.5, 1.0, 500)
    first, second = (resampled(mean_of(values), range(500)) for values in (ours, theirs))
    assert (first.value, len(first.resamples)) == (pytest.approx(ours.mean()), REPEATS)
    paired = (ours - theirs).std(ddof=1) / np.sqrt(500)
    assert first.standard_error(second) == pytest.approx(paired, rel=0.15)
    assert first.standard_error(first) == 0.0


def test_one_unit_alone_shows_no_difference():
    first, second = (resampled(mean_of([value]), [0]) for value in (0.4, 0.9))
    assert second.standard_error(first) == np.inf


def test_rows_of_a_customer_are_drawn_together():
    rng = np.random.default_rng(1)
    values = np.repeat(rng.normal(size=60), 5)
    whole = resampled(mean_of(values), np.repeat(np.arange(60), 5))
    alone = resampled(mean_of(values[::5]), range(60))
    zero = resampled(mean_of(np.zeros(60)), range(60))
    assert whole.standard_error(zero) == pytest.approx(alone.standard_error(zero), rel=1e-9)


@pytest.mark.parametrize("classes", [2, 5])
def test_macro_f1_is_scikit_learns_of_repeated_rows(classes):
    rng = np.random.default_rng(2)
    probabilities, labels = predictions(rng, 40, classes), rng.integers(0, classes, 40)
    statistic = macro_f1_of(probabilities, labels)
    for _ in range(20):
        times = rng.multinomial(40, np.full(40, 1 / 40))
        rows = np.repeat(np.arange(40), times)
        expected = f1_score(labels[rows], probabilities[rows].argmax(axis=1), average="macro")
        assert statistic(times.astype(float)) == pytest.approx(expected)


def test_the_qini_coefficient_is_that_of_repeated_customers():
    rng = np.random.default_rng(3)
    treated, bought = rng.random(50) < 0.5, rng.random(50) < 0.3
    propensity, customers = rng.uniform(0.2, 0.8, 50), np.arange(50)
    probabilities = predictions(rng, 50, len(MARKETING_EFFECT.classes))
    statistic = qini_of_trial(probabilities, Trial(treated, bought, propensity, customers))
    times = rng.multinomial(50, np.full(50, 1 / 50))
    rows = np.repeat(np.arange(50), times)
    repeated = Trial(treated[rows], bought[rows], propensity[rows], customers[rows])
    assert statistic(times.astype(float)) == pytest.approx(qini_of(probabilities[rows], repeated))
    assert np.isnan(statistic(treated.astype(float)))  # nobody who was not treated

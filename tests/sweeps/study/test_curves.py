"""Curves, levels and the Pareto front are read off the tables."""

import math

import pytest

from fed_distill.sweeps.collect import combinations_table, results_table
from fed_distill.sweeps.curves import curves, epsilon_of, levels, offers


@pytest.fixture
def results(finished):
    return results_table(finished.study, finished.cells, finished.places)


@pytest.fixture
def combinations(finished, results):
    return combinations_table(finished.study, results)


def test_a_curve_is_a_series_over_the_epsilon_that_was_spent(combinations):
    found = curves(combinations, "score")
    assert [(curve.series, curve.number) for curve in found] == [
        ("fedavg-kd · example", 0),
        ("fedavg-kd · merchant", 1),
        ("fedmd · example", 2),
    ]
    assert [reading.epsilon for reading in found[2].readings] == [
        pytest.approx(0.999),
        pytest.approx(7.992),
        math.inf,
    ]
    assert found[2].readings[1].value == pytest.approx(0.92 - 0.06 / 9 + 0.001)
    assert found[2].readings[1].half_width > 0


def test_a_series_without_the_measure_is_left_out_and_keeps_no_others_number(combinations):
    combinations.loc[combinations["series"] == "fedavg-kd · merchant", "audit.auc"] = math.nan
    found = curves(combinations, "audit.auc")
    assert [(curve.series, curve.number) for curve in found] == [("fedavg-kd · example", 0), ("fedmd · example", 2)]
    assert [reading.epsilon for reading in found[0].readings] == [pytest.approx(0.999), pytest.approx(7.992)]


def test_an_epsilon_is_spent_infinite_or_unknown():
    assert epsilon_of({"privacy.unit": "none", "privacy.epsilon": math.nan}) == math.inf
    assert epsilon_of({"privacy.unit": "example", "privacy.epsilon": 2.5}) == 2.5
    assert epsilon_of({"privacy.unit": "example", "privacy.epsilon": math.nan}) is None
    assert epsilon_of({"privacy.unit": None, "privacy.epsilon": math.nan}) is None


def test_levels_are_the_controls_means_over_the_seeds(results):
    found = levels(results, {"server": "alone", "pooled": "together"})
    assert [(level.name, level.value) for level in found] == [
        ("alone", pytest.approx(0.901)),
        ("together", pytest.approx(0.971)),
    ]
    assert found[0].half_width > 0


def test_there_is_no_level_where_one_seed_has_two_of_a_control(results):
    twice = results.copy()
    twice.loc[twice["role"] == "controls", "seed"] = 0
    assert levels(twice, {"server": "alone"}) == []


def test_an_offer_is_best_if_no_other_is_at_least_as_good_in_all_and_better_in_one(combinations):
    found = offers(combinations)
    best = {(offer.series, offer.epsilon) for offer in found if offer.best}
    assert best == {
        ("fedavg-kd · example", 1.0),
        ("fedavg-kd · example", 8.0),
        ("fedavg-kd · example", math.inf),
        ("fedavg-kd · merchant", math.inf),  # the same run
        ("fedmd · example", 1.0),  # far fewer bytes
        ("fedmd · example", 8.0),
        ("fedmd · example", math.inf),
    }


def test_an_offer_of_unknown_epsilon_beats_nobody_and_is_not_best(combinations):
    mask = (combinations["series"] == "fedmd · example") & (combinations["epsilon"] == "8")
    combinations.loc[mask, "privacy.epsilon"] = math.nan
    combinations.loc[mask, "score"] = 1.0
    found = offers(combinations)
    assert [offer.best for offer in found if offer.epsilon is None] == [False]
    assert sum(offer.best for offer in found) == 6


def test_an_epsilon_of_zero_is_in_no_figure(combinations):
    combinations.loc[combinations["epsilon"] == "1", "privacy.epsilon"] = 0.0
    assert all(reading.epsilon > 1 for curve in curves(combinations, "score") for reading in curve.readings)
    assert sum(offer.epsilon is None for offer in offers(combinations)) == 3

"""Campaigns of the generated marketplace: true effects, both assignments, and that training cannot see the truth."""

import dataclasses

import numpy as np
import pytest
from scipy.special import expit

from fed_distill.config import DataConfig
from fed_distill.data import load
from fed_distill.data.campaign_cells import (
    MARKETING_EFFECT,
    bought_of,
    cell_of,
    cells,
    effects,
    propensities,
    responses,
    treated_of,
)
from fed_distill.data.campaigns import responses as true_responses
from fed_distill.data.examples import Examples
from fed_distill.data.fingerprint import examples_fingerprint
from fed_distill.errors import ConfigError


def config(assignment="random", **options):
    options = {"merchants": 6, "rows": 700, "assignment": assignment, **options}
    return DataConfig(task=MARKETING_EFFECT.name, public_share=0.34, test_share=0.3, proxy_size=50, options=options)


@pytest.fixture(scope="module", params=["random", "confounded"])
def data(request):
    return request.param, load(config(request.param))


def everybody(data):
    return Examples.concatenate([data.public, data.test, data.valid, *(one.train for one in data.merchants.values())])


def test_cells_and_what_is_read_off_them():
    treated, bought = np.array([True, True, False, False]), np.array([True, False, True, False])
    labels = cell_of(treated, bought)
    assert [MARKETING_EFFECT.classes[label] for label in labels] == list(MARKETING_EFFECT.classes)
    assert treated_of(labels).tolist() == treated.tolist() and bought_of(labels).tolist() == bought.tolist()
    found = cells(np.array([0.25, 0.5]), np.array([0.1, 0.4]), np.array([0.6, 0.2]))
    np.testing.assert_allclose(found[0], [0.15, 0.10, 0.075, 0.675])  # by hand
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    np.testing.assert_allclose(propensities(found), [0.25, 0.5])
    np.testing.assert_allclose(responses(found), [[0.1, 0.4], [0.6, 0.2]])
    np.testing.assert_allclose(effects(found), [0.5, -0.2])
    assert effects(np.array([[0.0, 0.0, 0.3, 0.7]])).tolist() == [0.5 - 0.3]  # nothing is known of the treated


def test_responses_are_those_of_the_module_text():
    without, treated = true_responses(np.array([0.0, 0.5]), np.array([0.5, 0.0]))
    np.testing.assert_allclose(without, [expit(-1.8), expit(0.7)])
    np.testing.assert_allclose(treated, [expit(-0.1), expit(0.4)])


def test_the_difference_of_the_arms_is_the_true_effect_only_if_treatment_is_random(data):
    assignment, found = data
    labels = everybody(found).labels
    arm, bought = treated_of(labels), bought_of(labels)
    difference = bought[arm].mean() - bought[~arm].mean()
    true = np.mean(list(found.true_effects.values()))
    error = 2 * np.sqrt(0.25 / len(labels))  # at most, of the difference of two halves
    assert (abs(difference - true) < 3 * error) == (assignment == "random")
    assert difference > true - 3 * error


def test_the_truth_is_of_the_test_customers_and_not_in_any_example(data):
    _, found = data
    assert set(found.true_effects) >= set(found.test.groups.tolist())
    assert {field.name for field in dataclasses.fields(Examples)} == {"texts", "pairs", "labels", "groups", "merchants"}
    trained = [found.public, found.public_valid, found.proxy, *(one.train for one in found.merchants.values())]
    assert not set(found.true_effects) & {group for table in trained for group in table.groups.tolist()}


def test_other_effects_of_equal_customers_change_no_training_example(monkeypatch):
    from fed_distill.data import campaigns

    before = load(config())
    build = campaigns.replace
    monkeypatch.setattr(campaigns, "replace", lambda rows, effects: build(rows, effects=effects + 0.5))
    after = load(config())
    assert np.mean(list(after.true_effects.values())) > np.mean(list(before.true_effects.values())) + 0.4
    for name, merchant in before.merchants.items():
        assert examples_fingerprint(merchant.train) == examples_fingerprint(after.merchants[name].train)
    assert examples_fingerprint(before.public) == examples_fingerprint(after.public)


def test_limits_and_validation_runs_keep_or_drop_the_truth_with_the_customers():
    small = load(config().model_copy(update={"max_examples": 20, "max_merchants": 2}))
    assert len(small.test) == 20 and set(small.test.groups.tolist()) <= set(small.true_effects)
    tuned = load(config().model_copy(update={"scored_on": "validation"}))
    assert tuned.true_effects is None  # of test customers, whom this run does not read


def test_a_catalogue_is_refused_as_histories_are_private():
    with pytest.raises(ConfigError, match="the dataset has not declared its texts public"):
        load(config().model_copy(update={"proxy_from": "catalogue"}))

"""Learners of uplift on generated features, whose true effects are known."""

import numpy as np
import pytest
from scipy import sparse
from scipy.special import expit, logit

from fed_distill.models.uplift_learners import cross_fitted_propensity, fit, logistic, ridge


def generated(count=6000, features=6, treated_share=None, seed=0):
    """Binary features: the first raises both responses and the propensity, the second only the effect."""
    rng = np.random.default_rng(seed)
    x = (rng.random((count, features)) < 0.5).astype(float)
    propensity = np.full(count, treated_share) if treated_share else expit(-1.0 + 2.0 * x[:, 0])
    without = expit(-1.5 + 2.0 * x[:, 0])
    treated = expit(-1.5 + 2.0 * x[:, 0] + 1.6 * x[:, 1])
    arm = rng.random(count) < propensity
    bought = rng.random(count) < np.where(arm, treated, without)
    return sparse.csr_array(x), arm, bought, propensity, without, treated


def estimates(parts, features, clip=0.05):
    propensity, without, treated, of_control, of_treated = (part(features) for part in parts)
    e = expit(propensity).clip(clip, 1 - clip)
    return expit(treated) - expit(without), e * of_control + (1 - e) * of_treated


def test_both_learners_find_the_effects_where_the_treatment_is_confounded():
    x, arm, bought, propensity, without, treated = generated()
    true = treated - without
    naive = bought[arm].mean() - bought[~arm].mean()
    parts = fit(x, arm, bought, 0.05)
    for found in estimates(parts, x):
        assert abs(found.mean() - true.mean()) < 0.03 < abs(naive - true.mean())
        assert np.corrcoef(found, true)[0, 1] > 0.9
    np.testing.assert_allclose(expit(parts[0](x)), propensity, atol=0.06)
    np.testing.assert_allclose(expit(parts[1](x)), without, atol=0.08)


def test_the_x_learner_is_better_where_few_were_treated():
    """Künzel et al. 2019: with a control arm far larger than the treated one. Mean over four draws."""
    errors = []
    for seed in range(4):
        x, arm, bought, _, without, treated = generated(1500, features=30, treated_share=0.06, seed=seed)
        errors.append(
            [np.mean((found - (treated - without)) ** 2) for found in estimates(fit(x, arm, bought, 0.05), x)]
        )
    two_models, x_learner = np.mean(errors, axis=0)
    assert x_learner < two_models


def test_imputed_effects_of_two_groups_by_hand():
    """One feature, many customers, hardly any penalty: τ_1 is the mean of Y - μ_0 in each group, τ_0 of μ_1 - Y."""
    x = sparse.csr_array(np.repeat([[0.0], [1.0]], 1000, axis=0))
    arm = np.tile([True, False], 1000)
    bought = np.zeros(2000, dtype=bool)
    bought[1000:1400] = True  # of the second group: the first 200 treated and 200 others of 500 each
    bought[1400:1600:2] = True  # and 100 treated customers more
    parts = fit(x, arm, bought, 0.05)
    both = sparse.csr_array([[0.0], [1.0]])
    np.testing.assert_allclose(parts[3](both), [0.0, 0.6 - 0.4], atol=0.01)
    np.testing.assert_allclose(parts[4](both), [0.0, 0.6 - 0.4], atol=0.01)


def test_an_arm_of_one_outcome_has_a_constant_response():
    x = sparse.csr_array(np.eye(4))
    found = logistic(x, np.zeros(4, dtype=bool))
    assert found(x) == pytest.approx(np.full(4, logit(0.5 / 5)))
    assert ridge(x[:2], np.array([1.0, 2.0]))(x).tolist() == [1.5] * 4
    assert ridge(x[:0], np.zeros(0))(x).tolist() == [0.0] * 4


def test_propensities_of_a_random_treatment_are_nearly_constant_if_no_row_is_its_own_evidence():
    """With as many features as rows, a model that has seen a row knows its treatment."""
    rng = np.random.default_rng(0)
    x = sparse.csr_array((rng.random((400, 400)) < 0.05).astype(float))
    arm = rng.random(400) < 0.5
    seen = expit(logistic(x, arm)(x))
    found = cross_fitted_propensity(x, arm, 0.05)
    assert abs(np.corrcoef(found, arm)[0, 1]) < 0.2 and found.min() >= 0.05 and found.max() <= 0.95
    assert np.corrcoef(seen, arm)[0, 1] > 0.3

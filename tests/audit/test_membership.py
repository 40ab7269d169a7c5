"""Membership scores against torch and scipy, and the likelihood ratio against a loop over examples."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy, norm
from sklearn.metrics import roc_auc_score

from fed_distill.audit.membership import Shadows, certainty, lira, log_likelihood, scaled_confidence
from fed_distill.errors import DataError


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(0.0, 3.0, (20, 4))


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, 4, 20)


def softmax(logits, dtype=torch.float64):
    return torch.softmax(torch.from_numpy(logits).to(dtype), dim=-1).double().numpy()


def test_log_likelihood_is_minus_the_cross_entropy(logits, labels):
    losses = F.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), reduction="none")
    np.testing.assert_allclose(log_likelihood(softmax(logits), labels), -losses.numpy())


def test_scaled_confidence_is_the_logit_of_the_labels_probability(logits, labels):
    probabilities = softmax(logits)[np.arange(20), labels]
    expected = torch.logit(torch.from_numpy(probabilities)).numpy()
    np.testing.assert_allclose(scaled_confidence(softmax(logits), labels), expected)


def test_scaled_confidence_tells_float32_predictions_apart_that_round_to_one():
    logits = np.array([[30.0, 0.0, 0.0], [40.0, 0.0, 0.0]])
    probabilities = softmax(logits, torch.float32)
    assert probabilities[:, 0].tolist() == [1.0, 1.0]
    found = scaled_confidence(probabilities, np.zeros(2, dtype=np.int64))
    np.testing.assert_allclose(found, [30.0 - np.log(2), 40.0 - np.log(2)], rtol=1e-6)


def test_a_probability_of_zero_has_a_finite_score():
    impossible = np.array([[1.0, 0.0]])
    assert np.isfinite(log_likelihood(impossible, np.array([1])))[0]
    assert np.isfinite(scaled_confidence(impossible, np.array([0])))[0]


def test_certainty_is_minus_scipys_entropy(logits):
    probabilities = softmax(logits)
    np.testing.assert_allclose(certainty(probabilities), -entropy(probabilities, axis=1))


def test_an_unlabelled_example_is_refused(logits):
    with pytest.raises(DataError, match="row 2 has label -1"):
        log_likelihood(softmax(logits)[:3], np.array([0, 1, -1]))


@pytest.fixture
def shadows():
    draw = np.random.default_rng(2)
    inside = (draw.random((10, 7)).argsort(axis=0) < 4).astype(bool)
    return Shadows(draw.normal(draw.normal(0.0, 2.0, 7), 1.0, (10, 7)) + 1.5 * inside, inside)


def deviations(shadows, chosen, variance):
    """Standard deviations of each example's chosen scores, one example after another."""
    columns = [shadows.scores[chosen[:, at], at] for at in range(chosen.shape[1])]
    if variance == "example":
        return [float(column.std(ddof=1)) for column in columns]
    squares = sum(float(((column - column.mean()) ** 2).sum()) for column in columns)
    return [np.sqrt(squares / sum(len(column) - 1 for column in columns))] * len(columns)


@pytest.mark.parametrize("variance", ["example", "pooled"])
def test_online_lira_is_the_log_ratio_of_two_gaussian_densities(shadows, variance):
    victim = np.linspace(-3.0, 3.0, 7)
    spread_in, spread_out = (deviations(shadows, chosen, variance) for chosen in (shadows.inside, ~shadows.inside))
    for at, found in enumerate(lira(victim, shadows, online=True, variance=variance)):
        column, inside = shadows.scores[:, at], shadows.inside[:, at]
        expected = norm.logpdf(victim[at], column[inside].mean(), spread_in[at])
        expected -= norm.logpdf(victim[at], column[~inside].mean(), spread_out[at])
        assert found == pytest.approx(expected)


@pytest.mark.parametrize("variance", ["example", "pooled"])
def test_offline_lira_is_a_monotone_form_of_the_probability_of_a_lower_score_without_the_example(shadows, variance):
    victim = np.linspace(-3.0, 3.0, 7)
    spread = deviations(shadows, ~shadows.inside, variance)
    means = [shadows.scores[~shadows.inside[:, at], at].mean() for at in range(7)]
    found = lira(victim, shadows, online=False, variance=variance)
    np.testing.assert_allclose(norm.cdf(found), norm.cdf(victim, means, spread))


@pytest.mark.parametrize("online", [True, False])
def test_lira_finds_members_as_well_as_theory_says_where_examples_differ_in_difficulty(online):
    """Of two unit Gaussians a distance d apart the best AUC is Phi(d / sqrt 2), whatever the difficulty."""
    draw = np.random.default_rng(3)
    examples, distance = 4000, 1.2
    difficulty = draw.normal(0.0, 5.0, examples)
    inside = draw.random((64, examples)).argsort(axis=0) < 32
    members = draw.random(examples) < 0.5
    trained = Shadows(draw.normal(difficulty, 1.0, (64, examples)) + distance * inside, inside)
    victim = draw.normal(difficulty, 1.0) + distance * members
    assert roc_auc_score(members, victim) < 0.6
    found = roc_auc_score(members, lira(victim, trained, online=online))
    assert found == pytest.approx(norm.cdf(distance / np.sqrt(2)), abs=0.02)


@pytest.mark.parametrize("online", [True, False])
def test_lira_finds_nothing_in_a_student_that_is_independent_of_membership(online):
    draw = np.random.default_rng(4)
    inside = draw.random((16, 4000)).argsort(axis=0) < 8
    trained = Shadows(draw.normal(0.0, 1.0, (16, 4000)) + inside, inside)
    members = draw.random(4000) < 0.5
    assert roc_auc_score(members, lira(draw.normal(0.0, 1.0, 4000), trained, online=online)) == pytest.approx(
        0.5, abs=0.03
    )


def test_an_example_that_too_few_shadows_saw_is_refused():
    inside = np.array([[True, True], [True, False], [False, False], [False, False]])
    with pytest.raises(DataError, match="only 1 shadow students"):
        Shadows(np.zeros((4, 2)), inside)


def test_scores_and_membership_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"scores have shape \(4, 2\)"):
        Shadows(np.zeros((4, 2)), np.ones((4, 3), dtype=bool))


def test_shadows_that_all_say_the_same_give_finite_scores():
    inside = np.array([[True], [True], [False], [False]])
    assert np.isfinite(lira(np.array([3.0]), Shadows(np.zeros((4, 1)), inside), online=True)).all()

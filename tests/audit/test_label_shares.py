"""Label shares from uplinks, where theory says what an uplink holds, and from students that were really trained."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cityblock

from fed_distill.audit.label_shares import (
    fitted_gain,
    infer_shares,
    label_shares,
    shares_from_bias,
    shares_from_presence,
    shares_from_soft_labels,
    total_variation,
)
from fed_distill.audit.victim import predicted
from fed_distill.errors import DataError

PUBLIC = np.array([0.5, 0.3, 0.2])
OWN = np.array([0.1, 0.2, 0.7])


def test_label_shares_count_every_class():
    assert label_shares(np.array([0, 2, 2, 2]), 4).tolist() == [0.25, 0.0, 0.75, 0.0]
    with pytest.raises(DataError, match="at least one labelled example"):
        label_shares(np.array([], dtype=np.int64), 3)


def test_students_that_predict_their_own_shares_give_them_away():
    """What a student learns from texts that say nothing: its shares, for every example."""
    sent, reference = np.tile(OWN, (20, 1)), np.tile(PUBLIC, (20, 1))
    np.testing.assert_allclose(shares_from_soft_labels(sent, reference, PUBLIC), OWN)


def test_students_that_are_sure_of_every_proxy_example_give_nothing_away():
    sure = np.eye(3)[[0, 0, 1, 2, 1]]
    np.testing.assert_allclose(shares_from_soft_labels(sure, sure, PUBLIC), PUBLIC)


def test_which_classes_a_merchant_has_leaves_the_public_shares_among_these():
    np.testing.assert_allclose(shares_from_presence(np.array([True, False, True]), PUBLIC), [5 / 7, 0.0, 2 / 7])
    unheard = shares_from_presence(np.array([False, False, True]), np.array([0.6, 0.4, 0.0]))
    np.testing.assert_allclose(unheard, [0.0, 0.0, 1.0])


def test_a_bias_trained_to_its_optimum_has_moved_by_the_log_ratio_of_the_shares():
    labels = torch.arange(3).repeat_interleave(torch.tensor([10, 20, 70]))
    bias = torch.from_numpy(np.log(PUBLIC)).requires_grad_()
    optimizer = torch.optim.SGD([bias], lr=1.0)
    for _ in range(500):
        optimizer.zero_grad()
        F.cross_entropy(bias.expand(100, 3), labels).backward()
        optimizer.step()
    change = (bias.detach() - torch.from_numpy(np.log(PUBLIC))).numpy()
    np.testing.assert_allclose(shares_from_bias(change, PUBLIC, 1.0), OWN, atol=1e-6)


def test_the_gain_makes_up_for_training_that_goes_a_tenth_of_the_way():
    draw = np.random.default_rng(0)
    shares = list(draw.dirichlet(np.ones(3), 10))
    changes = [0.1 * np.log(share / PUBLIC) + 0.4 for share in shares]
    assert fitted_gain(changes, shares, PUBLIC) == pytest.approx(10.0)
    np.testing.assert_allclose(shares_from_bias(changes[0], PUBLIC, 10.0), shares[0])


def test_total_variation_is_half_of_scipys_city_block_distance():
    assert total_variation(OWN, PUBLIC) == pytest.approx(cityblock(OWN, PUBLIC) / 2)
    assert total_variation(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1.0


def test_guesses_are_measured_against_the_truth_and_the_public_shares():
    found = infer_shares({"north": OWN, "south": PUBLIC}, {"north": OWN, "south": OWN}, PUBLIC)
    assert found.errors == {"north": 0.0, "south": pytest.approx(0.5)}
    assert found.baselines == {"north": pytest.approx(0.5), "south": pytest.approx(0.5)}
    assert (found.error, found.baseline) == (pytest.approx(0.25), pytest.approx(0.5))
    assert json.loads(json.dumps(found.to_json()))["errors"]["north"] == 0.0


def test_a_merchant_whose_truth_is_not_given_is_named():
    with pytest.raises(DataError, match="true label shares of south are missing"):
        infer_shares({"north": OWN, "south": OWN}, {"north": OWN}, PUBLIC)
    with pytest.raises(DataError, match="no merchants"):
        infer_shares({}, {}, PUBLIC)


def test_trained_students_give_skewed_shares_away(recipe_of, make_examples):
    recipe = recipe_of(40)
    encoded_proxy = recipe.encoded_proxy
    reference = predicted(recipe.student, recipe.start, encoded_proxy)
    public, guesses, truths, changes = reference.mean(axis=0), {}, {}, {}
    learners = []
    for number, mix in enumerate(np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]])):
        labels = np.random.default_rng(number).choice(3, 60, p=mix)
        examples = make_examples(60, seed=number)
        name = f"shop {number}"
        truths[name] = label_shares(labels, 3)
        learners.append(recipe.learner(name, recipe.student.encode(examples.texts, examples.pairs), labels, (0, name)))
    for name, weights in recipe.fit(learners):
        guesses[name] = shares_from_soft_labels(predicted(recipe.student, weights, encoded_proxy), reference, public)
        changes[name] = (weights["head.2.bias"] - recipe.start["head.2.bias"]).double().numpy()
    found = infer_shares(guesses, truths, public)
    assert found.error < 0.5 * found.baseline
    gain = fitted_gain(list(changes.values()), [truths[name] for name in changes], public)
    by_bias = infer_shares(
        {name: shares_from_bias(change, public, gain) for name, change in changes.items()}, truths, public
    )
    assert by_bias.error < 0.8 * by_bias.baseline

"""The audit of randomized labels accepts the right mechanism, and finds each fault that is planted in it."""

import math

import numpy as np
import pytest

from fed_distill.audit.f_dp import PureDP
from fed_distill.audit.label_canaries import LabelAudit
from fed_distill.config import Experiment
from fed_distill.mechanisms import label
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.merchant import labels
from fed_distill.privacy.randomized_response import randomized
from fed_distill.seeds import Keystream


def audited(epsilon, rounds=3, canaries=4000, task="relevance"):
    table = {"unit": "label", "epsilon": epsilon, "texts_public": True}
    experiment = Experiment.parse({"privacy": table, "federation": {"rounds": rounds}, "data": {"task": task}})
    return LabelAudit(experiment, mechanism_of(experiment), epsilon).run(2, canaries=canaries)


@pytest.mark.parametrize("task", ["relevance", "recommend"])
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_the_right_mechanism_passes_and_the_bounds_are_close(epsilon, task):
    """With gains (randomized response on bins) and without."""
    found = audited(epsilon, task=task)
    assert not found.exceeded and found.releases == 3
    assert 0.8 * epsilon - 0.05 < found.steinke.epsilon <= epsilon


def test_the_bound_is_that_of_clopper_and_pearson():
    """A one-sided interval for the probability of a correct guess, from scipy."""
    from scipy.stats import binomtest

    bound = audited(1.0).steinke
    guesses = bound.included_guesses + bound.excluded_guesses
    low = binomtest(bound.correct, guesses, alternative="greater").proportion_ci(0.95, "exact").low
    assert bound.epsilon == pytest.approx(math.log(low / (1 - low)), abs=1e-4)


def test_truth_that_is_kept_too_often_is_found(monkeypatch):
    monkeypatch.setattr(
        label, "randomized", lambda own, outputs, epsilon, coins: randomized(own, outputs, 1.5 * epsilon, coins)
    )
    assert audited(1.0).exceeded


def test_labels_without_noise_are_found(monkeypatch):
    monkeypatch.setattr(label, "randomized", lambda own, *given: own)
    assert audited(3.0).steinke.epsilon > 6.0


def test_labels_that_are_randomized_again_in_each_round_are_found(monkeypatch):
    calls = iter(range(100))
    monkeypatch.setattr(labels, "_read", lambda path: None)
    monkeypatch.setattr(
        label,
        "randomized",
        lambda own, outputs, epsilon, coins: randomized(own, outputs, epsilon, Keystream("fresh", next(calls))),
    )
    assert audited(1.0).exceeded


def test_labels_that_are_randomized_for_each_copy_of_a_text_are_found(monkeypatch):
    """At epsilon = 1 a label is kept with probability 0.731, and most of five with 0.875: epsilon 1.94."""

    def each_row(mechanism, examples, labels):
        rows = np.arange(len(examples))
        return rows, rows, labels

    monkeypatch.setattr(label.ByLabel, "distinct", each_row)
    found = audited(1.0)
    assert found.exceeded and found.steinke.epsilon > 1.2


def test_the_curve_is_that_of_randomized_response():
    """By hand, e^epsilon = 3: an event of probability 3/4 has at least 1/4, and one of 1/2 at least 1/6."""
    curve = PureDP().curve(math.log(3))
    assert (curve(0.75), curve(0.5), curve(1.0), curve(0.0)) == pytest.approx((0.25, 1 / 6, 1.0, 0.0))

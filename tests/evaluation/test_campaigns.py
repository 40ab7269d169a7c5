"""The headline of tasks of campaigns: the Qini coefficient, by propensities estimated on the examples themselves."""

import numpy as np
import pytest

from fed_distill.data.campaign_cells import MARKETING_EFFECT, cell_of, cells
from fed_distill.data.examples import Examples
from fed_distill.evaluation.campaigns import qini_of, trial_of
from fed_distill.evaluation.metrics import SCORES
from fed_distill.evaluation.shares import chance_scores
from fed_distill.evaluation.uplift import CLIP

SENT = np.array([0.2, 0.5, 0.97])


def customers(count=3000, sent=SENT, seed=0):
    rng = np.random.default_rng(seed)
    kinds = rng.integers(3, size=count)
    treated = rng.random(count) < sent[kinds]
    bought = rng.random(count) < np.where(treated, np.array([0.6, 0.3, 0.5])[kinds], np.array([0.1, 0.3, 0.7])[kinds])
    texts = tuple(("green tea", "soap", "jam")[kind] for kind in kinds)
    return kinds, Examples(texts, ("week",) * count, cell_of(treated, bought), kinds, ("shop",) * count)


def test_propensities_are_those_of_the_treatment_and_clipped():
    kinds, examples = customers()
    found = trial_of(examples)
    assert (found.treated == (examples.labels < 2)).all() and (found.customers == kinds).all()
    for kind, share in enumerate(SENT.clip(CLIP, 1 - CLIP)):
        assert found.propensity[kinds == kind].mean() == pytest.approx(share, abs=0.04)


def test_a_model_of_the_effects_is_above_its_opposite_and_above_chance():
    assert MARKETING_EFFECT.headline == "qini" and "qini" in SCORES
    kinds, examples = customers()
    trial, half = trial_of(examples), np.full(len(kinds), 0.5)
    right = cells(half, np.array([0.1, 0.3, 0.7])[kinds], np.array([0.6, 0.3, 0.5])[kinds])
    wrong = cells(half, np.array([0.6, 0.3, 0.5])[kinds], np.array([0.1, 0.3, 0.7])[kinds])
    chance = chance_scores(examples.labels.tolist(), None, MARKETING_EFFECT)["qini"]
    assert qini_of(right, trial) > chance + 0.05 > chance == 0.0 > qini_of(wrong, trial)
    assert qini_of(np.full((len(kinds), 4), 0.25), trial) == 0.0


def test_of_one_arm_there_is_none():
    _, examples = customers(60, np.zeros(3))
    assert qini_of(np.full((60, 4), 0.25), trial_of(examples)) is None

"""The headline of tasks of campaigns: the Qini coefficient, by propensities estimated on the examples themselves."""

import numpy as np
import pytest

from fed_distill.data.campaign_cells import MARKETING_EFFECT, cell_of, cells
from fed_distill.data.examples import Examples
from fed_distill.evaluation.campaigns import BLOCKS, qini_by_block, qini_of, trial_of
from fed_distill.evaluation.metrics import SCORES
from fed_distill.evaluation.resampling import qini_of_trial, resampled
from fed_distill.evaluation.shares import chance_scores
from fed_distill.evaluation.statistics import difference, estimate
from fed_distill.evaluation.uplift import CLIP, Trial

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


def predictions_and_trial(rows, customers, seed=0, sent=0.5):
    """Two models' predictions, the second noisier, and what happened to ``rows`` rows of ``customers`` customers."""
    rng = np.random.default_rng(seed)
    likely, treated = rng.random(rows), rng.random(rows) < sent
    bought = rng.random(rows) < 0.2 + 0.4 * likely * treated
    trial = Trial(treated, bought, np.full(rows, sent), rng.permutation(rows) % customers)
    noisy = (likely + rng.normal(0, 0.4, rows)).clip(0, 1)
    half = np.full(rows, 0.5)
    return [cells(half, np.zeros(rows), scores) for scores in (likely, noisy)], trial


def chosen(trial, rows):
    return Trial(trial.treated[rows], trial.bought[rows], trial.propensity[rows], trial.customers[rows])


@pytest.mark.parametrize("customers", [20, 60])
def test_with_few_customers_each_is_left_out_in_turn(customers):
    (model, _), trial = predictions_and_trial(60, customers)
    found = np.array(qini_by_block(model, trial))
    left = np.array(
        [qini_of(model[own], chosen(trial, own)) for own in trial.customers != np.arange(customers)[:, None]]
    )
    assert found.mean() == pytest.approx(qini_of(model, trial))
    jackknife = np.sqrt((customers - 1) / customers * ((left - left.mean()) ** 2).sum())
    assert found.std(ddof=1) / np.sqrt(customers) == pytest.approx(jackknife)
    assert sorted(found) == pytest.approx(sorted(qini_of(model, trial) - (customers - 1) * (left - left.mean())))


def test_the_standard_errors_of_the_coefficient_and_of_a_difference_are_the_bootstraps():
    models, trial = predictions_and_trial(4000, 2000)
    samples = [[np.array([qini_by_block(model, trial)])] for model in models]
    assert {sample[0].shape for sample in samples} == {(1, BLOCKS)}
    drawn = [resampled(qini_of_trial(model, trial), trial.customers) for model in models]
    assert estimate(samples[0]).error == pytest.approx(drawn[0].resamples.std(ddof=1), rel=0.2)
    between = estimate(difference(*samples))
    assert between.value == pytest.approx(drawn[0].value - drawn[1].value)
    assert between.error == pytest.approx(drawn[0].standard_error(drawn[1]), rel=0.2)


def test_blocks_that_leave_no_arm_give_no_values():
    (model, _), trial = predictions_and_trial(60, 60)
    one = Trial(np.arange(60) == 3, trial.bought, trial.propensity, trial.customers)
    assert qini_by_block(model, one) == []
    nobody = Trial(np.zeros(60, dtype=bool), trial.bought, trial.propensity, trial.customers)
    assert qini_by_block(model, nobody) == []
    assert qini_by_block(model[:0], chosen(trial, np.zeros(60, dtype=bool))) == []

"""Whole audits of small students: overfitted ones are found out, noisy and untrained ones are not."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fed_distill.audit.audit import THREAT_MODELS, audit
from fed_distill.audit.canaries import canary_audit, make_canaries
from fed_distill.audit.f_dp import CurveBound
from fed_distill.audit.label_shares import infer_shares
from fed_distill.audit.one_run import Bound
from fed_distill.audit.victim import predictor, trained_without
from fed_distill.audit.white_box import WhiteBoxAudit
from fed_distill.errors import DataError
from fed_distill.privacy.dp_sgd import ExampleDP

MEMBERSHIP = ["loss", "loss_drop", "certainty", "proxy_soft_labels", "lira_offline", "lira_online"]


@pytest.fixture
def victim_of(recipe_of, make_examples):
    """A function (privacy) -> the victim and the recipe that trained it, half of its 240 examples held back."""

    def make(privacy=None):
        recipe = recipe_of(200, privacy)
        start = predictor(recipe.student, recipe.start)
        return trained_without(lambda examples: recipe.train(examples, 0), start, make_examples(240), 0), recipe

    return make


def test_an_overfitted_student_is_found_out_and_the_student_before_training_is_not(victim_of):
    victim, recipe = victim_of()
    found = audit(victim, seed=0, recipe=recipe, shadows=8)
    by_name = {attack.name: attack for attack in found.attacks}
    assert list(by_name) == MEMBERSHIP
    for name in ("loss", "loss_drop", "lira_online"):
        assert by_name[name].separation.auc > 0.75
    assert found.strongest.separation.auc == max(attack.separation.auc for attack in found.attacks)
    controls = [attack.control_auc for attack in found.attacks if attack.control_auc is not None]
    assert len(controls) == 4
    assert controls == pytest.approx([0.5] * 4, abs=0.12)


def test_a_student_trained_with_much_noise_is_not_found_out(victim_of):
    victim, recipe = victim_of(ExampleDP(20.0, 1.0))
    found = audit(victim, seed=0, recipe=recipe, shadows=8)
    assert [attack.separation.auc for attack in found.attacks] == pytest.approx([0.5] * 6, abs=0.12)


def test_without_a_recipe_only_queries_are_made(victim_of):
    victim, _ = victim_of()
    found = audit(victim, seed=0)
    assert [attack.name for attack in found.attacks] == MEMBERSHIP[:3]
    assert (found.shadows, found.epsilon_lower_bound) == (0, None)


def test_without_shadows_there_is_no_likelihood_ratio(victim_of):
    victim, recipe = victim_of()
    assert [attack.name for attack in audit(victim, seed=0, recipe=recipe, shadows=0).attacks] == MEMBERSHIP[:4]


def test_an_audit_is_the_same_for_the_same_seed(victim_of):
    victim, recipe = victim_of()
    first, again, other = (audit(victim, seed=seed, recipe=recipe, shadows=4).to_json() for seed in (0, 0, 1))
    assert first == again
    assert first["attacks"]["lira_online"]["auc"] != other["attacks"]["lira_online"]["auc"]


def test_an_audit_in_json_has_the_headlines_and_every_threat_model_that_was_tried(victim_of, make_examples):
    victim, recipe = victim_of()
    canaries = canary_audit(
        lambda examples: recipe.train(examples, 0),
        victim.start,
        make_examples(30),
        make_canaries(make_examples(100, seed=3), 3, 100, "random_text", seed=0),
        delta=1e-4,
        seed=0,
        confidence=0.9,
    )
    shares = infer_shares({"shop": np.array([0.2, 0.8])}, {"shop": np.array([0.5, 0.5])}, np.array([0.4, 0.6]))
    guesses = {"delta": 1e-4, "confidence": 0.9, "canaries": 100, "included_guesses": 5, "excluded_guesses": 5}
    white_box = WhiteBoxAudit(
        "example", 2.0, 3, Bound(1.0, correct=9, **guesses), CurveBound(2.5, correct=9, **guesses)
    )
    found = audit(
        victim,
        seed=0,
        recipe=recipe,
        shadows=4,
        canaries=canaries,
        label_shares=shares,
        white_box=white_box,
        confidence=0.9,
    )
    written = found.to_json()
    assert (written["white_box"]["exceeded"], written["white_box"]["promised"]) == (True, 2.0)
    assert (white_box.brief()["steinke"], white_box.brief()["f_dp"]) == (1.0, 2.5)
    assert json.loads(json.dumps(written)) == written
    assert written["auc"] == written["attacks"][written["strongest"]]["auc"]
    assert written["tpr_at_1pct"] == max(attack["tpr"]["0.01"]["value"] for attack in written["attacks"].values())
    assert written["tpr_at_01pct"] == max(attack["tpr"]["0.001"]["value"] for attack in written["attacks"].values())
    assert written["epsilon_lower_bound"] == canaries.bound.epsilon > 0.0
    assert (written["delta"], written["confidence"], written["shadows"]) == (1e-4, 0.9, 4)
    assert written["nonmembers"] == "held-back examples"
    assert written["threat_models"] == THREAT_MODELS


def test_held_out_groups_are_said_to_be_so_and_shadows_leave_out_whole_groups(victim_of):
    victim, recipe = victim_of()
    by_example = audit(victim, seed=0, recipe=recipe, shadows=4).to_json()
    paired = replace(
        victim,
        members=replace(victim.members, groups=victim.members.groups // 2),
        nonmembers=replace(victim.nonmembers, groups=victim.nonmembers.groups // 2 + 1000),
        by_group=True,
    )
    by_group = audit(paired, seed=0, recipe=recipe, shadows=4).to_json()
    assert (by_example["nonmembers"], by_group["nonmembers"]) == ("held-back examples", "held-out groups")
    assert by_example["attacks"]["loss"] == by_group["attacks"]["loss"]
    assert by_example["attacks"]["lira_online"] != by_group["attacks"]["lira_online"]


def test_too_few_nonmembers_are_refused(victim_of, make_examples):
    victim, _ = victim_of()
    with pytest.raises(DataError, match="at least two non-members, not 1"):
        audit(replace(victim, nonmembers=make_examples(1)), seed=0)


def test_canaries_of_another_confidence_are_refused(victim_of, make_examples):
    victim, _ = victim_of()
    canaries = canary_audit(
        lambda examples: victim.released,
        victim.start,
        make_examples(5),
        make_canaries(make_examples(40), 3, 40, "mislabeled", seed=0),
        delta=0.0,
        seed=0,
        confidence=0.9,
    )
    with pytest.raises(ValueError, match=r"confidence 0\.95 .* 0\.9: use one confidence"):
        audit(victim, seed=0, canaries=canaries)

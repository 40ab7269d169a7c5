"""Unit label: what it requires, which examples are drawn when, and that only equal inputs share random numbers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fed_distill.config import Experiment, LabelsConfig
from fed_distill.data.examples import UNLABELED, Examples
from fed_distill.errors import ConfigError, TrainingError
from fed_distill.mechanisms.label import ByLabel
from fed_distill.mechanisms.lookup import mechanism, mechanism_of, protected_by_merchants
from fed_distill.merchant.allowance import run_exposure
from fed_distill.merchant.limits import Limit
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.privacy.accounting import Spend
from fed_distill.privacy.exposure import LabelSpend, label_epsilon
from fed_distill.privacy.ledger import Charge, Ledger, composed, exposure, read_ledger

SPEND = LabelSpend(math.log(3))


def experiment(rounds=4, **privacy):
    table = {"unit": "label", "epsilon": 1.0, "texts_public": True, **privacy}
    return Experiment.parse({"privacy": table, "federation": {"rounds": rounds}})


def checked(one, sends=(StudentUpdate,)):
    mechanism_of(one).check(one, one.federation, sends)


def examples(size, start=0):
    texts = tuple(f"query {number}" for number in range(start, start + size))
    pairs = tuple(f"offer {number}" for number in range(start, start + size))
    return Examples(texts, pairs, np.zeros(size, np.int64), np.arange(size), ("a",) * size)


def drawn(labels=None, prior=(0.5, 0.3, 0.2), spend=SPEND, basis="basis", own="secret", merchant="a", size=400):
    labels = torch.zeros(size, dtype=torch.int64) if labels is None else labels
    return ByLabel("label").randomize(labels, torch.tensor([prior] * len(labels)), spend, basis, own, merchant)


def test_texts_must_be_declared_public():
    checked(experiment())
    with pytest.raises(ConfigError, match=r"set privacy\.texts_public = true"):
        checked(experiment(texts_public=False))


def test_every_payload_is_covered():
    sends = (StudentUpdate, SoftLabels, ClassMeans)
    checked(experiment(), sends)
    mechanism("label").check_covered("fd", sends)
    assert {mechanism("label").covers(kind) for kind in sends} == {"computed from randomized labels and public texts"}


@pytest.mark.parametrize("key", ["noise_multiplier", "delta"])
def test_gaussian_noise_is_not_an_option(key):
    other = {"epsilon": None, key: 0.5} if key == "noise_multiplier" else {key: 1e-5}
    with pytest.raises(ConfigError, match=f"{key} is for Gaussian noise"):
        experiment(**other)


@pytest.mark.parametrize(
    ("rounds", "keys", "message"),
    [
        (1, {"stages": 2}, "begins its second stage in round 2, but federation fedavg-kd has 1"),
        (4, {"stages": 2, "second_stage": 5}, "round 5, but federation fedavg-kd has 4"),
        (4, {"second_stage": 3}, r"second_stage requires privacy\.stages = 2"),
        (4, {"targets": "labels", "label_temperature": 2.0}, r"label_temperature requires privacy\.targets = 'post"),
    ],
)
def test_a_key_that_would_do_nothing_and_a_stage_without_a_round_are_refused(rounds, keys, message):
    with pytest.raises(ConfigError, match=message):
        checked(experiment(rounds, **keys))


def test_a_site_must_name_it():
    assert "label" not in protected_by_merchants() and not Limit().allows("label")
    assert Limit(units=("label",)).allows("label")


def test_a_run_costs_its_epsilon_for_each_federation_and_seed():
    one = experiment()
    assert run_exposure(one, 5, 40) == 1.0
    more = one.with_changes({"repeats": 3, "compare": [{"label": "again"}]})
    assert run_exposure(more, 5, 40) == 6.0


def test_the_report_names_what_is_not_hidden():
    listed = mechanism("label").disclose(experiment().privacy, (StudentUpdate,))
    said = " ".join(f"{one.what}: {one.how}" for one in listed)
    assert "texts of its training examples: not hidden" in said
    assert "which examples it has, which are labelled, and how many: not hidden" in said
    assert "not its texts" in mechanism("label").words.hides


def test_halves_are_disjoint_whole_and_do_not_depend_on_other_examples():
    two = mechanism_of(experiment(stages=2))
    whole = examples(200)
    (first, before), *none = two.due(whole, 2, 4)
    assert (first, none) == (1, []) and 60 < len(before) < 140
    (_, again), (second, after) = two.due(whole, 3, 4)
    assert second == 2 and torch.equal(again, before)
    assert sorted([*before.tolist(), *after.tolist()]) == list(range(200))
    (_, fewer), _ = two.due(whole.take(range(50, 200)), 3, 4)
    assert [row + 50 for row in fewer.tolist()] == [row for row in before.tolist() if row >= 50]


def test_a_merchant_without_a_first_half_begins_with_the_second():
    two, whole = mechanism_of(experiment(stages=2)), examples(40)
    _, (_, after) = two.due(whole, 3, 4)
    alone = whole.take(after.numpy()[:3])
    assert [number for number, _ in two.due(alone, 1, 4)] == [2]


def test_equal_inputs_give_the_same_labels():
    one, other = drawn(), drawn()
    assert torch.equal(one.labels, other.labels) and one.digest == other.digest


@pytest.mark.parametrize(
    "change",
    [
        {"own": "another secret"},
        {"merchant": "b"},
        {"basis": "other labels or texts"},
        {"spend": LabelSpend(math.log(3), 1)},
        {"prior": (0.2, 0.5, 0.3)},
    ],
)
def test_anything_else_has_independent_labels_and_another_digest(change):
    """Two draws of 400 labels that are kept with probability 3/4 (or 1/4 of the same label under two of three
    candidates): their agreement is that of independent draws."""
    one, other = drawn(size=4000), drawn(size=4000, **change)
    assert one.digest != other.digest
    shares = [torch.bincount(draw.labels, minlength=3) / 4000 for draw in (one, other)]
    agreement = float((one.labels == other.labels).float().mean())
    assert agreement == pytest.approx(float((shares[0] * shares[1]).sum()), abs=0.04)


def test_two_priors_with_the_same_candidates_share_one_release():
    """What is released depends on the prior through the candidates alone: averaging over both gives nothing new."""
    one, other = drawn(prior=(0.5, 0.3, 0.2)), drawn(prior=(0.55, 0.27, 0.18))
    assert one.digest == other.digest and torch.equal(one.labels, other.labels)


def test_a_student_that_predicts_nothing_is_no_prior():
    with pytest.raises(TrainingError, match="cannot be a prior"):
        drawn(prior=(math.nan, 0.5, 0.5))


def test_an_example_without_a_label_is_refused():
    with pytest.raises(TrainingError, match="has no label"):
        ByLabel("label").distinct(examples(2), torch.tensor([0, UNLABELED]))


def charge(request, part=0, **changes):
    made = Charge("run", "arm", 0, 0, "label", "labels", request, (), 0.0, label=LabelSpend(1.0, part))
    return replace(made, **changes)


def test_releases_add_up_and_disjoint_halves_do_not():
    """By hand: 1 for all, 1 for each half, and 1 more for the second half: a label of it was released three times."""
    assert label_epsilon([]) == 0.0
    several = [charge("a"), charge("b", 1), charge("c", 2)]
    assert composed(several) == exposure(several) == 2.0
    assert composed([*several, charge("d", 2)]) == 3.0


def test_one_release_that_two_arms_use_counts_once():
    assert composed([charge("a"), charge("a", arm="other"), charge("a", run="later")]) == 1.0


def test_with_other_releases_the_label_counts_under_its_change():
    """DP-SGD by example: a change of one label replaces a clipped gradient, as does half the noise."""
    noised = Charge("run", "arm", 0, 1, "example", "training", "f", (Spend(4.0, 0.1, 50),), 1e-5)
    halved = replace(noised, spends=(Spend(2.0, 0.1, 50),))
    assert exposure([noised]) < exposure([halved])
    assert exposure([charge("a"), noised]) == pytest.approx(1.0 + exposure([halved]))


def test_a_ledger_keeps_it_and_its_limit(tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl", "a")
    assert ledger.charge(charge("a", 1), 2.0) == 1.0
    assert ledger.charge(charge("a", 1), 2.0) == 1.0
    assert ledger.charge(charge("b", 2), 2.0) == 1.0
    assert [entry.charge for entry in read_ledger(ledger.path)] == [charge("a", 1), charge("b", 2)]
    assert ledger.epsilon("label") == 1.0


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0}, {"epsilon": math.inf}, {"epsilon": 1.0, "part": 3}])
def test_an_impossible_cost_is_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        LabelSpend(**wrong)


def test_a_charge_for_labels_has_no_noise():
    with pytest.raises(ValueError, match="no other spends, and delta 0"):
        charge("a", spends=(Spend(1.0, 1.0, 1),))


@pytest.mark.parametrize(("epsilon", "temperature"), [(0.5, 16.0), (1.0, 8.0), (4.0, 2.0), (8.0, 1.0), (20.0, 1.0)])
def test_by_default_a_label_asks_for_a_change_of_8_or_of_a_larger_epsilon(epsilon, temperature):
    assert ByLabel("label").label_temperature(epsilon) == temperature
    assert ByLabel("label", LabelsConfig(label_temperature=3.0)).label_temperature(epsilon) == 3.0

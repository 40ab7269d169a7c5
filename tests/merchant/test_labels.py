"""Randomized labels at a site: charged before anything is computed from them, once, and the same in all rounds."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fed_distill.mechanisms.release import Protection
from fed_distill.merchant.labels import LABELS, RandomizedLabels
from fed_distill.merchant.limits import Limit, Limits
from fed_distill.merchant.opening import open_site
from fed_distill.models import predict
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.transport.requests import Refusal

PRIVATE = {"privacy.unit": "label", "privacy.epsilon": 1.0, "privacy.texts_public": True, "federation.rounds": 4}
ALLOWED = Limits(default=Limit(units=("label",), max_epsilon=3.0))


@pytest.fixture
def seen(monkeypatch):
    """Labels and targets by (merchant, round), as they are given to the trainer."""
    found = {}
    whole = RandomizedLabels.learner

    def learner(self, learner, examples, task):
        made = whole(self, learner, examples, task)
        found[task.request.arm, learner.name, task.down.round], _ = made
        return made

    monkeypatch.setattr(RandomizedLabels, "learner", learner)
    return found


@pytest.fixture
def protected(world, tmp_path):
    """A function that opens a site with a secret and ledgers of its own."""

    def open_protected(secret="s" * 32, data=None, limits=ALLOWED, **changes):
        settings = {
            "runtime.folder": str(tmp_path / "runs"),
            "privacy.ledger": str(tmp_path / "ledgers"),
            **PRIVATE,
            **changes,
        }
        return open_site(world.experiment.with_changes(settings), 0, 1, data or world.data, limits, secret)

    return open_protected


def request(world, *merchants, arm="fedavg-kd", federation="first", seed=0):
    made = world.request(*(merchants or world.names), arm=arm, rounds=4)
    return replace(made, federation=federation, seed=seed)


def answers(site, asked, down):
    return {answer.merchant: answer for answer in site.train(asked, down, {})}


def charges(site, merchant):
    return [entry.charge for entry in site.protection.ledger("fedavg-kd", 0, merchant).entries()]


def moved(world, number):
    """The downlink of a hostile round, whose student predicts something else."""
    draw = torch.Generator().manual_seed(number)
    weights = {name: value + torch.randn(value.shape, generator=draw) for name, value in world.start.items()}
    return world.down(number).having(StudentWeights(weights))


def test_all_rounds_have_the_labels_of_the_first_and_cost_nothing_more(world, protected, seen):
    site = protected()
    for number in range(1, 5):
        found = answers(site, request(world), moved(world, number))
        assert not any(isinstance(one, Refusal) for one in found.values())
    for merchant in world.names:
        (one,) = charges(site, merchant)
        assert (one.what, one.round, one.label.epsilon, one.spends, one.delta) == ("labels", 0, 1.0, (), 0.0)
        rounds = [seen["fedavg-kd", merchant, number] for number in range(1, 5)]
        assert all(torch.equal(one.labels, rounds[0].labels) for one in rounds)
        assert not any(torch.equal(one.label_probabilities, rounds[0].label_probabilities) for one in rounds[1:])
        truth = world.data.merchants[merchant].train.labels
        assert not np.array_equal(rounds[0].labels.numpy(), truth)
    spent = site.protection.spent("fedavg-kd", 0, world.names)
    assert (spent.epsilon, spent.epsilon_6, spent.delta, spent.merchants) == (1.0, 1.0, 0.0, len(world.names))


def test_targets_are_the_posterior_under_the_received_student(world, protected, seen, tmp_path):
    """A slow twin for each row, from the stored outputs: prior times 1, or e for the classes that are released as the
    label was."""
    merchant, gains = world.names[0], world.data.task.gains
    site = protected()
    for number in (1, 2):
        answers(site, request(world, merchant), moved(world, number))
    (stored,) = site.protection.experiment.privacy.ledger.rglob("*.safetensors")
    outputs, made = load_file(stored)["outputs"], seen["fedavg-kd", merchant, 2]
    made.student.load_state_dict(dict(made.weights))
    assert made.label_temperature == 8.0
    prior = predict(made.student, made.private, temperature=8.0)
    assert gains is not None and len(outputs) == len(prior)  # no equal texts
    for row in range(len(prior)):
        assert len(set(outputs[row].tolist())) == 2  # at epsilon 1, whatever the prior
        odds = [math.e if one == made.labels[row] else 1.0 for one in outputs[row].tolist()]
        joint = prior[row].numpy() * np.array(odds)
        np.testing.assert_allclose(made.label_probabilities[row].numpy(), joint / joint.sum(), rtol=1e-4)


def test_a_temperature_evens_out_predictions_in_targets_and_loss_and_another_one_the_prior(
    world, protected, seen, tmp_path
):
    merchant, largest, drawn = world.names[0], {}, {}
    for key, temperature in (
        ("label", 0.05),
        ("label", 1.0),
        ("label", 1e6),
        ("prior", 0.05),
        ("prior", 1.0),
        ("prior", 1e6),
    ):
        ledger = tmp_path / f"{key} {temperature}"
        site = protected(**{"privacy.ledger": str(ledger), f"privacy.{key}_temperature": temperature})
        answers(site, request(world, merchant), world.down())
        made = seen["fedavg-kd", merchant, 1]
        largest[key, temperature] = made.label_probabilities.max(dim=1).values.mean().item()
        (stored,) = ledger.rglob("*.safetensors")
        drawn[key, temperature] = load_file(stored)["outputs"]
        assert made.label_temperature == (temperature if key == "label" else 8.0)
    assert largest["label", 0.05] > largest["label", 1.0] > largest["label", 1e6]
    assert largest["label", 1e6] <= math.e / (math.e + 1)
    assert all(torch.equal(drawn["label", one], drawn["prior", 1.0]) for one in (0.05, 1.0, 1e6))
    assert not torch.equal(drawn["prior", 0.05], drawn["prior", 1e6])


@pytest.mark.parametrize(("method", "temperature"), [("fedprox", 8.0), ("fedavg-kd", 8.0), ("fedntd", 1.0)])
def test_a_method_with_more_than_labels_in_its_loss_has_temperature_1(world, protected, seen, method, temperature):
    """Its other terms compare the student's predictions with others at temperature 1."""
    site = protected(**{"federation.method": method, "federation.options": {}})
    answers(site, request(world, world.names[0], arm=method), world.down())
    made = seen[method, world.names[0], 1]
    assert made.label_temperature == temperature
    made.student.load_state_dict(dict(made.weights))
    prior = predict(made.student, made.private, temperature=temperature)
    ratio = made.label_probabilities / prior  # the likelihood of what was released, up to a factor for each row
    spread = ratio.amax(dim=1) / ratio.amin(dim=1)
    torch.testing.assert_close(spread, torch.full_like(spread, math.e), rtol=1e-3, atol=0.0)


def test_a_task_without_gains_has_randomized_response_with_a_prior(world, protected, seen):
    """Unlikely classes have no output of their own (-1), and of a sure prior nothing is asked."""
    merchant = world.names[0]
    data = replace(world.data, task=replace(world.data.task, gains=None))
    site = protected(data=data, **{"privacy.prior_temperature": 0.2})
    answers(site, request(world, merchant), world.down())
    (stored,) = site.protection.experiment.privacy.ledger.rglob("*.safetensors")
    outputs = load_file(stored)["outputs"]
    assert bool((outputs == -1).any())
    own = outputs >= 0
    assert torch.equal(outputs[own], torch.arange(outputs.shape[1]).expand_as(outputs)[own])


def test_equal_texts_have_one_label_and_one_draw(world, protected, seen):
    """Five copies with a draw each would tell the label of their texts at five times the charged epsilon."""
    merchant = world.names[0]
    train = world.data.merchants[merchant].train
    copies = train.take(np.repeat(np.arange(len(train)), 5))
    copies = replace(copies, labels=copies.labels.copy())
    copies.labels[4::5] = (copies.labels[4::5] + 1) % len(world.data.task.classes)  # a minority disagrees
    told = {}
    for name, examples in (("once", train), ("copies", copies)):
        of_merchant = replace(world.data.merchants[merchant], train=examples)
        data = replace(world.data, merchants={**world.data.merchants, merchant: of_merchant})
        site = protected(data=data, name=name)
        answers(site, request(world, merchant), world.down())
        told[name] = seen["fedavg-kd", merchant, 1]
        assert {one.label.epsilon for one in charges(site, merchant)} == {1.0}
    assert len({one.request for one in charges(site, merchant)}) == 1  # the same release
    labels, expected = told["copies"].labels, told["once"]
    pairs = list(zip(train.texts, train.pairs or train.texts, strict=True))
    assert len(set(pairs)) == len(pairs)
    assert torch.equal(labels, expected.labels.repeat_interleave(5))
    assert torch.equal(told["copies"].label_probabilities, expected.label_probabilities.repeat_interleave(5, dim=0))


def test_labels_are_charged_before_they_are_used(world, protected, seen, monkeypatch):
    order, charge = [], Protection.charge_labels
    monkeypatch.setattr(
        Protection, "charge_labels", lambda self, *given: (order.append("charge"), charge(self, *given))[1]
    )
    for kind in (SequentialTrainer, CohortTrainer):
        fit = kind.fit
        monkeypatch.setattr(kind, "fit", lambda self, *given, of=fit: (order.append("train"), of(self, *given))[1])
    answers(protected(), request(world, world.names[0]), world.down())
    assert order == ["charge", "train"]


def test_a_merchant_that_cannot_pay_sends_nothing(world, protected, seen):
    site = protected(limits=Limits(default=Limit(units=("label",), max_epsilon=0.9)))
    found = answers(site, request(world), world.down())
    assert all(isinstance(one, Refusal) and one.cause == "budget" for one in found.values())
    assert not seen and not charges(site, world.names[0])


def test_a_site_that_does_not_name_the_unit_takes_no_part(world, protected, seen):
    found = answers(protected(limits=Limits()), request(world), world.down())
    assert all(isinstance(one, Refusal) for one in found.values()) and not seen


def test_an_equal_request_has_an_equal_answer(world, protected, seen):
    asked = request(world, world.names[0])
    one, other = (answers(protected(), asked, world.down())[world.names[0]] for _ in range(2))
    first, second = (answer.need(StudentUpdate).arrays for answer in (one, other))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_killed_between_the_draw_and_the_charge_it_charges_that_draw(world, protected, seen, monkeypatch):
    merchant = world.names[0]

    def killed(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Protection, "charge_labels", killed)
        with pytest.raises(KeyboardInterrupt):
            answers(protected(), request(world, merchant), world.down())
    site = protected()
    assert not charges(site, merchant) and not seen
    (stored,) = (site.protection.experiment.privacy.ledger / LABELS).rglob("*.safetensors")
    before = stored.read_bytes()
    answers(site, request(world, merchant), moved(world, 2))
    assert len(charges(site, merchant)) == 1 and stored.read_bytes() == before


def test_killed_after_the_charge_it_is_not_charged_again(world, protected, seen, monkeypatch):
    merchant, charge = world.names[0], Protection.charge_labels

    def killed(self, *given):
        charge(self, *given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Protection, "charge_labels", killed)
        with pytest.raises(KeyboardInterrupt):
            answers(protected(), request(world, merchant), world.down())
    site = protected()
    (paid,) = charges(site, merchant)
    answers(site, request(world, merchant), moved(world, 2))
    assert charges(site, merchant) == [paid]


def test_without_the_stored_draw_an_equal_one_is_free_and_another_is_charged(world, protected, seen):
    merchant = world.names[0]
    site = protected()
    answers(site, request(world, merchant), world.down())
    first = seen["fedavg-kd", merchant, 1]
    shutil.rmtree(site.protection.experiment.privacy.ledger / LABELS)
    answers(site, request(world, merchant), world.down())
    assert torch.equal(seen["fedavg-kd", merchant, 1].labels, first.labels) and len(charges(site, merchant)) == 1
    shutil.rmtree(site.protection.experiment.privacy.ledger / LABELS)
    found = answers(site, request(world, merchant), moved(world, 1))
    assert isinstance(found[merchant], Refusal) and found[merchant].cause == "budget"  # above the federation's epsilon
    answers(protected(name="later"), request(world, merchant), moved(world, 1))
    assert len(charges(site, merchant)) == 2


def test_an_older_ledger_is_refused(world, protected, seen):
    merchant, kept = world.names[0], []
    for number in range(1, 4):
        site = protected(name=f"run-{number}")
        answers(site, request(world, merchant), moved(world, number))
        kept.append(site.protection.ledger("fedavg-kd", 0, merchant).path.read_bytes())
    site.protection.ledger("fedavg-kd", 0, merchant).path.write_bytes(kept[0])
    seen.clear()
    found = answers(site, request(world, merchant), moved(world, 4))
    assert isinstance(found[merchant], Refusal) and not seen


def relabelled(data, merchant):
    own = data.merchants[merchant]
    labels = own.train.labels.copy()
    labels[0] = (labels[0] + 1) % len(data.task.classes)
    changed = replace(own, train=replace(own.train, labels=labels))
    return replace(data, merchants={**data.merchants, merchant: changed})


def test_another_label_is_another_release(world, protected, seen):
    """In the same federation it is refused; in another one it is charged, and its random numbers are independent."""
    merchant = world.names[0]
    answers(protected(), request(world, merchant), world.down())
    before = seen["fedavg-kd", merchant, 1]
    data = relabelled(world.data, merchant)
    refused = answers(protected(data=data), request(world, merchant), world.down())
    assert isinstance(refused[merchant], Refusal)
    later = protected(data=data, name="later")
    answers(later, request(world, merchant), world.down())
    one, other = charges(later, merchant)
    assert one.request != other.request
    assert not torch.equal(seen["fedavg-kd", merchant, 1].labels, before.labels)


def test_averaging_over_federations_and_seeds_gives_no_more_than_one_release(world, protected, seen):
    """The server asks for the same labels in two arms, two seeds and two runs, with the same student: one draw."""
    merchant, found = world.names[0], []
    for name in ("one", "two"):
        site = protected(name=name)
        for arm in ("fedavg-kd", "moon"):
            for seed in (0, 1):
                answers(site, request(world, merchant, arm=arm, federation=f"{name} {arm}", seed=seed), world.down())
                found.append(seen[arm, merchant, 1].labels)
    assert all(torch.equal(one, found[0]) for one in found)
    paid = charges(site, merchant)
    assert len(paid) == 8 and len({one.request for one in paid}) == 1
    assert site.protection.ledger("fedavg-kd", 0, merchant).epsilon("label") == 1.0


def test_other_students_in_other_federations_are_charged_until_the_limit(world, protected, seen):
    """An attack by priors: each federation's student has other candidates, so each is a release of its own."""
    merchant, drawn = world.names[0], []
    for number in range(1, 6):
        site = protected(name=f"run-{number}")
        answer = answers(site, request(world, merchant), moved(world, number))[merchant]
        if not isinstance(answer, Refusal):
            drawn.append(seen["fedavg-kd", merchant, number].labels)
    assert len(drawn) == 3 and len(charges(site, merchant)) == 3  # at 1 each, of max_epsilon = 3
    files = list((site.protection.experiment.privacy.ledger / LABELS).rglob("*.safetensors"))
    assert len(files) == 3 and {file.stat().st_mode & 0o777 for file in files} == {0o600}  # refused draws are deleted
    assert site.protection.ledger("fedavg-kd", 0, merchant).epsilon("label") == 3.0


def test_two_merchants_with_the_same_examples_and_two_secrets_draw_independently(world, protected, seen):
    one, other = world.names[:2]
    same = replace(world.data.merchants[one], name=other)
    data = replace(world.data, merchants={**world.data.merchants, other: same})
    answers(protected(data=data), request(world, one, other), world.down())
    first, second = (seen["fedavg-kd", name, 1].labels for name in (one, other))
    assert not torch.equal(first, second)
    answers(protected(secret="t" * 32, data=data, name="elsewhere"), request(world, one), world.down())
    assert not torch.equal(seen["fedavg-kd", one, 1].labels, first)


def test_in_two_stages_each_half_is_released_once_and_both_cost_one_epsilon(world, protected, seen):
    merchant = world.names[0]
    site = protected(**{"privacy.stages": 2})
    for number in range(1, 5):
        answers(site, request(world, merchant), moved(world, number))
    sizes = [len(seen["fedavg-kd", merchant, number].labels) for number in range(1, 5)]
    whole = len(world.data.merchants[merchant].train)
    assert sizes[0] == sizes[1] < sizes[2] == sizes[3] == whole
    assert [one.what for one in charges(site, merchant)] == ["labels of half 1", "labels of half 2"]
    assert site.protection.spent("fedavg-kd", 0, [merchant]).epsilon == 1.0


def test_examples_keep_their_labels_when_the_second_half_joins(world, protected, seen):
    merchant = world.names[0]
    site = protected(**{"privacy.stages": 2, "privacy.targets": "labels"})
    for number in (1, 4):
        answers(site, request(world, merchant), world.down(number))
    early, late = (seen["fedavg-kd", merchant, number] for number in (1, 4))
    assert early.label_probabilities is None
    rows = {tuple(row): int(label) for row, label in zip(_rows(late), late.labels, strict=True)}
    assert all(rows[tuple(row)] == int(label) for row, label in zip(_rows(early), early.labels, strict=True))


def _rows(learner):
    return torch.cat([values.double().flatten(1) for _, values in sorted(learner.private.items())], dim=1).tolist()


@pytest.mark.parametrize("trainer", ["sequential", "cohort"])
def test_with_hardly_any_noise_training_is_that_of_the_true_labels(world, tmp_path, trainer):
    """At epsilon 40 a label is kept with probability 1 - 1e-17, and its posterior is the label, whatever the prior."""
    merchant = world.names[0]
    plain = world.experiment.with_changes({"runtime.folder": str(tmp_path), "runtime.trainer": trainer})
    noised = plain.with_changes({**PRIVATE, "privacy.epsilon": 40.0, "name": "noised"})
    true, found = (
        answers(open_site(one, 0, 1), request(world, merchant), world.down())[merchant].need(StudentUpdate).arrays
        for one in (plain, noised)
    )
    assert any(bool(value.any()) for value in true.values())
    for name, value in true.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)

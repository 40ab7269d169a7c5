"""Fast equals slow: a cohort's weights are those of the sequential trainer, with DP those of Opacus."""

import dataclasses

import pytest
import torch

from fed_distill.config import TrainingConfig
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.training.cohort.stacking import Stack
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.optimization import Pace
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.training.submodel import completed

STUDENTS = ("two-tower", "lstm", "bert-mini", "distilbert", "mobilebert")
METHODS = ("fedavg", "fedprox", "fedavg_kd", "fedmd", "turns")
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd"},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    "adamw": {"weight_decay": 0.1},
    "clipped": {"optimizer": "sgd", "clip_norm": 0.05},
    "whole tables": {"optimizer": "sgd", "submodel": False},
}
PACE = Pace(1e-2, "linear", 0.1)
DP = ExampleDP(noise_multiplier=0.7, max_grad_norm=0.5)
CASES = [(kind, optimizer) for kind in STUDENTS[:2] for optimizer in OPTIMIZERS]
CASES += [(kind, optimizer) for kind in STUDENTS[2:] for optimizer in ("sgd", "adamw")]


@pytest.fixture(autouse=True)
def nothing_falls_back(caplog):
    """Else the sequential trainer would be compared with itself."""
    yield
    assert not caplog.get_records("call")


def rounds(trainer, learners, plan, count=2):
    """Each learner's losses and whole weights after ``count`` rounds, every one beginning where it ended before."""
    for number in range(1, count + 1):
        learners = [dataclasses.replace(one, randomness=(*one.randomness[:3], number)) for one in learners]
        fitted = {one.name: one for one in trainer.fit(learners, {one.name: plan for one in learners}, PACE)}
        learners = [
            dataclasses.replace(one, weights=completed(fitted[one.name].weights, one.weights)) for one in learners
        ]
    return {one.name: (one.weights, fitted[one.name]) for one in learners}


def assert_equal_training(learners, plan, distance, cohort=3, **config):
    config = TrainingConfig(batch_size=16, **config)
    slow = rounds(SequentialTrainer(config), learners, plan)
    fast = rounds(CohortTrainer(config, cohort=cohort), learners, plan)
    for name, (weights, fitted) in slow.items():
        assert distance(fast[name][0], weights) < 1e-5, name
        assert fast[name][1].loss == pytest.approx(fitted.loss, rel=1e-5)
        for part in ("rows", "counts"):
            sent, expected = getattr(fast[name][1].weights, part), getattr(fitted.weights, part)
            assert sent.keys() == expected.keys()
            assert all(torch.equal(sent[table], rows) for table, rows in expected.items())
    starts = learners[0].weights
    assert all(distance(weights, starts) > 1e-3 for weights, _ in slow.values())


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
@pytest.mark.parametrize(("kind", "optimizer"), CASES)
def test_every_student_and_optimizer(kind, optimizer, privacy, small_student, merchants, plans, distance):
    """AdamW divides by the gradient's size, so that gradients near zero would turn rounding errors into steps: in
    float64 there are hardly any."""
    student = small_student(kind)
    learners = merchants(student.double() if optimizer == "adamw" else student, privacy)
    assert_equal_training(learners, plans.fedavg_kd, distance, **OPTIMIZERS[optimizer])


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
@pytest.mark.parametrize(("kind", "method"), [*(("two-tower", method) for method in METHODS), ("bert-mini", "turns")])
def test_every_plan(kind, method, privacy, small_student, merchants, plans, distance):
    assert_equal_training(merchants(small_student(kind), privacy), getattr(plans, method), distance, optimizer="sgd")


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
def test_dropout_is_each_merchants_own(privacy, small_student, merchants, plans, distance):
    learners = merchants(small_student("bert-mini", dropout=0.3), privacy)
    assert_equal_training(learners, plans.fedavg_kd, distance, optimizer="sgd")
    still = merchants(small_student("bert-mini"), privacy)
    config = TrainingConfig(batch_size=16, optimizer="sgd")
    dropped, kept = (rounds(SequentialTrainer(config), some, plans.fedavg_kd, 1) for some in (learners, still))
    assert all(distance(dropped[name][0], kept[name][0]) > 1e-3 for name in kept)


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
def test_what_is_frozen_stays_and_costs_no_stack(privacy, small_student, merchants, plans, distance):
    student = small_student("bert-mini")
    student.network.bert.embeddings.requires_grad_(False)
    learners = merchants(student, privacy)
    assert_equal_training(learners, plans.fedavg_kd, distance, optimizer="sgd")


@pytest.mark.parametrize("cohort", [1, 2, 8])
def test_the_size_of_cohorts_changes_nothing(cohort, small_student, merchants, plans, distance):
    assert_equal_training(merchants(small_student("lstm")), plans.fedavg_kd, distance, cohort=cohort, optimizer="sgd")


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
def test_each_merchant_may_start_from_weights_of_its_own(privacy, small_student, merchants, plans, distance):
    learners = [
        dataclasses.replace(one, weights={name: value * (1 + 0.1 * number) for name, value in one.weights.items()})
        for number, one in enumerate(merchants(small_student("two-tower"), privacy))
    ]
    assert_equal_training(learners, plans.fedmd, distance, optimizer="sgd")


def test_each_merchant_has_its_own_noise_and_norm(small_student, merchants, plans, distance):
    learners = [
        dataclasses.replace(one, privacy=ExampleDP(0.3 * number, 0.1 + 0.2 * number))
        for number, one in enumerate(merchants(small_student("two-tower")))
    ]
    assert_equal_training(learners, plans.fedavg, distance, optimizer="sgd")


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
@pytest.mark.parametrize("kind", ["two-tower", "bert-mini"])
def test_padded_to_the_same_number_of_examples_as_on_a_gpu(
    kind, privacy, small_student, merchants, plans, distance, monkeypatch
):
    monkeypatch.setattr(Stack, "even", lambda stack, private: True)
    assert_equal_training(merchants(small_student(kind), privacy), plans.turns, distance, optimizer="sgd")

"""Fast equals slow: a cohort's weights are those of the sequential trainer, with DP those of Opacus."""

import dataclasses
import math
from itertools import combinations

import pytest
import torch

from fed_distill.config import TrainerConfig
from fed_distill.distill.losses import hard_labels
from fed_distill.models.freezing import freeze_base
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.training.cohort.stacking import Stack
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.references import predicted
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.training.submodel import completed
from fed_distill.training.trainer import Learner

STUDENTS = ("two-tower", "static", "history-tower", "lstm", "bert-mini", "distilbert", "mobilebert")
METHODS = ("fedavg", "fedprox", "fedavg_kd", "fedmd", "selective", "fd", "fedet", "fedproto", "fedmkt", "turns")
OPTIMIZERS = {
    "sgd": {"optimizer": "sgd"},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    "adamw": {"weight_decay": 0.1},
    "clipped": {"optimizer": "sgd", "clip_norm": 0.05},
    "whole tables": {"optimizer": "sgd", "submodel": False},
}
PACE = Pace(1e-2, "linear", 0.1)
DP = ExampleDP(noise_multiplier=0.7, max_grad_norm=0.5)
CASES = [(kind, optimizer) for kind in STUDENTS[:4] for optimizer in OPTIMIZERS]
CASES += [(kind, optimizer) for kind in STUDENTS[4:] for optimizer in ("sgd", "adamw")]


@pytest.fixture(autouse=True)
def nothing_falls_back(caplog):
    """Else the sequential trainer would be compared with itself."""
    yield
    assert not caplog.get_records("call")


def rounds(trainer, learners, plan, count=1):
    """Each learner's losses and whole weights after ``count`` rounds, every one beginning where it ended before."""
    for number in range(1, count + 1):
        learners = [dataclasses.replace(one, randomness=(*one.randomness[:3], number)) for one in learners]
        fitted = {one.name: one for one in trainer.fit(learners, {one.name: plan for one in learners}, PACE)}
        learners = [
            dataclasses.replace(one, weights=completed(fitted[one.name].weights, one.weights)) for one in learners
        ]
    return {one.name: (one.weights, fitted[one.name]) for one in learners}


def assert_equal_training(learners, plan, distance, cohort=3, count=1, **config):
    config = TrainerConfig(batch_size=16, **config)
    slow = rounds(SequentialTrainer(config), learners, plan, count)
    fast = rounds(CohortTrainer(config, cohort=cohort), learners, plan, count)
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
    count = 2 if kind in STUDENTS[:4] else 1  # a round that begins where another ended, with students that are quick
    assert_equal_training(learners, plans.fedavg_kd, distance, count=count, **OPTIMIZERS[optimizer])


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
@pytest.mark.parametrize(("kind", "method"), [*(("two-tower", method) for method in METHODS), ("bert-mini", "turns")])
def test_every_plan(kind, method, privacy, small_student, merchants, plans, distance):
    assert_equal_training(merchants(small_student(kind), privacy), getattr(plans, method), distance, optimizer="sgd")


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
@pytest.mark.parametrize("method", ["fml", "fedkd"])
def test_pairs_of_students(method, privacy, pair, merchants, plans, distance):
    assert_equal_training(merchants(pair, privacy), getattr(plans, method), distance, optimizer="sgd")


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
@pytest.mark.parametrize(
    ("kind", "method"), [("two-tower", "fedntd"), ("two-tower", "moon"), ("lstm", "moon"), ("bert-mini", "moon")]
)
def test_what_merchants_predict_themselves(kind, method, privacy, small_student, merchants, plans, distance):
    plan = getattr(plans, method)
    learners = []
    for one in merchants(small_student(kind), privacy):
        before = {name: value * 1.1 for name, value in one.weights.items()}
        references = predicted(
            plan.predicted("private"), one.student, one.private, {"global": one.weights, "previous": before}
        )
        learners.append(dataclasses.replace(one, references=references))
    assert_equal_training(learners, plan, distance, optimizer="sgd")


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
@pytest.mark.parametrize("clip_norm", [math.inf, 0.05])
def test_corrections_are_each_merchants_own(clip_norm, privacy, small_student, merchants, plans, distance):
    """They come after clipping and noise, and move rows that no example touches; one merchant has none yet."""
    learners = [
        dataclasses.replace(one, correction={name: 0.1 * number * value for name, value in one.weights.items()})
        for number, one in enumerate(merchants(small_student("two-tower"), privacy))
    ]
    learners[0] = dataclasses.replace(learners[0], correction={})
    assert_equal_training(learners, plans.scaffold, distance, optimizer="sgd", clip_norm=clip_norm)
    config = TrainerConfig(batch_size=16, optimizer="sgd", clip_norm=clip_norm)
    ended = rounds(SequentialTrainer(config), learners[-1:], plans.scaffold, 1)[learners[-1].name][0]
    table = next(iter(learners[-1].student.tables))
    assert (ended[table] != learners[-1].weights[table]).any(dim=1)[1:].all()  # the first row is padding


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
def test_dropout_is_each_merchants_own(privacy, small_student, merchants, plans, distance):
    learners = merchants(small_student("bert-mini", dropout=0.3), privacy)
    assert_equal_training(learners, plans.fedavg_kd, distance, optimizer="sgd")
    still = merchants(small_student("bert-mini"), privacy)
    config = TrainerConfig(batch_size=16, optimizer="sgd")
    dropped, kept = (rounds(SequentialTrainer(config), some, plans.fedavg_kd, 1) for some in (learners, still))
    assert all(distance(dropped[name][0], kept[name][0]) > 1e-3 for name in kept)


@pytest.mark.parametrize("trainer", [CohortTrainer, SequentialTrainer])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_merchants_with_equal_examples_and_other_names_drop_other_units(
    dropout, trainer, small_student, make_examples, distance
):
    """One step over copies of one example, whose order does not count: dropout alone tells the merchants apart."""
    student, examples = small_student("bert-mini", dropout=dropout), make_examples(1).take([0] * 12)
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    encoded, labels = student.encode(examples.texts, examples.pairs), torch.from_numpy(examples.labels)
    learners = [
        Learner(name, student, weights, encoded, labels, encoded, randomness=(7, "arm", name, 1))
        for name in ("acme", "globex", "initech")
    ]
    plan = Plan((Phase(hard_labels(), steps=1),))  # one for all: what merchants train together must be the same
    config = TrainerConfig(batch_size=12, optimizer="sgd")
    fitted = trainer(config).fit(learners, dict.fromkeys(("acme", "globex", "initech"), plan), Pace(0.1, "constant"))
    pairs = list(combinations([one.weights.arrays for one in fitted], 2))
    assert len(pairs) == 3
    if dropout:
        assert all(distance(one, other) > 1e-3 for one, other in pairs)
    else:
        assert all(distance(one, other) < 1e-6 for one, other in pairs)


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


@pytest.mark.parametrize(("kind", "head"), [("two-tower", "head.*"), ("bert-mini", "*classifier*")])
def test_weights_and_rows_have_rates_of_their_own(kind, head, small_student, merchants, plans, distance):
    learners = [
        dataclasses.replace(one, privacy=dataclasses.replace(DP, rate_scales={head: 0.5 + number}, row_rate_power=0.5))
        for number, one in enumerate(merchants(small_student(kind)))
    ]
    assert_equal_training(learners, plans.turns, distance, optimizer="sgd", momentum=0.5)


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
@pytest.mark.parametrize("kind", ["two-tower", "bert-mini"])
def test_padded_to_the_same_number_of_examples_as_on_a_gpu(
    kind, privacy, small_student, merchants, plans, distance, monkeypatch
):
    monkeypatch.setattr(Stack, "even", lambda stack, private: True)
    assert_equal_training(merchants(small_student(kind), privacy), plans.turns, distance, optimizer="sgd")


ADAPTERS = [(kind, "lora_") for kind in ("bert-mini", "distilbert", "mobilebert")] + [("bert-mini", "prefix.")]


@pytest.mark.parametrize("privacy", [None, DP], ids=["plain", "private"])
@pytest.mark.parametrize(("kind", "adapter"), ADAPTERS)
def test_adapters_and_head_alone_are_trained_and_sent(
    kind, adapter, privacy, small_student, merchants, plans, distance
):
    option = {"lora_": "lora_rank", "prefix.": "prefix_length"}[adapter]
    student = freeze_base(small_student(kind, **{option: 2}))
    learners = merchants(student.double(), privacy)
    assert_equal_training(learners, plans.fedavg_kd, distance, optimizer="sgd")
    fitted = next(SequentialTrainer(TrainerConfig()).fit(learners[:1], {"shop 0": plans.fedavg_kd}, Pace(0.05)))
    assert all(adapter in name or "classifier" in name or "pooler" in name for name in fitted.weights.arrays)
    assert any(adapter in name for name in fitted.weights.arrays)
    assert not fitted.weights.rows

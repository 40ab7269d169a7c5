"""Objectives that are not what the trainers may rely on, and merchants whose weights are broken, harm nobody else."""

import dataclasses
import re

import pytest
import torch
import torch.nn.functional as F

from fed_distill.config import TrainerConfig
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.training.trainer import Failure, Fitted

CONFIG = TrainerConfig(batch_size=16, optimizer="sgd")


def centred(outputs, references):
    """Looks at the whole batch."""
    return F.cross_entropy(outputs.logits - outputs.logits.mean(dim=0), references["labels"], reduction="none")


def scalar(outputs, references):
    return F.cross_entropy(outputs.logits, references["labels"])


def own(outputs, references):
    return F.cross_entropy(outputs.logits, references["labels"], reduction="none")


def fit(trainer, learners, objective):
    plan = Plan((Phase(objective, epochs=1),))
    return {one.name: one for one in trainer.fit(learners, {one.name: plan for one in learners}, Pace(0.1))}


def test_a_loss_across_the_batch_sends_merchants_to_the_plain_trainer(small_student, merchants, distance, caplog):
    learners = merchants(small_student("two-tower"))
    fast, slow = (fit(trainer, learners, centred) for trainer in (CohortTrainer(CONFIG), SequentialTrainer(CONFIG)))
    assert all(distance(fast[name].weights.arrays, slow[name].weights.arrays) < 1e-6 for name in slow)
    (record,) = caplog.records
    assert "trained one after another: an objective looks across the batch" in record.message


def test_a_loss_across_the_batch_has_no_dp(small_student, merchants):
    learners = merchants(small_student("two-tower"), ExampleDP(1.0, 1.0))
    for answer in fit(CohortTrainer(CONFIG), learners, centred).values():
        assert isinstance(answer, Failure)
        assert "looks across the batch cannot be trained with DP" in answer.reason


def test_one_loss_for_the_whole_batch_is_refused_with_the_shape_that_was_wanted(small_student, merchants):
    learners = merchants(small_student("two-tower"))
    for trainer in (CohortTrainer, SequentialTrainer):
        for answer in fit(trainer(CONFIG), learners, scalar).values():
            assert isinstance(answer, Failure)
            assert re.search(r"one loss for each example, shape \[\d+\], not \[\]", answer.reason)


@pytest.mark.parametrize("kind", ["two-tower", "lstm"])
def test_broken_weights_of_one_merchant_do_not_reach_the_others(kind, small_student, merchants, distance):
    learners = merchants(small_student(kind))
    broken = {name: torch.full_like(value, torch.nan) for name, value in learners[1].weights.items()}
    mixed = [dataclasses.replace(one, weights=broken) if one.name == "shop 1" else one for one in learners]
    whole, found = (fit(CohortTrainer(CONFIG), some, own) for some in (learners, mixed))
    assert isinstance(found.pop("shop 1"), Failure)
    for name, one in found.items():
        assert isinstance(one, Fitted)
        assert distance(one.weights.arrays, whole[name].weights.arrays) < 1e-5

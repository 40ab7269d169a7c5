"""Training on a merchant's unlabeled examples: pseudo-labels by hand, equal trainers, and no private phase of them."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from fed_distill.config import TrainerConfig
from fed_distill.config.training import UnlabeledConfig
from fed_distill.distill.losses import PSEUDO_LABELS, hard_labels, pseudo_labels, soft_labels
from fed_distill.errors import TrainingError
from fed_distill.merchant.round_task import with_unlabeled
from fed_distill.models.base import Outputs
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan, Predicted
from fed_distill.training.preparation import prepare, public_steps
from fed_distill.training.references import predicted
from fed_distill.training.sequential import SequentialTrainer

CONFIG = TrainerConfig(batch_size=8, optimizer="sgd")
SETTINGS = UnlabeledConfig(epochs=1.5, confidence=0.34)
CLASSES = 3
TOLD = torch.full((40, CLASSES), 1.0 / CLASSES)
LABELLED = Plan(
    (
        Phase(hard_labels(), epochs=1.0),
        Phase(soft_labels(2.0), data="proxy", steps=2, references={"soft_labels": TOLD}),
    )
)
PLAN = with_unlabeled(LABELLED, SETTINGS, "any")


@pytest.fixture
def learners(merchants, small_student, make_examples):
    """Merchants that have twice as many unlabeled examples as labelled ones, with their predictions on these."""
    student = small_student("two-tower")
    found = []
    for number, one in enumerate(merchants(student, sizes=(5, 20, 9))):
        examples = make_examples(2 * one.examples(), seed=50 + number)
        encoded = student.encode(examples.texts, examples.pairs)
        made = predicted(PLAN.predicted("unlabeled"), student, encoded, {"start": one.weights})
        found.append(dataclasses.replace(one, unlabeled=encoded, unlabeled_references=made))
    return found


def test_the_phase_follows_the_labelled_one():
    assert [phase.data for phase in PLAN.phases] == ["private", "unlabeled", "proxy"]
    assert PLAN.phases[1].predicted == {PSEUDO_LABELS: Predicted("start", "probabilities")}
    assert with_unlabeled(LABELLED, UnlabeledConfig(), "any") is LABELLED


@pytest.mark.parametrize(
    "plan", [Plan(LABELLED.phases, pair=True), Plan((Phase(hard_labels(), epochs=1, corrected=True),))]
)
def test_methods_that_it_would_break_refuse_it(plan):
    with pytest.raises(TrainingError, match=r"method any does not support training\.unlabeled"):
        with_unlabeled(plan, SETTINGS, "any")


def test_losses_are_those_of_fixmatch_and_uda_and_0_where_the_prediction_is_unsure():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0], [3.0, 1.0, 1.0]])
    told = torch.tensor([[0.1, 0.8, 0.1], [0.4, 0.35, 0.25], [0.5, 0.25, 0.25]])
    outputs, references = Outputs(logits), {PSEUDO_LABELS: told}
    logs = F.log_softmax(logits, dim=-1)
    hard, soft = pseudo_labels(0.5, soft=False)(outputs, references), pseudo_labels(0.5, soft=True)(outputs, references)
    torch.testing.assert_close(hard, torch.stack([-logs[0, 1], torch.tensor(0.0), -logs[2, 0]]))
    expected = -(told * logs).sum(dim=-1)
    torch.testing.assert_close(soft, torch.stack([expected[0], torch.tensor(0.0), expected[2]]))


def test_a_cohort_trains_as_one_after_another(learners, distance):
    plans = {one.name: PLAN for one in learners}
    slow = {one.name: one for one in SequentialTrainer(CONFIG).fit(learners, plans, Pace(1e-2))}
    fast = {one.name: one for one in CohortTrainer(CONFIG).fit(learners, plans, Pace(1e-2))}
    for name, one in slow.items():
        assert distance(fast[name].weights.arrays, one.weights.arrays) < 1e-5
        assert fast[name].steps == one.steps
        assert len(one.loss) == 3


def test_unlabeled_examples_move_the_student_and_count_as_steps(learners):
    one = learners[1]
    with_them, without = (
        next(iter(SequentialTrainer(CONFIG).fit([one], {one.name: plan}, Pace(1e-2)))) for plan in (PLAN, LABELLED)
    )
    assert with_them.steps - without.steps == public_steps(PLAN, "unlabeled", 40, 8) == 8  # 1.5 epochs of 5 batches
    assert any(not torch.equal(with_them.weights.arrays[name], value) for name, value in without.weights.arrays.items())


def test_they_have_no_private_phase(learners):
    private = dataclasses.replace(learners[0], privacy=ExampleDP(noise_multiplier=1.0, max_grad_norm=1.0))
    with pytest.raises(TrainingError, match="phases on unlabeled examples are not supported with DP"):
        prepare(private, PLAN, CONFIG)


def test_a_merchant_without_them_says_so(learners):
    empty = dataclasses.replace(learners[0], unlabeled={})
    with pytest.raises(TrainingError, match="shop 0 has no unlabeled examples to train on"):
        prepare(empty, PLAN, CONFIG)


def test_predictions_that_were_not_computed_are_named(learners):
    forgotten = dataclasses.replace(learners[0], unlabeled_references={})
    with pytest.raises(TrainingError, match="requires the reference 'pseudo_labels'"):
        prepare(forgotten, PLAN, CONFIG)

"""Smoothed labels, adversarial examples and R-Drop: as their papers and torch have them, and alike on both trainers."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fed_distill.config import AdversarialConfig, TrainerConfig
from fed_distill.distill.losses import cross_entropy, hard_labels
from fed_distill.errors import ConfigError
from fed_distill.models.base import Outputs
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.optimization import Pace
from fed_distill.training.robust import check_robust, divergence, robust_losses, smoothed
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.training.submodel import completed
from fed_distill.training.trainer import Failure

WAYS = {
    "label smoothing": {"label_smoothing": 0.2},
    "fgm": {"adversarial": {"attack": "fgm", "radius": 0.5}},
    "pgd": {"adversarial": {"attack": "pgd", "radius": 0.5, "step_size": 0.2, "steps": 2}},
    "r-drop": {"r_drop": 2.0},
    "all": {"label_smoothing": 0.1, "adversarial": {"attack": "fgm"}, "r_drop": 1.0},
}

CASES = [
    *((kind, way) for kind in ("two-tower", "lstm") for way in ("label smoothing", "fgm", "pgd", "r-drop")),
    *(("bert-mini", way) for way in WAYS),
]


def trained(trainer, learners, plan):
    plans = {one.name: plan for one in learners}
    return {one.name: one for one in trainer.fit(learners, plans, Pace(0.05))}


@pytest.fixture
def batch(small_student, make_examples):
    """A student in float64, a batch of eight examples, and their labels."""
    student, examples = small_student("lstm").double(), make_examples(8)
    encoded = student.encode(examples.texts, examples.pairs)
    return student, dict(encoded), torch.from_numpy(examples.labels)


def test_smoothed_labels_are_those_of_torch():
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 1])
    found = smoothed(hard_labels(), 0.3)(Outputs(logits), {"labels": labels})
    assert_close(found, F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.3))


def test_the_divergence_is_half_of_both_of_torch():
    draw = torch.Generator().manual_seed(1)
    one, other = torch.randn(5, 3, generator=draw), torch.randn(5, 3, generator=draw)
    log_p, log_q = one.log_softmax(-1), other.log_softmax(-1)
    both = [F.kl_div(a, b, reduction="none", log_target=True).sum(-1) for a, b in ((log_p, log_q), (log_q, log_p))]
    assert_close(divergence(one, other), sum(both) / 2)


def test_of_a_pair_both_students_passes_are_to_agree():
    draw = torch.Generator().manual_seed(2)
    own, shared = ([torch.randn(5, 3, generator=draw) for _ in range(2)] for _ in range(2))
    passes = iter([Outputs(own[0], shared=Outputs(shared[0])), Outputs(own[1], shared=Outputs(shared[1]))])
    found = robust_losses(
        SimpleNamespace(tables={}), lambda: next(passes), lambda outputs: torch.zeros(5), TrainerConfig(r_drop=3.0)
    )
    assert_close(found, 1.5 * (divergence(*own) + divergence(*shared)))


@pytest.mark.parametrize(
    "attack",
    [
        AdversarialConfig(attack="fgm", radius=0.7),
        AdversarialConfig(attack="pgd", radius=0.5, step_size=0.2, steps=4),
    ],
    ids=["fgm", "pgd"],
)
def test_an_attack_moves_each_examples_embeddings_along_its_own_gradient(attack, batch):
    """The slow twin takes one example at a time, and puts the moved vectors in the embedding's place itself."""
    student, encoded, labels = batch
    config = TrainerConfig(adversarial=attack)

    def losses(outputs):
        return cross_entropy(outputs.logits, labels)

    found = robust_losses(student, lambda: student(encoded), losses, config)
    steps, length = (1, attack.radius) if attack.attack == "fgm" else (attack.steps, attack.step_size)
    for place in range(len(labels)):
        own, label = {name: values[place : place + 1] for name, values in encoded.items()}, labels[place : place + 1]
        vectors = student.words(own["input_ids"]).detach()
        clean, moved = loss_at(student, own, vectors, label), torch.zeros_like(vectors)
        for _ in range(steps):
            at = (vectors + moved).requires_grad_()
            (gradient,) = torch.autograd.grad(loss_at(student, own, at, label), at)
            moved = moved + length * gradient / gradient.norm()
            moved = moved * min(1.0, attack.radius / float(moved.norm()))
        attacked = loss_at(student, own, vectors + moved, label)
        assert attacked > clean
        assert_close(found[place], (clean + attacked) / 2)


def loss_at(student, encoded, vectors, label):
    hook = student.words.register_forward_hook(lambda module, inputs, output: vectors)
    try:
        return F.cross_entropy(student(encoded).logits, label)
    finally:
        hook.remove()


@pytest.mark.parametrize(("kind", "way"), CASES)
def test_cohorts_train_as_single_merchants_do(kind, way, small_student, merchants, plans, distance):
    student = small_student(kind, dropout=0.2)
    learners = merchants(student.double())
    config = TrainerConfig(batch_size=16, optimizer="sgd", **WAYS[way])
    slow, fast = (
        trained(trainer, learners, plans.fedavg_kd)
        for trainer in (SequentialTrainer(config), CohortTrainer(config, cohort=3))
    )
    plain = trained(SequentialTrainer(TrainerConfig(batch_size=16, optimizer="sgd")), learners, plans.fedavg_kd)
    for one in learners:
        mine, other, without = (completed(some[one.name].weights, one.weights) for some in (slow, fast, plain))
        assert distance(other, mine) < 1e-6
        assert fast[one.name].loss == pytest.approx(slow[one.name].loss)
        assert distance(without, mine) > 1e-4


def test_what_sees_an_example_several_times_is_not_trained_with_dp(small_student, merchants, plans):
    learners = merchants(small_student("lstm"), ExampleDP(1.0, 1.0))
    for trainer in (SequentialTrainer, CohortTrainer):
        found = trained(trainer(TrainerConfig(**WAYS["fgm"])), learners, plans.fedavg)
        assert all(isinstance(one, Failure) and "not supported with DP" in one.reason for one in found.values())


def test_a_student_without_dropout_cannot_be_compared_with_itself(small_student):
    config = TrainerConfig(r_drop=1.0)
    check_robust(small_student("bert-mini", dropout=0.1), config)
    with pytest.raises(ConfigError, match=r"training.r_drop requires dropout, which student .* does not have"):
        check_robust(small_student("lstm"), config)

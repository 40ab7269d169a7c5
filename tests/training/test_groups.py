"""Private phases whose unit is a group of examples: both trainers against a loop over groups, written out by hand.

A group is sampled with all its examples, and its gradient, that of its mean loss, is clipped as a whole (McMahan et
al., ICLR 2018, algorithm 1, with the group as the user).
"""

import dataclasses
import math

import pytest
import torch
from torch.func import functional_call

from fed_distill.config import TrainerConfig
from fed_distill.distill.losses import cross_entropy, hard_labels
from fed_distill.privacy.dp_sgd import ExampleDP
from fed_distill.training import preparation
from fed_distill.training.cohort import planning
from fed_distill.training.cohort.stacking import Stack, skeleton_of
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.cohort.training import Cohort
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.preparation import draw, prepare, private_steps
from fed_distill.training.sequential import SequentialTrainer
from fed_distill.training.submodel import completed

TRAINERS = [SequentialTrainer, CohortTrainer]
STUDENTS = ("two-tower", "lstm", "bert-mini", "distilbert", "mobilebert")
RATE, BATCH = 0.05, 3
SMALLEST = 1e-6
"""What Opacus adds to a norm before it divides."""
SIZES = (15, 4, 9)
PROFILES = {
    "pairs": lambda size: torch.arange(size) // 2,
    "one huge": lambda size: (torch.arange(size) - size // 2).clamp_min(0),
    "scattered": lambda size: torch.arange(size).square() % 7,
    "one group": lambda size: torch.zeros(size, dtype=torch.int64),
}
every_profile = pytest.mark.parametrize("profile", PROFILES)
every_trainer = pytest.mark.parametrize("trainer", TRAINERS)
PLAN = Plan((Phase(hard_labels(), steps=2),))


@pytest.fixture(autouse=True)
def nothing_falls_back(caplog):
    """Else the sequential trainer would be compared with itself."""
    yield
    assert not caplog.get_records("call")


def limited(limit, noise=0.0, **options):
    return ExampleDP(noise_multiplier=noise, max_grad_norm=limit, batch_size=BATCH, **options)


DP = limited(0.5)


@pytest.fixture
def grouped(small_student, merchants):
    """A function: merchants whose examples are grouped as a profile says, each number of a group in use."""

    def make(kind="two-tower", profile="pairs", privacy=DP, sizes=SIZES, **options):
        return [
            dataclasses.replace(one, groups=torch.unique(PROFILES[profile](one.examples()), return_inverse=True)[1])
            for one in merchants(small_student(kind, **options), privacy, sizes)
        ]

    return make


def fit(trainer, learners, plan=PLAN, rate=RATE, **config):
    config = TrainerConfig(**{"optimizer": "sgd", "submodel": False, "batch_size": 16, **config})
    found = trainer(config).fit(learners, {one.name: plan for one in learners}, Pace(rate))
    starts = {one.name: one.weights for one in learners}
    return {one.name: completed(one.weights, starts[one.name]) for one in found}


def group_gradient(learner, weights, rows):
    """Gradient of the mean loss of the examples ``rows``; padding rows have none."""
    encoded = learner.student.collate(learner.private, torch.tensor(rows))
    loss = hard_labels()(functional_call(learner.student, weights, (encoded,)), {"labels": learner.labels[rows]}).mean()
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    gradients = {}
    for (name, value), gradient in zip(weights.items(), found, strict=True):
        gradients[name] = torch.zeros_like(value) if gradient is None else gradient.clone()
        if name in learner.student.tables:
            gradients[name][0] = 0.0
    return gradients


def by_hand(learner, plan=PLAN):
    """Weights after the noiseless steps of ``plan``, and the norms of all drawn groups' gradients."""
    names = [name for name, _ in learner.student.named_parameters()]
    weights, norms = {name: learner.weights[name].clone().requires_grad_() for name in names}, []
    learner.student.train()
    for number, phase in enumerate(plan.phases):
        for index in draw(phase, number, learner, BATCH).batches:
            summed = {name: torch.zeros_like(value) for name, value in weights.items()}
            for group in learner.groups[index].unique().tolist():
                rows = [row for row in range(learner.examples()) if int(learner.groups[row]) == group]
                assert set(rows) <= set(index.tolist())
                gradients = group_gradient(learner, weights, rows)
                norms.append(math.sqrt(sum(float(one.double().square().sum()) for one in gradients.values())))
                for name, gradient in gradients.items():
                    summed[name] += gradient * min(1.0, learner.privacy.max_grad_norm / (norms[-1] + SMALLEST))
            expected = min(BATCH, int(learner.groups.max()) + 1)
            with torch.no_grad():
                for name, value in weights.items():
                    value -= RATE * summed[name] / expected
    return {name: value.detach() for name, value in weights.items()}, norms


@every_profile
@pytest.mark.parametrize("kind", STUDENTS)
def test_both_trainers_equal_a_loop_over_groups(kind, profile, grouped, distance):
    learners = grouped(kind, profile)
    norms = sorted(by_hand(learners[0])[1])
    learners = [dataclasses.replace(one, privacy=limited(norms[len(norms) // 2])) for one in learners]
    expected = {one.name: by_hand(one)[0] for one in learners}
    for trainer in TRAINERS:
        found = fit(trainer, learners)
        for one in learners:
            weights = expected[one.name]
            assert distance({name: found[one.name][name] for name in weights}, weights) < 1e-5, trainer
            assert distance(weights, {name: one.weights[name] for name in weights}) > 1e-4


@every_trainer
def test_the_loop_over_groups_finds_clipping_by_example(trainer, grouped, distance, monkeypatch):
    """A planted fault: the right groups are drawn, and their examples clipped one by one."""
    learners = grouped()
    expected = {one.name: by_hand(one)[0] for one in learners}
    drawn = preparation.draw
    monkeypatch.setattr(preparation, "draw", lambda *given: dataclasses.replace(drawn(*given), groups=None))
    for name, weights in fit(trainer, learners).items():
        assert distance({own: weights[own] for own in expected[name]}, expected[name]) > 1e-3


@pytest.mark.parametrize("kind", STUDENTS)
@every_trainer
def test_groups_of_one_are_examples(trainer, kind, grouped, merchants, small_student):
    privacy = limited(0.5, noise=0.7)
    examples = merchants(small_student(kind), privacy, SIZES)
    groups = [dataclasses.replace(one, groups=torch.arange(one.examples())) for one in examples]
    found, expected = fit(trainer, groups), fit(trainer, examples)
    assert all(torch.equal(found[one][name], value) for one in expected for name, value in expected[one].items())


@pytest.mark.parametrize(
    ("kind", "profile"),
    [*(("two-tower", profile) for profile in PROFILES), *((kind, "scattered") for kind in STUDENTS[1:])],
)
def test_both_trainers_add_the_same_noise(kind, profile, grouped, plans, distance):
    learners = grouped(kind, profile, limited(0.5, noise=0.7))
    fast, slow = (fit(trainer, learners, plans.turns, submodel=True) for trainer in TRAINERS[::-1])
    assert all(distance(fast[name], weights) < 1e-5 for name, weights in slow.items())


@every_profile
@pytest.mark.parametrize("kind", ["two-tower", "mobilebert"])
def test_padded_to_the_same_number_of_examples_as_on_a_gpu(kind, profile, grouped, distance, monkeypatch):
    learners = grouped(kind, profile)
    expected = fit(SequentialTrainer, learners)
    monkeypatch.setattr(Stack, "even", lambda stack, private: True)
    assert all(distance(weights, expected[name]) < 1e-5 for name, weights in fit(CohortTrainer, learners).items())


def test_dropout_of_an_example_does_not_depend_on_its_group(grouped, distance):
    learners = grouped("bert-mini", "scattered", dropout=0.3)
    expected, found = (fit(trainer, learners) for trainer in TRAINERS)
    assert all(distance(found[name], weights) < 1e-5 for name, weights in expected.items())


def test_merchants_of_one_cohort_may_have_examples_or_groups_for_members(grouped, distance):
    learners = grouped()
    learners[1] = dataclasses.replace(learners[1], groups=None)
    expected, found = (fit(trainer, learners) for trainer in TRAINERS)
    assert all(distance(found[name], weights) < 1e-5 for name, weights in expected.items())


@every_profile
@pytest.mark.parametrize("together", [1, 3, 8])
@pytest.mark.parametrize("kind", ["two-tower", "lstm", "bert-mini"])
def test_parts_of_a_batch_hold_whole_groups(kind, together, profile, grouped, distance):
    learners, config = grouped(kind, profile), TrainerConfig(optimizer="sgd", batch_size=16)
    learners.sort(key=lambda one: one.examples(), reverse=True)
    members = [prepare(one, PLAN, config) for one in learners]

    def trained(together):
        cohort = Cohort(members, skeleton_of(learners[0].student), config, torch.device("cpu"), together)
        return {one.name: one for one in cohort.run(Pace(RATE), lambda count: None)}

    whole, parts = trained(100), trained(together)
    assert all(distance(parts[name].weights.arrays, one.weights.arrays) < 1e-5 for name, one in whole.items())


def one_step(trainer, learner, limit):
    """The noiseless sum of clipped gradients of one step that takes every group, as one float64 vector."""
    plan = Plan((Phase(hard_labels(), steps=1),))
    privacy = ExampleDP(0.0, limit, batch_size=learner.members(), examples=learner.members())
    learner = dataclasses.replace(learner, privacy=privacy)
    (found,) = fit(trainer, [learner], plan, rate=float(learner.members())).values()
    return torch.cat([(learner.weights[name] - value).double().flatten() for name, value in found.items()])


def without(learner, group):
    kept = learner.groups != group
    return dataclasses.replace(
        learner,
        private={name: values[kept] for name, values in learner.private.items()},
        labels=learner.labels[kept],
        groups=torch.unique(learner.groups[kept], return_inverse=True)[1],
    )


@pytest.mark.parametrize(("kind", "profile"), [(kind, "one huge") for kind in STUDENTS] + [("two-tower", "scattered")])
@every_trainer
def test_a_group_moves_the_sum_by_no_more_than_its_norm(trainer, kind, profile, grouped):
    """However many examples it has: the whole group is left out."""
    learner, limit = grouped(kind, profile, sizes=(24,))[0], 0.05
    whole = one_step(trainer, learner, limit)
    for group in range(3):
        moved = float((whole - one_step(trainer, without(learner, group), limit)).norm())
        assert 0.98 * limit < moved <= limit * (1 + 1e-4)


@every_trainer
def test_a_group_with_an_example_that_is_not_finite_counts_as_none(trainer, grouped, distance):
    def objective(outputs, references):
        losses = cross_entropy(outputs.logits, references["labels"] % 10)
        return losses * torch.where(references["labels"] < 10, 1.0, torch.nan)

    learner = grouped(profile="one huge", sizes=(12,))[0]
    privacy = ExampleDP(0.0, 0.5, batch_size=7, examples=7)
    labels = learner.labels + 10 * (torch.arange(12) == 2)
    broken = dataclasses.replace(learner, labels=labels, privacy=privacy)
    healthy = dataclasses.replace(without(learner, 0), privacy=privacy)
    plan = Plan((Phase(objective, steps=2),))
    (found,), (expected,) = (fit(trainer, [one], plan).values() for one in (broken, healthy))
    assert distance(found, expected) < 1e-5


def test_groups_are_sampled_whole_at_the_rate_of_the_batch_size_to_the_groups(grouped):
    phase = Phase(hard_labels(), steps=400)
    (learner,) = grouped(profile="scattered", sizes=(31,))
    segment = draw(phase, 0, learner, 99)
    groups = learner.members()
    assert groups == 4 and segment.expected_batch == BATCH
    taken = torch.zeros(groups)
    for index in segment.batches:
        drawn = learner.groups[index].unique()
        assert index.tolist() == torch.isin(learner.groups, drawn).nonzero().flatten().tolist()
        taken[drawn] += 1
    deviation = math.sqrt(400 * 0.75 * 0.25)
    assert bool(((taken - 400 * BATCH / groups).abs() < 4 * deviation).all())


def test_epochs_are_of_groups(grouped):
    phase = Phase(hard_labels(), epochs=2)
    (learner,) = grouped(profile="pairs", sizes=(31,))
    assert len(draw(phase, 0, learner, 99).batches) == private_steps(Plan((phase,)), 16, BATCH) == 2 * 6
    noised = dataclasses.replace(learner, privacy=limited(0.5, examples=30))
    assert len(draw(phase, 0, noised, 99).batches) == 2 * 10


@pytest.mark.parametrize("groups", [torch.arange(4), torch.tensor([0, 0, 2, 2, 3]), torch.zeros(5), -torch.arange(5)])
def test_groups_are_numbered_from_0_without_gaps(groups, grouped):
    (learner,) = grouped(sizes=(5,))
    with pytest.raises(ValueError, match=r"shop 0: groups must be int64 numbers 0\.\.n-1, each in use, one for each"):
        dataclasses.replace(learner, groups=groups)


def test_the_trial_of_a_stacked_student_proves_norms_of_groups(grouped, monkeypatch):
    """A planted fault: the stacked model takes each example for a group of its own."""
    (learner,) = grouped(sizes=(12,))
    member = prepare(learner, PLAN, TrainerConfig(batch_size=8))
    planning.examined(member, torch.device("cpu"), 1)
    make = planning.Stack.__init__

    def forgetful(stack, *given):
        make(stack, *given)
        begin = stack.layout.set
        stack.layout.set = lambda sizes, owner, member=None: begin(sizes, owner, torch.arange(len(owner)))

    monkeypatch.setattr(planning.Stack, "__init__", forgetful)
    with pytest.raises(planning.CannotStack, match="per-example gradients differ"):
        planning.examined(member, torch.device("cpu"), 1)

"""Noise against the flat draw of each merchant, and what one example can contribute."""

import dataclasses
import math

import pytest
import torch

from fed_distill import seeds
from fed_distill.config import TrainerConfig
from fed_distill.data.tasks import RELEVANCE
from fed_distill.distill.losses import hard_labels
from fed_distill.models import build_student
from fed_distill.models.precision import autocast
from fed_distill.privacy.dp_sgd import ExampleDP, grid
from fed_distill.seeds import Keystream
from fed_distill.training.cohort.batches import PhaseData
from fed_distill.training.cohort.layers import CannotStack
from fed_distill.training.cohort.private import Noise, clipped_sums, example_flows
from fed_distill.training.cohort.trainer import CohortTrainer
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.submodel import completed
from fed_distill.training.trainer import Learner

DP = ExampleDP(noise_multiplier=0.8, max_grad_norm=0.6)


def noised(members, stack, number=0, steps=2):
    """Noise of each step on sums that are 0."""
    noise = Noise(stack, members, [member.segments[number] for member in members], number)
    found = []
    for _ in range(steps):
        sums = {name: torch.zeros_like(value) for name, value in stack.stacked.items()}
        noise.add(sums, len(members))
        found.append(sums)
    return found


def assert_rounded(found, drawn):
    torch.testing.assert_close(found.double(), drawn, rtol=0.0, atol=0.5001 * grid(0.48))


def of_merchant(stack, sums, merchant):
    return {name: values[stack.span(name, merchant, merchant + 1)] for name, values in sums.items()}


def test_each_merchants_noise_is_the_flat_draw_over_its_trained_entries(small_student, merchants, plans, stack_of):
    learners = [
        dataclasses.replace(one, proxy={name: values[:2] for name, values in one.proxy.items()})
        for one in merchants(small_student("two-tower"), DP, (20, 5, 9))
    ]
    members, stack = stack_of(learners, Plan(plans.fedavg.phases * 2))
    for number in (0, 1):
        steps = noised(members, stack, number)
        for merchant, member in enumerate(members):
            stream = Keystream(*member.learner.randomness, "noise", number)
            sizes = {
                name: int(member.submodel.trained[name].sum()) * value.shape[1]
                if name in member.submodel.trained
                else value.numel()
                for name, value in member.learner.weights.items()
            }
            for sums in steps:
                drawn = 0.48 * stream.normal(sum(sizes.values()))
                flat = dict(zip(sizes, drawn.split([*sizes.values()]), strict=True))
                for name, found in of_merchant(stack, sums, merchant).items():
                    if name in stack.tables:
                        trained = member.submodel.trained[name][1:]
                        assert_rounded(found[trained].flatten(), flat[name])
                        assert not found[~trained].any()
                        assert trained.any() and not trained.all()
                    else:
                        assert_rounded(found.flatten(), flat[name])
                assert not any(sums[table][0].any() for table in stack.tables)


def test_noise_does_not_depend_on_who_else_is_in_the_cohort(small_student, merchants, plans, stack_of):
    learners = merchants(small_student("two-tower"), DP, (20, 5, 9))
    together = noised(*stack_of(learners, plans.fedavg))
    turned = noised(*stack_of(learners[::-1], plans.fedavg))
    _, stack = stack_of(learners, plans.fedavg)
    _, turned_stack = stack_of(learners[::-1], plans.fedavg)
    for place, learner in enumerate(learners):
        alone = noised(*(own := stack_of([learner], plans.fedavg)))
        for step in range(2):
            expected = of_merchant(own[1], alone[step], 0)
            for found in (
                of_merchant(stack, together[step], place),
                of_merchant(turned_stack, turned[step], 2 - place),
            ):
                assert all(torch.equal(found[name], value) for name, value in expected.items())


def contributions(stack, members, precision, even):
    """What each drawn example adds to its merchant's sum, as one vector: ``[columns][merchants][entries]``; and the
    mask, ``[merchants, columns]``."""
    student = members[0].learner.student
    data = PhaseData([member.segments[0] for member in members], stack.device)
    batch = data.batch(0, len(members), even)
    stack.activate(len(members))
    stack.layout.set(batch.sizes, batch.owner)
    largest = torch.tensor([member.learner.privacy.max_grad_norm for member in members])
    counts = torch.zeros(len(members), max(batch.sizes))
    counts[batch.owner, batch.column] = batch.mask
    found = []
    for place in range(max(batch.sizes)):
        with stack.protected():
            with autocast(precision, stack.device):
                outputs = stack.model(stack.renumbered(student.collate(data.encoded, batch.index), batch.owner))
            losses = data.phase.objective(outputs.to(stack.dtype), data.taken(batch.index))
            mask = batch.mask * (batch.column == place)
            sums = clipped_sums(stack, example_flows(stack, losses, mask), mask, largest)
        found.append(
            [
                torch.cat([value.flatten() for value in of_merchant(stack, sums, merchant).values()]).double()
                for merchant in range(len(members))
            ]
        )
    return found, counts


LAYOUTS = [(kind, even) for kind in ("two-tower", "mobilebert") for even in (False, True)]
LAYOUTS += [("lstm", True), ("bert-mini", False)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "even"), LAYOUTS)
def test_no_example_contributes_more_than_its_norm(kind, even, precision, small_student, merchants, plans, stack_of):
    limits = (0.05, 0.5, 50.0)
    learners = [
        merchants(small_student(kind), ExampleDP(1.0, limit), (20, 5, 9))[place] for place, limit in enumerate(limits)
    ]
    members, stack = stack_of(learners, plans.fedavg)
    assert even or not stack.even(private=True)
    found, counts = contributions(stack, members, precision, even)
    assert counts.sum() < counts.numel()
    for place, of_merchants in enumerate(found):
        for merchant, (vector, limit) in enumerate(zip(of_merchants, limits, strict=True)):
            norm = float(vector.norm())
            if counts[merchant, place] == 0.0:
                assert norm == 0.0
                continue
            assert norm <= limit * (1 + 1e-5)
            if merchant == 0:
                assert norm > limit * (1 - 1e-3)
            if merchant == 2:
                assert 0.05 < norm < limit / 2


@pytest.mark.parametrize("even", [False, True])
def test_a_layer_that_cannot_tell_examples_apart_is_refused(even, words, merchants, plans, stack_of):
    """One of it alone would otherwise be clipped place by place, and an example could add more than its norm."""
    words_class = type(words())

    class Flattened(words_class):
        def pooled(self, ids):
            flat = self.hidden(self.words(ids).flatten(0, 1))
            return flat.view(*ids.shape, -1).mean(dim=1)

        def middle(self, values):
            return values

    members, stack = stack_of(merchants(words(Flattened), DP, (5, 5)), plans.fedavg)
    with pytest.raises(CannotStack, match=r"a Linear is called with \d+ inputs for \d+ examples"):
        contributions(stack, members, "float32", even)


@pytest.mark.parametrize("seed", range(12))
def test_weights_that_a_server_made_for_it_let_no_example_go_unclipped(seed):
    """Both texts of a pair share one word, and what flows back to them all but cancels there: the norm as computed is
    rounding, and the gradient of the importance, a million times it, must not leave unclipped."""
    width = 8
    with seeds.scope(0, "student"):
        student = build_student("two-tower", {"rows": 4096, "width": width, "head_width": 4}, RELEVANCE)
    private = student.encode(("apple phone",), ("apple kettle",))
    shared = sorted(set(private["text_ids"][0].tolist()) & set(private["pair_ids"][0].tolist()) - {0})
    drawn = torch.Generator().manual_seed(seed)
    weights = {name: torch.zeros_like(value) for name, value in student.state_dict().items()}
    row = torch.randn(width, generator=drawn)
    weights["bag.table"] = torch.randn(4096, width, generator=drawn) * 1e-10
    weights["bag.table"][shared] = 0.0
    weights["bag.table"][shared[0]] = 1e-9 * row / row.norm()
    weights["bag.importance"] += 10.0 + math.log(1e-3)
    weights["bag.importance"][shared] = -60.0
    weights["bag.importance"][shared[0]] = 10.0
    weights["head.0.weight"][0, width : 2 * width] = torch.randn(width, generator=drawn)
    weights["head.0.bias"][0] = 0.01
    weights["head.2.weight"][0, 0] = 1e-3
    weights["head.2.bias"][1] = 4.0
    privacy = ExampleDP(noise_multiplier=0.0, max_grad_norm=1.0, batch_size=1, examples=1)
    trainer, plan = CohortTrainer(TrainerConfig(optimizer="sgd", batch_size=1)), Plan((Phase(hard_labels(), steps=1),))

    def moved(start):
        proxy = student.encode(("apple",), ("red",))
        given = {"private": private, "labels": torch.tensor([1]), "proxy": proxy, "privacy": privacy}
        learner = Learner("shop", student, start, randomness=(7, "arm", "shop", 1), **given)
        (found,) = trainer.fit([learner], {"shop": plan}, Pace(1.0))
        after = completed(found.weights, start)
        return math.sqrt(sum(float((after[name].double() - value).square().sum()) for name, value in start.items()))

    honest = {name: value.clone() for name, value in student.state_dict().items()}
    assert moved(honest) == pytest.approx(1.0, abs=1e-4)  # a round like any other, in which the trainers are compared
    assert moved(weights) <= 1.001

"""Noise against the flat draw of each merchant, and what one example can contribute."""

import dataclasses

import pytest
import torch

from fed_distill.config import TrainingConfig
from fed_distill.privacy.dp_sgd import ExampleDP, gaussian
from fed_distill.runtime import seeds
from fed_distill.training.cohort.batches import PhaseData
from fed_distill.training.cohort.layers import CannotStack
from fed_distill.training.cohort.private import Noise, clipped_sums, example_flows
from fed_distill.training.cohort.training import autocast
from fed_distill.training.plan import Plan

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
            generator = seeds.torch_stream(*member.learner.randomness, "noise", number)
            sizes = {
                name: int(member.submodel.trained[name].sum()) * value.shape[1]
                if name in member.submodel.trained
                else value.numel()
                for name, value in member.learner.weights.items()
            }
            for sums in steps:
                flat = dict(
                    zip(sizes, gaussian(sum(sizes.values()), 0.48, generator).split([*sizes.values()]), strict=True)
                )
                for name, found in of_merchant(stack, sums, merchant).items():
                    if name in stack.tables:
                        trained = member.submodel.trained[name][1:]
                        assert torch.equal(found[trained].flatten(), flat[name])
                        assert not found[~trained].any()
                        assert trained.any() and not trained.all()
                    else:
                        assert torch.equal(found.flatten(), flat[name])
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
            with autocast(TrainingConfig(precision=precision), stack.device):
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

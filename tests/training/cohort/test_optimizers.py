"""A stacked optimizer against one of torch's for each merchant."""

import dataclasses

import pytest
import torch

from fed_distill import seeds
from fed_distill.config import TrainerConfig
from fed_distill.training.cohort.optimizers import StackedOptimizer, clipped
from fed_distill.training.optimization import build_optimizer

CONFIGS = {
    "sgd": {"optimizer": "sgd"},
    "decay": {"optimizer": "sgd", "weight_decay": 0.2},
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.2},
    "adamw": {"weight_decay": 0.2},
}
SIZES = (20, 5, 9)


@pytest.fixture
def members_and_stack(words, merchants, plans, stack_of):
    learners = [
        dataclasses.replace(one, weights={name: value * (1 + number) for name, value in one.weights.items()})
        for number, one in enumerate(merchants(words(), sizes=SIZES))
    ]
    return stack_of(learners, plans.fedavg)


def gradients_of(stack, merchants, seed, transposed=False):
    """Stacked gradients of the first ``merchants``, every entry drawn, padding rows 0; or not contiguous in memory."""
    draw = seeds.torch_stream(seed)
    found = {}
    for name, value in stack.stacked.items():
        values = torch.randn(value[: stack.end(name, merchants)].shape, generator=draw)
        if name in stack.tables:
            values[0] = 0.0
        if transposed and values.dim() > 1:
            values = values.transpose(-1, -2).contiguous().transpose(-1, -2)
            assert not values.is_contiguous() or 1 in values.shape
        found[name] = values
    return found


def of_merchant(stack, name, values, merchant):
    if name not in stack.tables:
        return values[merchant]
    return torch.cat([values[:1], values[stack.span(name, merchant, merchant + 1)]])


class Twins:
    """A narrowed student and an optimizer of torch's for each merchant."""

    def __init__(self, members, config):
        self.models, self.optimizers = [], []
        for member in members:
            member.learner.student.load_state_dict(member.learner.weights)
            self.models.append(member.learner.student.narrowed(member.submodel.rows))
            self.optimizers.append(build_optimizer(self.models[-1].named_parameters(), self.models[-1].tables, config))

    def step(self, stack, gradients, rates):
        for merchant, rate in enumerate(rates):
            for name, value in self.models[merchant].named_parameters():
                found = of_merchant(stack, name, gradients[name], merchant) if name in gradients else None
                value.grad = None if found is None else found.contiguous()
            for group in self.optimizers[merchant].param_groups:
                group["lr"] = rate
            self.optimizers[merchant].step()

    def check(self, stack):
        for merchant, model in enumerate(self.models):
            for name, value in model.named_parameters():
                found = of_merchant(stack, name, stack.stacked[name], merchant)
                torch.testing.assert_close(found, value.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("transposed", [False, True], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("name", CONFIGS)
def test_merchants_step_as_each_with_torchs_own(name, transposed, members_and_stack):
    """Two phases: merchants leave the first one after another, so that their step counts differ in the second."""
    members, stack = members_and_stack
    config = TrainerConfig(**CONFIGS[name])
    optimizer, twins = StackedOptimizer(stack, config, list(members[0].learner.student.tables)), Twins(members, config)
    for number, active in enumerate((3, 3, 2, 1, 1, 3, 3)):
        rates = [0.1, 0.1, 0.05][:active] if number % 2 else [0.2] * active
        gradients = gradients_of(stack, active, number, transposed)
        optimizer.step(gradients, rates)
        twins.step(stack, gradients, rates)
        twins.check(stack)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_weight_without_a_gradient_stays_and_does_not_count_the_step(name, members_and_stack):
    members, stack = members_and_stack
    config = TrainerConfig(**CONFIGS[name])
    optimizer, twins = StackedOptimizer(stack, config, list(members[0].learner.student.tables)), Twins(members, config)
    for number, (active, absent) in enumerate(
        [(3, ()), (2, ("hidden.bias", "head.bias")), (3, ("hidden.bias",)), (1, ("words.weight",)), (3, ())]
    ):
        gradients = {key: value for key, value in gradients_of(stack, active, number).items() if key not in absent}
        before = {key: stack.stacked[key].clone() for key in absent}
        optimizer.step(gradients, [0.1] * active)
        twins.step(stack, gradients, [0.1] * active)
        twins.check(stack)
        assert all(torch.equal(stack.stacked[key], value) for key, value in before.items())


def test_merchants_that_are_done_do_not_move(members_and_stack):
    members, stack = members_and_stack
    optimizer = StackedOptimizer(stack, TrainerConfig(weight_decay=0.5), list(members[0].learner.student.tables))

    def last():
        return {name: of_merchant(stack, name, values, 2).clone() for name, values in stack.stacked.items()}

    before = last()
    optimizer.step(gradients_of(stack, 3, 0), [0.1] * 3)
    moved = last()
    optimizer.step(gradients_of(stack, 2, 1), [0.1] * 2)
    assert all(not torch.equal(moved[name], value) for name, value in before.items())
    assert all(torch.equal(moved[name], value) for name, value in last().items())


def test_clipping_is_torchs_for_each_merchant(members_and_stack):
    members, stack = members_and_stack
    gradients = gradients_of(stack, 3, 0)
    for name, scale in (("head.bias", 100.0), ("words.weight", 1e-3)):
        gradients[name] = gradients[name] * scale
    gradients["head.bias"][1] = 0.0
    gradients["hidden.weight"][1] *= 1e-3
    gradients["head.weight"][1] *= 1e-3
    gradients["hidden.bias"][1] *= 1e-3
    before = {name: value.clone() for name, value in gradients.items()}
    found = clipped(stack, gradients, 3, 0.7)
    norms = []
    for merchant, member in enumerate(members):
        model = member.learner.student.narrowed(member.submodel.rows)
        for name, value in model.named_parameters():
            value.grad = of_merchant(stack, name, before[name], merchant).clone()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.7)))
        for name, value in model.named_parameters():
            torch.testing.assert_close(of_merchant(stack, name, found[name], merchant), value.grad)
    assert min(norms) < 0.7 < max(norms)
    assert all(torch.equal(gradients[name], value) for name, value in before.items())


def test_one_gradient_of_two_weights_is_clipped_once(members_and_stack):
    """Autograd gives the biases of an LSTM, which are added, one tensor for both."""
    _, stack = members_and_stack
    gradient = torch.full((3, 6), 2.0)
    found = clipped(stack, {"hidden.bias": gradient, "hidden.other": gradient}, 3, 1.0)
    for value in found.values():
        torch.testing.assert_close(value, torch.full((3, 6), 1 / 12**0.5))

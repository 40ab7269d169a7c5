"""The weighted bag against loops over single features and examples."""

import pytest
import torch
from opacus import GradSampleModule
from torch import nn

from fed_distill import seeds
from fed_distill.models.bag import WeightedBag
from fed_distill.training import private_steps  # tells Opacus how a bag's gradients are taken

IDS = torch.tensor([[3, 5, 3, 3], [7, 0, 0, 0], [0, 0, 0, 0], [1, 7, 5, 0]], dtype=torch.int32)
OTHER = torch.tensor([[5, 9], [7, 7], [2, 0], [0, 0]], dtype=torch.int32)


@pytest.fixture
def bag():
    with seeds.scope(0, "bag"):
        bag = WeightedBag(10, 4)
        with torch.no_grad():
            bag.importance.normal_()
    return bag


def summed(table, importance, ids):
    total = torch.zeros(table.shape[1])
    for row in ids.tolist():
        if row:
            total = total + importance[row, 0].exp() * table[row]
    return total


def test_a_bag_is_the_sum_of_its_rows_weighted_by_importance(bag):
    expected = torch.stack([summed(bag.table, bag.importance, line) for line in IDS])
    torch.testing.assert_close(bag(IDS), expected)
    torch.testing.assert_close(bag(IDS.long()), expected)


def test_padding_counts_for_nothing_and_gets_no_gradient(bag):
    with torch.no_grad():
        bag.table[0], bag.importance[0] = 9.0, 9.0
    assert not bag(IDS)[2].any()
    bag(IDS).square().sum().backward()
    assert not bag.table.grad[0].any() and not bag.importance.grad[0].any()
    assert bag.table.grad[3].any() and bag.importance.grad[3].any()


def test_a_fresh_bag_holds_the_numbers_that_embeddings_of_the_same_seed_hold():
    with seeds.scope(5):
        bag, after = WeightedBag(30, 8, 0.1), torch.rand(3)
    with seeds.scope(5):
        table, _, expected = nn.Embedding(30, 8, padding_idx=0), nn.Embedding(30, 1, padding_idx=0), torch.rand(3)
    torch.testing.assert_close(bag.table.detach(), table.weight.detach() * 0.1, rtol=0, atol=0)
    assert not bag.importance.any()
    assert torch.equal(after, expected)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_opacus_gradients_of_examples_equal_those_of_a_loop(bag):
    assert WeightedBag in GradSampleModule.GRAD_SAMPLERS and private_steps.register_grad_sampler
    direction = torch.linspace(-1.0, 1.0, 4)

    def loss(first, second):
        return (first * second).sum(dim=-1) + (first @ direction).square()

    hooked = GradSampleModule(bag, loss_reduction="sum")
    loss(hooked(IDS), hooked(OTHER)).sum().backward()
    for example in range(len(IDS)):
        table = bag.table.detach().clone().requires_grad_()
        importance = bag.importance.detach().clone().requires_grad_()
        first, second = summed(table, importance, IDS[example]), summed(table, importance, OTHER[example])
        gradients = torch.autograd.grad(loss(first, second), (table, importance), allow_unused=True)
        for weight, gradient in zip((bag.table, bag.importance), gradients, strict=True):
            expected = torch.zeros_like(weight) if gradient is None else gradient
            torch.testing.assert_close(weight.grad_sample[example], expected, rtol=1e-5, atol=1e-6)

"""The mean of an objective over an uncertain label, against sums by hand and gradients in closed form."""

import pytest
import torch

from fed_distill.distill.losses import hard_labels
from fed_distill.models.base import Outputs
from fed_distill.training.uncertain_labels import LABEL_PROBABILITIES, expected


def test_cross_entropy_becomes_that_of_the_probabilities():
    logits, target = (
        torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, -3.0]]),
        torch.tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]]),
    )
    references = {"labels": torch.tensor([2, 2]), LABEL_PROBABILITIES: target}
    found = expected(hard_labels())(Outputs(logits), references)
    by_hand = [
        -sum(q * torch.log(torch.exp(z) / torch.exp(row).sum()) for q, z in zip(each, row, strict=True))
        for row, each in zip(logits, target, strict=True)
    ]
    torch.testing.assert_close(found, torch.stack(by_hand))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 100.0])
def test_gradient_is_that_of_predictions_at_the_temperature(temperature):
    logits = torch.tensor([[4.0, -2.0], [0.3, 0.1], [-9.0, 5.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.3, 0.7], [0.5, 0.5], [0.9, 0.1]], dtype=torch.float64)
    references = {"labels": torch.zeros(3, dtype=torch.int64), LABEL_PROBABILITIES: target}
    expected(hard_labels(), temperature)(Outputs(logits), references).sum().backward()
    predicted = 1.0 / (1.0 + torch.exp((logits[:, 1] - logits[:, 0]) / temperature))
    torch.testing.assert_close(logits.grad[:, 0], (predicted - target[:, 0]).detach())
    torch.testing.assert_close(logits.grad.sum(dim=1), torch.zeros(3, dtype=torch.float64))


def test_an_error_of_a_sure_student_is_felt_only_at_a_high_temperature():
    """A label of which the student is sure and wrong (1 %), randomized at epsilon 1. The mean gradient
    over both releases is more than ten times as large at temperature 16, where no label is thought to be sure."""
    odds, kept = torch.e, torch.e / (torch.e + 1.0)
    logit = torch.log(torch.tensor(99.0, dtype=torch.float64))

    def mean_gradient(temperature):
        logits = torch.stack([logit, torch.zeros_like(logit)]).expand(2, 2).clone().requires_grad_()
        prior = torch.softmax(logits.detach()[0] / temperature, dim=0)
        target = torch.stack([prior * torch.tensor([1.0, odds]), prior * torch.tensor([odds, 1.0])])
        target = target / target.sum(dim=1, keepdim=True)
        references = {"labels": torch.zeros(2, dtype=torch.int64), LABEL_PROBABILITIES: target}
        losses = expected(hard_labels(), temperature)(Outputs(logits), references)
        (losses * torch.tensor([kept, 1.0 - kept])).sum().backward()  # class 1 is the true one
        return logits.grad[:, 1].sum().item()

    assert mean_gradient(1.0) < 0.0
    assert mean_gradient(16.0) / mean_gradient(1.0) > 10.0

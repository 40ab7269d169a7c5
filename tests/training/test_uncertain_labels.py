"""The mean of an objective over an uncertain label, against sums by hand and gradients in closed form."""

import pytest
import torch

from fed_distill.distill.losses import hard_labels
from fed_distill.models.base import Outputs
from fed_distill.training.uncertain_labels import LABEL_PROBABILITIES, LIKELIHOOD, expected, of_released


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


@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_the_likelihood_of_a_release_is_a_sum_over_true_labels(temperature):
    """By hand: the chance that the student's label, drawn at this temperature, would have been released so."""
    logits = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, -3.0]], dtype=torch.float64, requires_grad=True)
    known = torch.tensor([[0.7, 0.15, 0.15], [0.5, 0.3, 0.3]], dtype=torch.float64)
    losses = of_released(temperature)(Outputs(logits), {LIKELIHOOD: known})
    losses.sum().backward()
    for row in range(2):
        powers = [torch.exp(logit / temperature).item() for logit in logits[row]]
        predicted = [power / sum(powers) for power in powers]
        joint = [p * chance.item() for p, chance in zip(predicted, known[row], strict=True)]
        assert losses[row].item() == pytest.approx(-temperature * torch.tensor(sum(joint)).log().item())
        gradient = [p - one / sum(joint) for p, one in zip(predicted, joint, strict=True)]
        torch.testing.assert_close(logits.grad[row], torch.tensor(gradient, dtype=torch.float64))


def test_its_gradient_is_that_of_expected_at_the_start_and_without_noise_it_is_cross_entropy():
    logits, truth = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 1, 1, 2])
    known = torch.full((5, 4), 0.1).scatter_(1, truth.unsqueeze(1), 0.7)
    one, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    of_released(8.0)(Outputs(one), {LIKELIHOOD: known}).sum().backward()
    posterior = (logits / 8.0).softmax(dim=1) * known
    references = {"labels": truth, LABEL_PROBABILITIES: posterior / posterior.sum(dim=1, keepdim=True)}
    expected(hard_labels(), 8.0)(Outputs(other), references).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
    sure = {LIKELIHOOD: torch.nn.functional.one_hot(truth, 4).double()}
    found = of_released()(Outputs(logits), sure)
    torch.testing.assert_close(found, torch.nn.functional.cross_entropy(logits, truth, reduction="none"))

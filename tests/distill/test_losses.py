"""Losses against torch's own and against the formulas of their papers."""

import torch
import torch.nn.functional as F

from fed_distill.distill.losses import (
    cross_entropy,
    distillation_kl,
    hard_labels,
    soft_cross_entropy,
    soft_labels,
    soften,
)
from fed_distill.models.base import Outputs

DRAW = torch.Generator().manual_seed(0)
LOGITS = torch.randn(6, 4, generator=DRAW) * 3
TEACHER = torch.randn(6, 4, generator=DRAW) * 3
LABELS = torch.tensor([0, 3, 2, 1, 1, 0])


def test_cross_entropy_is_minus_the_log_probability_of_the_label():
    expected = torch.stack(
        [-torch.log(row.exp()[label] / row.exp().sum()) for row, label in zip(LOGITS, LABELS, strict=True)]
    )
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS), expected)
    torch.testing.assert_close(hard_labels()(Outputs(LOGITS), {"labels": LABELS}), expected)


def test_soft_cross_entropy_is_that_of_torch_and_at_a_certain_label_the_hard_one():
    probabilities = TEACHER.softmax(dim=-1)
    torch.testing.assert_close(
        soft_cross_entropy(LOGITS, probabilities), F.cross_entropy(LOGITS, probabilities, reduction="none")
    )
    torch.testing.assert_close(soft_cross_entropy(LOGITS, F.one_hot(LABELS, 4).float()), cross_entropy(LOGITS, LABELS))


def test_softened_probabilities_are_the_softmax_of_the_logits_over_the_temperature():
    for temperature in (0.5, 1.0, 2.0, 10.0):
        torch.testing.assert_close(
            soften(TEACHER.softmax(dim=-1), temperature), (TEACHER / temperature).softmax(dim=-1)
        )
    certain = torch.tensor([[1.0, 0.0, 0.0]])
    torch.testing.assert_close(soften(certain, 2.0), certain)


def test_distillation_is_torchs_divergence_times_the_squared_temperature():
    for temperature in (1.0, 2.0, 5.0):
        p, log_q = (TEACHER / temperature).softmax(dim=-1), (LOGITS / temperature).log_softmax(dim=-1)
        expected = temperature**2 * F.kl_div(log_q, p, reduction="none").sum(dim=-1)
        torch.testing.assert_close(distillation_kl(LOGITS, p, temperature), expected)
        objective = soft_labels(temperature)(Outputs(LOGITS), {"soft_labels": TEACHER.softmax(dim=-1)})
        torch.testing.assert_close(objective, expected, rtol=1e-4, atol=1e-5)


def test_distillation_is_never_negative_and_zero_for_the_teachers_own_logits():
    p = (TEACHER / 2).softmax(dim=-1)
    assert float(distillation_kl(LOGITS, p, 2.0).min()) > 0
    torch.testing.assert_close(distillation_kl(TEACHER + 7.0, p, 2.0), torch.zeros(6), atol=1e-5, rtol=0)


def test_certain_soft_labels_have_a_finite_loss_and_gradient():
    logits = LOGITS.clone().requires_grad_()
    loss = soft_labels(2.0)(Outputs(logits), {"soft_labels": F.one_hot(LABELS, 4).float()})
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()

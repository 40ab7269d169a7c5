"""Learning rates over time, against transformers' schedules and worked values."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from fed_distill.config import TrainingConfig
from fed_distill.training.optimization import Pace, build_optimizer, schedule_factor


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)],
)
def test_schedules_equal_those_of_transformers(schedule, reference):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    expected = reference(optimizer, num_warmup_steps=20, num_training_steps=100)
    for step in range(100):
        assert schedule_factor(schedule, 0.2, step / 100) == pytest.approx(expected.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        expected.step()


def test_a_constant_rate_stays_after_the_warm_up():
    assert [schedule_factor("constant", 0.5, done) for done in (0.0, 0.25, 0.5, 1.0)] == [0.0, 0.5, 1.0, 1.0]


def test_every_step_of_a_pace_has_a_positive_rate():
    rates = [Pace(2.0, "linear", 0.5).at(step, 4) for step in range(4)]
    assert rates == pytest.approx([0.5, 1.5, 1.5, 0.5])


def test_momentum_adds_a_share_of_the_last_step():
    model = torch.nn.Linear(1, 1, bias=False)
    start = float(model.weight.detach())
    optimizer = build_optimizer(model, (), TrainingConfig(optimizer="sgd", momentum=0.5), 0.1)
    for gradient in (1.0, 2.0, -1.0):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
    assert float(model.weight.detach()) == pytest.approx(start - 0.1 * (1.0 + 2.5 + 0.25))

"""Learning rates over time, against transformers' schedules and worked values."""

import math

import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from fed_distill.config import OptimizerConfig
from fed_distill.training.optimization import Pace, build_optimizer, clip, schedule_factor, set_rate


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
    optimizer = build_optimizer(
        model.named_parameters(), (), OptimizerConfig(optimizer="sgd", momentum=0.5, learning_rate=0.1)
    )
    for gradient in (1.0, 2.0, -1.0):
        model.weight.grad = torch.full((1, 1), gradient)
        optimizer.step()
    assert float(model.weight.detach()) == pytest.approx(start - 0.1 * (1.0 + 2.5 + 0.25))


def test_a_pace_is_as_configured():
    pace = Pace.of(OptimizerConfig(learning_rate=2.0, schedule="cosine", warmup_share=0.25))
    assert pace == Pace(2.0, "cosine", 0.25)
    assert [pace.after(done) for done in (0.125, 0.25, 0.625)] == pytest.approx([1.0, 2.0, 1.0])


def test_the_rate_is_that_of_the_step_and_weight_decay_spares_what_is_named():
    weights = {name: nn.Parameter(torch.ones(1)) for name in ("matrix", "table")}
    optimizer = build_optimizer(weights.items(), {"table"}, OptimizerConfig(learning_rate=9.0, weight_decay=0.5))
    for value in weights.values():
        value.grad = torch.zeros(1)
    set_rate(optimizer, 0.1)
    optimizer.step()
    assert {name: float(value.detach()) for name, value in weights.items()} == {
        "matrix": pytest.approx(1.0 - 0.1 * 0.5),  # decoupled: w - rate decay w
        "table": 1.0,
    }


@pytest.mark.parametrize(("norm", "expected"), [(math.inf, (3.0, 4.0)), (10.0, (3.0, 4.0)), (1.0, (0.6, 0.8))])
def test_a_gradient_is_scaled_to_its_largest_norm(norm, expected):
    weights = [nn.Parameter(torch.zeros(1)) for _ in expected]
    for value, gradient in zip(weights, (3.0, 4.0), strict=True):
        value.grad = torch.tensor([gradient])
    clip(weights, OptimizerConfig(clip_norm=norm))
    assert [float(value.grad) for value in weights] == pytest.approx(expected, rel=1e-5)

"""Who takes part in a round, and at what learning rate."""

import math
from collections import Counter

import pytest

from fed_distill.config import TrainerConfig
from fed_distill.coordinator.federation import round_learning_rate, sampled

MERCHANTS = [f"m{number:02d}" for number in range(20)]


@pytest.mark.parametrize(("share", "size"), [(1.0, 20), (0.25, 5), (0.01, 1), (0.5, 10)])
def test_a_share_of_the_merchants_is_sampled_and_at_least_one(share, size):
    chosen = sampled(MERCHANTS, share, 0, "fedavg", 1)
    assert len(chosen) == size
    assert chosen == sorted(set(chosen) & set(MERCHANTS))


def test_a_sample_is_the_same_for_the_same_seed_arm_and_round_only():
    first = sampled(MERCHANTS, 0.5, 0, "fedavg", 1)
    assert sampled(MERCHANTS, 0.5, 0, "fedavg", 1) == first
    others = [
        sampled(MERCHANTS, 0.5, 1, "fedavg", 1),
        sampled(MERCHANTS, 0.5, 0, "fedmd", 1),
        sampled(MERCHANTS, 0.5, 0, "fedavg", 2),
    ]
    assert first not in others


def test_every_merchant_is_sampled_about_as_often():
    rounds = 400
    counts = Counter(name for number in range(rounds) for name in sampled(MERCHANTS, 0.25, 0, "fedavg", number))
    deviation = math.sqrt(rounds * 0.25 * 0.75)
    assert all(abs(counts[name] - rounds * 0.25) < 5 * deviation for name in MERCHANTS)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [7 / 8, 5 / 8, 3 / 8, 1 / 8]),
        ("cosine", [0.5 * (1 + math.cos(math.pi * done)) for done in (1 / 8, 3 / 8, 5 / 8, 7 / 8)]),
    ],
)
def test_the_merchants_learning_rate_follows_the_schedule_over_the_rounds(schedule, factors):
    training = TrainerConfig(learning_rate=0.2, schedule=schedule)
    rates = [round_learning_rate(training, number, 4) for number in range(1, 5)]
    assert rates == pytest.approx([0.2 * factor for factor in factors])

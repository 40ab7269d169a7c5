"""Who takes part in a round, at what learning rate, and whose uplinks are merged."""

import math
from collections import Counter

import pytest
import torch

from fed_distill.config import TrainingConfig
from fed_distill.errors import TrainingError
from fed_distill.methods.base import GlobalState
from fed_distill.transport.messages import PartialWeights, Uplink
from fed_distill.transport.requests import Refusal
from server.rounds import checked, own_test_counts, round_learning_rate, sampled
from server.sites import RoundReplies

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
    training = TrainingConfig(learning_rate=0.2, schedule=schedule)
    rates = [round_learning_rate(training, number, 4) for number in range(1, 5)]
    assert rates == pytest.approx([0.2 * factor for factor in factors])


@pytest.fixture
def state():
    return GlobalState(0, {"w": torch.zeros(2)}, torch.full((3, 2), 0.5), lambda current, uplinks: current)


def good(name):
    return Uplink(name, 1, PartialWeights({"w": torch.ones(2)}), metrics={"loss": 1.0})


def bad(name):
    return Uplink(name, 1, PartialWeights({"w": torch.tensor([1.0, math.nan])}), metrics={"loss": 1.0})


def replies(*uplinks, refusals=()):
    return RoundReplies(tuple(uplinks), tuple(refusals), 0.0, 0.0)


def test_unfit_uplinks_are_left_out_and_counted_with_the_refusals(state):
    refused = Refusal("d", "d has no data")
    accepted, refusals = checked(replies(good("a"), bad("b"), good("c"), refusals=[refused]), state, 4, 7)
    assert [uplink.merchant for uplink in accepted] == ["a", "c"]
    assert [refusal.merchant for refusal in refusals] == ["d", "b"]
    assert "merchant b: w has values that are not finite" in refusals[1].reason


def in_part(name):
    rows = torch.tensor([1])
    return Uplink(name, 1, PartialWeights({"w": torch.ones(1)}, {"w": rows}, {"w": rows}), metrics={"loss": 1.0})


@pytest.mark.parametrize("odd", [Uplink("b", 1, metrics={"loss": 1.0}), in_part("b")])
def test_an_uplink_with_other_parts_than_most_have_is_left_out(state, odd):
    accepted, refusals = checked(replies(good("a"), odd, good("c")), state, 3, 1)
    assert [uplink.merchant for uplink in accepted] == ["a", "c"]
    assert refusals[0].reason == "merchant b: its uplink has other parts than most others have"


@pytest.mark.parametrize(
    ("fit", "asked", "enough"), [(1, 2, True), (2, 5, False), (3, 5, True), (1, 1, True), (0, 1, False)]
)
def test_half_of_those_asked_must_be_fit(state, fit, asked, enough):
    uplinks = [good(f"g{number}") for number in range(fit)] + [bad(f"x{number}") for number in range(asked - fit)]
    if enough:
        assert len(checked(replies(*uplinks), state, asked, 1)[0]) == fit
    else:
        with pytest.raises(
            TrainingError, match=rf"round 3: only {fit} of {asked} merchants can be merged; merchant x0: w"
        ):
            checked(replies(*uplinks), state, asked, 3)


def test_silence_of_most_is_said_to_be_silence(state):
    with pytest.raises(TrainingError, match="only 1 of 4 merchants can be merged; the others did not answer"):
        checked(replies(good("a")), state, 4, 1)


def test_own_test_counts_leave_out_merchants_without_a_test():
    measured = Uplink("a", 1, metrics={"test_right": 3.0, "test_count": 4.0})
    untested = Uplink("b", 1, metrics={"test_right": 0.0, "test_count": 0.0})
    assert own_test_counts([measured, untested, Uplink("c", 1)]) == {"a": (3, 4)}

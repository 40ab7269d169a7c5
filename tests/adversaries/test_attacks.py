"""Each attack against what its definition gives by hand, on every part that a method may send."""

import pytest
import torch

from fed_distill.adversaries import ATTACKS
from fed_distill.adversaries.attacks import LabelFlip, Scaled, SignFlip, powered
from fed_distill.errors import ConfigError, UplinkRejected
from fed_distill.models.weights import PartialWeights
from fed_distill.transport.low_rank import factored, multiplied_out
from fed_distill.transport.messages import PARTS, ClassMeans, Downlink, Uplink
from fed_distill.transport.records import check_uplink

START = {"table": torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]), "bias": torch.tensor([1.0, -1.0])}
STEPS = torch.tensor([7])
LABELS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])


@pytest.fixture
def down():
    return Downlink(1, {**START, "steps": STEPS}, LABELS)


def weights():
    """Row 1 of the table moved by (1, -2), the bias by (0.5, 0)."""
    arrays = {"table": torch.tensor([[3.0, 1.0]]), "bias": torch.tensor([1.5, -1.0]), "steps": STEPS + 1}
    return PartialWeights(arrays, {"table": torch.tensor([1])}, {"table": torch.tensor([4])})


def everything():
    """An uplink with a part of every kind."""
    return Uplink(
        "shop",
        20,
        weights=weights(),
        soft_labels=LABELS,
        metrics={"loss": 0.5},
        votes=torch.tensor([0, 1, 2, 2]),
        class_means=ClassMeans(
            torch.tensor([[0.8, 0.1, 0.1], [0.0, 0.0, 0.0], [0.2, 0.2, 0.6]]), torch.tensor([True, False, True])
        ),
        control_variate={"bias": torch.tensor([0.25, -4.0])},
        low_rank_update=factored(PartialWeights({"w": torch.outer(torch.arange(1.0, 5.0), torch.ones(4))}), 1.0),
    )


def test_labels_are_reversed_or_moved_on():
    labels = torch.tensor([0, 1, 2, 3, 3])
    assert LabelFlip().labels(labels, 4).tolist() == [3, 2, 1, 0, 0]
    assert LabelFlip("next").labels(labels, 4).tolist() == [1, 2, 3, 0, 0]
    assert Scaled().labels(labels, 4).tolist() == [3, 2, 1, 0, 0]
    assert SignFlip().labels(labels, 4).tolist() == [0, 1, 2, 3, 3]


def test_who_trains_on_flipped_labels_sends_what_came_of_it(down):
    up = everything()
    assert LabelFlip().uplink(up, down, 3) is up


@pytest.mark.parametrize(
    ("attack", "row", "bias"),
    [
        (SignFlip(), [1.0, 5.0], [0.5, -1.0]),  # start - (trained - start)
        (SignFlip(3.0), [-1.0, 9.0], [-0.5, -1.0]),
        (Scaled(10.0), [12.0, -17.0], [6.0, -1.0]),  # start + 10 (trained - start)
    ],
)
def test_weights_are_multiplied_as_updates_in_part_or_whole(down, attack, row, bias):
    sent = attack.uplink(Uplink("shop", 20, weights()), down, 3).weights
    assert sent.arrays["table"].tolist() == [row]
    assert sent.arrays["bias"].tolist() == bias
    assert sent.arrays["steps"].tolist() == [8]  # no number that can be multiplied
    assert (sent.rows["table"].tolist(), sent.counts["table"].tolist()) == ([1], [4])


def test_soft_labels_to_the_power_of_minus_one_are_the_normalized_reciprocals():
    """(0.7, 0.2, 0.1)^-1 = (10/7, 5, 10), whose sum is 115/7."""
    torch.testing.assert_close(powered(LABELS, -1.0)[0], torch.tensor([10.0, 35.0, 70.0]) / 115.0)


def test_scaled_soft_labels_are_surer_and_flipped_ones_turn_round(down):
    scaled = Scaled(10.0).uplink(everything(), down, 3).soft_labels
    flipped = SignFlip().uplink(everything(), down, 3).soft_labels
    torch.testing.assert_close(scaled[0, 0] / scaled[0, 1], torch.tensor((0.7 / 0.2) ** 10))
    assert scaled.argmax(dim=-1).tolist() == [0, 1]
    assert flipped.argmin(dim=-1).tolist() == [0, 1]


def test_what_is_certain_or_impossible_stays_finite():
    certain = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    for exponent in (-2.0, 10.0):
        found = powered(certain, exponent)
        torch.testing.assert_close(found.sum(dim=-1), torch.ones(2))
    assert powered(certain, -1.0)[0].tolist() == pytest.approx([0.0, 0.5, 0.5])


def test_every_other_part_is_multiplied_too(down):
    up, sent = everything(), SignFlip(2.0).uplink(everything(), down, 3)
    assert up.parts == sent.parts == set(PARTS) - {"answered"}
    assert sent.control_variate["bias"].tolist() == [-0.5, 8.0]
    torch.testing.assert_close(
        multiplied_out(sent.low_rank_update).arrays["w"], -2.0 * multiplied_out(up.low_rank_update).arrays["w"]
    )
    assert sent.votes.tolist() == [2, 1, 0, 0]
    assert sent.class_means.probabilities[1].tolist() == [0.0, 0.0, 0.0]  # a class that it has no example of
    torch.testing.assert_close(sent.class_means.probabilities[2], torch.tensor([9.0, 9.0, 1.0]) / 19.0)
    assert (sent.merchant, sent.examples, sent.metrics) == ("shop", 20, {"loss": 0.5})


def test_votes_cannot_be_scaled(down):
    assert Scaled().uplink(everything(), down, 3).votes.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("attack", [SignFlip(5.0), Scaled()])
def test_a_lie_is_of_the_form_that_the_server_checks(down, attack):
    up = everything()
    sent = attack.uplink(Uplink("shop", 20, up.weights, LABELS, class_means=up.class_means), down, 3)
    check_uplink(sent, down.weights, (2, 3))
    assert sent.parts == {"weights", "soft_labels", "class_means"}
    assert not torch.allclose(sent.soft_labels, up.soft_labels, atol=0.1)


def test_an_update_that_is_not_finite_is_a_refusal_and_no_crash(down):
    broken = PartialWeights({"bias": torch.tensor([float("nan"), 0.0])})
    with pytest.raises(UplinkRejected, match="merchant shop: the update of bias is not finite"):
        SignFlip().uplink(Uplink("shop", 20, broken), down, 3)


def test_attacks_are_built_by_name_with_checked_options():
    assert ATTACKS.build("scaled", {"scale": 4.0}) == Scaled(4.0)
    with pytest.raises(ConfigError, match="unknown attack 'sign-flop'; did you mean sign-flip"):
        ATTACKS.build("sign-flop", {})
    with pytest.raises(ConfigError, match="attack 'sign-flip', option scale: Input should be greater than 0"):
        ATTACKS.build("sign-flip", {"scale": 0.0})

"""Each attack against what its definition gives by hand, on every part that a method may send."""

import pytest
import torch

from fed_distill.adversaries import ATTACKS
from fed_distill.adversaries.attacks import LabelFlip, Scaled, SignFlip
from fed_distill.errors import ConfigError, UplinkRejected
from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.base import Context, powered
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.control_variate import ControlVariate
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.payloads.votes import Votes
from fed_distill.transport.messages import Uplink
from fed_distill.transport.records import check_uplink

START = {"table": torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]), "bias": torch.tensor([1.0, -1.0])}
STEPS = torch.tensor([7])
LABELS = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1]])


@pytest.fixture
def context():
    return Context({**START, "steps": STEPS}, 2, 3)


def update():
    """Row 1 of the table moved by (1, -2), the bias by (0.5, 0)."""
    arrays = {"table": torch.tensor([[1.0, -2.0]]), "bias": torch.tensor([0.5, 0.0])}
    return PartialWeights(arrays, {"table": torch.tensor([1])}, {"table": torch.tensor([4])})


def everything():
    """An uplink with a part of every kind."""
    return Uplink(
        "shop",
        20,
        (
            StudentUpdate.of(update()),
            SoftLabels(LABELS),
            Votes(torch.tensor([0, 1, 2, 2])),
            ClassMeans(
                torch.tensor([[0.8, 0.1, 0.1], [0.0, 0.0, 0.0], [0.2, 0.2, 0.6]]), torch.tensor([True, False, True])
            ),
            ControlVariate({"bias": torch.tensor([0.25, -4.0])}),
            LowRankUpdate.factored(PartialWeights({"w": torch.outer(torch.arange(1.0, 5.0), torch.ones(4))}), 1.0),
        ),
        metrics={"loss": 0.5},
    )


def test_labels_are_reversed_or_moved_on():
    labels = torch.tensor([0, 1, 2, 3, 3])
    assert LabelFlip().labels(labels, 4).tolist() == [3, 2, 1, 0, 0]
    assert LabelFlip("next").labels(labels, 4).tolist() == [1, 2, 3, 0, 0]
    assert Scaled().labels(labels, 4).tolist() == [3, 2, 1, 0, 0]
    assert SignFlip().labels(labels, 4).tolist() == [0, 1, 2, 3, 3]


def test_who_trains_on_flipped_labels_sends_what_came_of_it(context):
    up = everything()
    assert LabelFlip().uplink(up, context) is up


@pytest.mark.parametrize(
    ("attack", "row", "bias"),
    [
        (SignFlip(), [-1.0, 2.0], [-0.5, 0.0]),
        (SignFlip(3.0), [-3.0, 6.0], [-1.5, 0.0]),
        (Scaled(10.0), [10.0, -20.0], [5.0, 0.0]),
    ],
)
def test_updates_are_multiplied_in_part_or_whole(context, attack, row, bias):
    sent = attack.uplink(Uplink("shop", 20, (StudentUpdate.of(update()),)), context).need(StudentUpdate)
    assert sent.arrays["table"].tolist() == [row]
    assert sent.arrays["bias"].tolist() == bias
    assert (sent.rows["table"].tolist(), sent.counts["table"].tolist()) == ([1], [4])


def test_soft_labels_to_the_power_of_minus_one_are_the_normalized_reciprocals():
    """(0.7, 0.2, 0.1)^-1 = (10/7, 5, 10), whose sum is 115/7."""
    torch.testing.assert_close(powered(LABELS, -1.0)[0], torch.tensor([10.0, 35.0, 70.0]) / 115.0)


def test_scaled_soft_labels_are_surer_and_flipped_ones_turn_round(context):
    scaled = Scaled(10.0).uplink(everything(), context).need(SoftLabels).probabilities
    flipped = SignFlip().uplink(everything(), context).need(SoftLabels).probabilities
    torch.testing.assert_close(scaled[0, 0] / scaled[0, 1], torch.tensor((0.7 / 0.2) ** 10))
    assert scaled.argmax(dim=-1).tolist() == [0, 1]
    assert flipped.argmin(dim=-1).tolist() == [0, 1]


def test_what_is_certain_or_impossible_stays_finite():
    certain = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    for exponent in (-2.0, 10.0):
        found = powered(certain, exponent)
        torch.testing.assert_close(found.sum(dim=-1), torch.ones(2))
    assert powered(certain, -1.0)[0].tolist() == pytest.approx([0.0, 0.5, 0.5])


def test_every_other_part_is_multiplied_too(context):
    up, sent = everything(), SignFlip(2.0).uplink(everything(), context)
    assert up.kinds == sent.kinds
    assert sent.need(ControlVariate).arrays["bias"].tolist() == [-0.5, 8.0]
    torch.testing.assert_close(
        sent.need(LowRankUpdate).multiplied_out().arrays["w"],
        -2.0 * up.need(LowRankUpdate).multiplied_out().arrays["w"],
    )
    assert sent.need(Votes).classes.tolist() == [2, 1, 0, 0]
    assert sent.need(ClassMeans).probabilities[1].tolist() == [0.0, 0.0, 0.0]  # a class that it has no example of
    torch.testing.assert_close(sent.need(ClassMeans).probabilities[2], torch.tensor([9.0, 9.0, 1.0]) / 19.0)
    assert (sent.merchant, sent.examples, sent.metrics) == ("shop", 20, {"loss": 0.5})


def test_votes_cannot_be_scaled(context):
    assert Scaled().uplink(everything(), context).need(Votes).classes.tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("attack", [SignFlip(5.0), Scaled()])
def test_a_lie_is_of_the_form_that_the_server_checks(context, attack):
    up = everything()
    sent = attack.uplink(Uplink("shop", 20, (up.need(StudentUpdate), SoftLabels(LABELS), up.need(ClassMeans))), context)
    check_uplink(sent, context)
    assert sent.kinds == {StudentUpdate, SoftLabels, ClassMeans}
    assert not torch.allclose(sent.need(SoftLabels).probabilities, up.need(SoftLabels).probabilities, atol=0.1)


def test_a_payload_that_cannot_be_scaled_is_a_refusal_and_no_crash(context):
    with pytest.raises(UplinkRejected, match="merchant shop: only the server sends whole weights"):
        SignFlip().uplink(Uplink("shop", 20, (StudentWeights(START),)), context)


def test_attacks_are_built_by_name_with_checked_options():
    assert ATTACKS.build("scaled", {"scale": 4.0}) == Scaled(4.0)
    with pytest.raises(ConfigError, match="unknown attack 'sign-flop'; did you mean sign-flip"):
        ATTACKS.build("sign-flop", {})
    with pytest.raises(ConfigError, match="attack 'sign-flip', option scale must be greater than 0"):
        ATTACKS.build("sign-flip", {"scale": 0.0})

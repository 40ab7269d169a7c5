"""Cronus: FedMD with a consensus that Byzantine merchants cannot move."""

import pytest
import torch

from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import replace
from fed_distill.methods.cronus import Cronus
from fed_distill.methods.fedmd import FedMD
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.transport.messages import Uplink

PROXY, CLASSES, MERCHANTS, BYZANTINE = 60, 3, 20, 6


@pytest.fixture
def crowd(state):
    """The state for a proxy set of 60, and a function: uplinks of which the first so many have flipped soft labels."""
    draw = torch.Generator().manual_seed(0)
    common = 2.0 * torch.randn(PROXY, CLASSES, generator=draw)
    sent = (common + 0.3 * torch.randn(MERCHANTS, PROXY, CLASSES, generator=draw)).softmax(dim=-1)

    def uplinks(byzantine):
        flipped = torch.cat([sent[:byzantine].flip(-1), sent[byzantine:]])
        return [Uplink(f"m{place:02d}", 1, (SoftLabels(labels),)) for place, labels in enumerate(flipped)]

    return replace(state, teacher_labels=common.softmax(dim=-1)), uplinks


def distance(one, other):
    """Mean total variation over the proxy examples."""
    return float((one - other).abs().sum(dim=-1).mean() / 2)


@pytest.mark.parametrize("robust", ["filter", "median", "trimmed-mean"])
def test_thirty_per_cent_of_byzantine_merchants_hardly_move_the_consensus_and_move_the_mean(crowd, robust, server):
    state, uplinks = crowd
    plain = FedMD(teacher_share=0.0)
    clean = plain.merge(state, uplinks(0), server).consensus
    assert distance(plain.merge(state, uplinks(BYZANTINE), server).consensus, clean) > 0.15
    attacked = Cronus(robust=robust, byzantine_fraction=0.3).merge(state, uplinks(BYZANTINE), server).consensus
    assert distance(attacked, clean) < 0.05
    torch.testing.assert_close(attacked.sum(dim=-1), torch.ones(PROXY))


@pytest.mark.parametrize(
    ("robust", "expected"),
    [
        ("median", [0.5 / 0.9, 0.3 / 0.9, 0.1 / 0.9]),  # coordinate by coordinate, then scaled to sum to 1
        ("trimmed-mean", [0.5 / 0.9, 0.3 / 0.9, 0.1 / 0.9]),  # one of three left out at each end
        ("filter", [0.55, 0.35, 0.1]),  # the third is far out along the direction of largest variance
    ],
)
def test_three_merchants_one_of_them_far_out(state, robust, expected, server):
    rows = ([0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.05, 0.05, 0.9])
    uplinks = [Uplink(name, 1, (SoftLabels(torch.tensor([row] * 3)),)) for name, row in zip("abc", rows, strict=True)]
    merged = Cronus(robust=robust, byzantine_fraction=0.34).merge(state, uplinks, server)
    torch.testing.assert_close(merged.consensus, torch.tensor([expected] * 3))


def test_the_teacher_takes_part_by_its_share(state, uplinks, server):
    alone = Cronus().merge(state, uplinks, server).consensus
    mixed = Cronus(teacher_share=0.25).merge(state, uplinks, server).consensus
    torch.testing.assert_close(mixed, 0.25 * state.teacher_labels + 0.75 * alone)


def test_everything_else_is_fedmd(state, trained, uplinks, server):
    method = Cronus(digest_epochs=3, local_epochs=2)
    assert (method.keeps, method.sends) == ("own_student", (SoftLabels,))
    digest, revisit = method.plan(method.broadcast(state)).phases
    assert (digest.data, digest.epochs, revisit.data, revisit.epochs) == ("proxy", 3, "private", 2)
    assert torch.equal(
        method.uplink(trained, method.broadcast(state)).need(SoftLabels).probabilities, trained.predict_proxy()
    )
    merged = method.merge(state, iter(uplinks), server)
    assert merged.round == 5
    assert torch.equal(merged.weights["w"], merged.consensus)


def test_a_consensus_of_nobody_is_refused(state, server):
    with pytest.raises(UplinkRejected, match="no merchant sent soft labels"):
        Cronus().merge(state, [], server)

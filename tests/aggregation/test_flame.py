"""The filter and the clipping of FLAME, compared with plain loops over whole updates."""

import numpy as np
import pytest
import torch

from fed_distill.adversaries.attacks import Scaled, SignFlip
from fed_distill.aggregation import AGGREGATORS, flame
from fed_distill.aggregation.fedavg import WeightedMean
from fed_distill.aggregation.fedsubavg import FedSubAvg
from fed_distill.aggregation.flame import FedSubFlame, Flame, admitted, inner_products, scaled
from fed_distill.errors import UplinkRejected
from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.base import Context
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.transport.messages import Uplink

FLOATING = ("table", "bias", "scale")
PLAIN = {"flame": WeightedMean(), "fedsubflame": FedSubAvg()}


def updates(current, weights):
    """Each merchant's whole update as one long vector."""
    return np.stack(
        [np.concatenate([(one[name] - current[name].double().numpy()).ravel() for name in FLOATING]) for one in weights]
    )


@pytest.mark.parametrize("block", [1, 4, 2048])
def test_inner_products_are_those_of_whole_updates(current, make_uplinks, dense, monkeypatch, block):
    monkeypatch.setattr(flame, "BLOCK", block)
    uplinks = make_uplinks(8)
    moved = updates(current, dense(uplinks))
    found = inner_products(current, [uplink.need(StudentUpdate) for uplink in uplinks])
    np.testing.assert_allclose(found.numpy(), moved @ moved.T, rtol=1e-10)


def test_a_weight_that_some_did_not_send_has_not_moved_there(current, make_uplinks):
    one, other = (uplink.need(StudentUpdate) for uplink in make_uplinks(2))
    partly = PartialWeights({"table": other.arrays["table"]}, other.rows, other.counts)
    products = inner_products({"bias": current["bias"]}, [one, PartialWeights({})])
    assert products[1].tolist() == [0.0, 0.0]
    assert inner_products(current, [one, partly])[1, 1] == pytest.approx(
        float(other.arrays["table"].double().square().sum())
    )


def test_merchants_with_a_positive_median_cosine_are_kept():
    """Updates 0 to 2 agree; 3 and 4 have the opposite direction, 3 with a much larger norm."""
    vectors = np.array([[1.0, 0.2], [1.0, -0.2], [2.0, 0.1], [-50.0, 1.0], [-1.0, 0.0]])
    assert admitted(torch.from_numpy(vectors @ vectors.T)).tolist() == [True, True, True, False, False]


def test_the_filter_is_repeated_without_discarded_merchants():
    """4 and 5 have a positive median cosine only as long as 6, which agrees with both, is not discarded."""
    cosines = torch.tensor(
        [
            [1.0, 0.2, 0.2, 0.2, -0.1, -0.1, -0.2],
            [0.2, 1.0, 0.2, 0.2, -0.1, -0.1, -0.2],
            [0.2, 0.2, 1.0, 0.2, -0.02, 0.1, -0.2],
            [0.2, 0.2, 0.2, 1.0, 0.1, -0.02, -0.2],
            [-0.1, -0.1, -0.02, 0.1, 1.0, 0.5, 0.5],
            [-0.1, -0.1, 0.1, -0.02, 0.5, 1.0, 0.5],
            [-0.2, -0.2, -0.2, -0.2, 0.5, 0.5, 1.0],
        ],
        dtype=torch.float64,
    )
    others = cosines.numpy()[~np.eye(7, dtype=bool)].reshape(7, 6)
    assert (np.median(others, axis=1) > 0.0).tolist() == [True] * 6 + [False]
    assert admitted(cosines).tolist() == [True] * 4 + [False] * 3


def test_a_discarded_merchant_stays_so():
    """0 and 1 have opposite directions and a median cosine of 0. 2 and 3, which remain, agree with each of them as far
    as they do at all, so that all four were kept again, and discarded again, without end."""
    vectors = np.array([[2.0, 3.0], [-2.0, -2.0], [-3.0, 3.0], [-3.0, 2.0]])
    products = vectors @ vectors.T
    assert np.array_equal(np.sign(products[:2]), [[1, -1, 1, 0], [-1, 1, 0, 1]])
    assert admitted(torch.from_numpy(products)).tolist() == [False, False, True, True]


def test_at_least_half_of_the_merchants_are_kept():
    """Five directions with pairwise disagreement: no median cosine is positive."""
    angles = np.arange(5) * 2 * np.pi / 5
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert int(admitted(torch.from_numpy(vectors @ vectors.T)).sum()) == 3
    assert admitted(torch.zeros(4, 4, dtype=torch.float64)).tolist() == [True, True, False, False]
    assert admitted(torch.ones(1, 1, dtype=torch.float64)).tolist() == [True]


def alike(current, make_uplinks, size=8):
    """Uplinks with similar updates: a common direction plus small independent noise."""
    draw = torch.Generator().manual_seed(5)
    common = {name: torch.randn(current[name].shape, generator=draw) for name in FLOATING}
    made = []
    for number, uplink in enumerate(make_uplinks(size)):
        sent = uplink.need(StudentUpdate)
        arrays = dict(sent.arrays)
        for name in FLOATING:
            rows = sent.rows["table"] if name == "table" else ...
            arrays[name] = common[name][rows] + 0.1 * torch.randn(arrays[name].shape, generator=draw)
        made.append(Uplink(f"m{number}", uplink.examples, (StudentUpdate(arrays, sent.rows, sent.counts),)))
    return made


@pytest.mark.parametrize("attack", [SignFlip(), SignFlip(10.0)], ids=["flipped", "flipped and scaled by 10"])
@pytest.mark.parametrize("name", PLAIN)
def test_byzantine_updates_are_discarded_and_the_others_averaged(current, make_uplinks, name, attack):
    uplinks, context = alike(current, make_uplinks), Context(current, 0, 4)
    received = [attack.uplink(uplink, context) if place in (1, 6) else uplink for place, uplink in enumerate(uplinks)]
    merged = AGGREGATORS.build(name, {}).average(current, iter(received))
    norms = inner_products(current, [uplink.need(StudentUpdate) for uplink in received]).diagonal().sqrt()
    factors = (norms.sort().values[3] / norms).clamp_max(1.0)  # torch.median is the lower of the two middle values
    honest = [scaled(uplinks[place], float(factors[place])) for place in range(8) if place not in (1, 6)]
    expected = PLAIN[name].average(current, honest)
    assert all(torch.equal(merged[key], value) for key, value in expected.items())


@pytest.mark.parametrize("aggregator", [Flame(), FedSubFlame()])
def test_updates_are_clipped_to_the_median_norm(current, make_uplinks, aggregator):
    uplinks, context = alike(current, make_uplinks), Context(current, 0, 4)
    boosted = [Scaled(1000.0).uplink(uplinks[0], context), *uplinks[1:]]
    moved = {name: value - current[name] for name, value in aggregator.average(current, boosted).items()}
    clean = {name: value - current[name] for name, value in aggregator.average(current, uplinks).items()}
    for name in FLOATING:
        assert float((moved[name] - clean[name]).norm()) < 0.5 * float(clean[name].norm())


def test_a_scaled_update_has_the_same_direction(current, make_uplinks, dense):
    uplink = make_uplinks(1)[0]
    half = scaled(uplink, 0.5)
    (whole,), (less,) = updates(current, dense([uplink])), updates(current, dense([half]))
    np.testing.assert_allclose(less, 0.5 * whole, atol=1e-6)
    assert half.need(StudentUpdate).counts is uplink.need(StudentUpdate).counts


def test_a_round_without_updates_is_an_error(current):
    with pytest.raises(UplinkRejected, match="no merchant sent an update"):
        Flame().average(current, [Uplink("m", 1)])

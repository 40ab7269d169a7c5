"""DS-FL: FedMD with a sharpened consensus, by the paper's softmax or by SCARLET's power."""

import math

import pytest
import torch

from fed_distill.methods.dsfl import DSFL
from fed_distill.methods.fedmd import FedMD
from fed_distill.payloads.soft_labels import SoftLabels

MEAN = [0.3, 0.2, 0.5]


def test_entropy_reduction_is_the_softmax_of_the_mean_at_a_tenth(state, uplinks, server):
    powers = [math.exp(p / 0.1) for p in MEAN]
    expected = torch.tensor([power / sum(powers) for power in powers])
    torch.testing.assert_close(DSFL().merge(state, uplinks, server).consensus[0], expected)


def test_the_enhanced_form_is_a_normalized_power_of_the_mean(state, uplinks, server):
    powers = [p**3 for p in MEAN]
    expected = torch.tensor([power / sum(powers) for power in powers])
    merged = DSFL(aggregation="enhanced-era", beta=3.0).merge(state, uplinks, server)
    torch.testing.assert_close(merged.consensus[0], expected)


@pytest.mark.parametrize("options", [{"aggregation": "mean"}, {"aggregation": "enhanced-era", "beta": 1.0}])
def test_without_sharpening_it_is_the_mean(state, uplinks, options, server):
    torch.testing.assert_close(DSFL(**options).merge(state, uplinks, server).consensus[0], torch.tensor(MEAN))


@pytest.mark.parametrize("aggregation", ["era", "enhanced-era"])
def test_sharpening_lowers_the_entropy_of_the_mean(state, uplinks, aggregation, server):
    entropies = [
        torch.special.entr(method.merge(state, uplinks, server).consensus).sum(dim=-1)
        for method in (DSFL(aggregation=aggregation), DSFL(aggregation="mean"))
    ]
    assert bool((entropies[0] < entropies[1]).all())


def test_the_teacher_is_mixed_in_unsharpened(state, uplinks, server):
    sharp = DSFL().merge(state, uplinks, server).consensus
    mixed = DSFL(teacher_share=0.25).merge(state, uplinks, server).consensus
    torch.testing.assert_close(mixed, 0.25 * state.teacher_labels + 0.75 * sharp)


def test_everything_else_is_fedmd(state, trained, uplinks, server):
    method, plain = DSFL(digest_epochs=3, local_epochs=2), FedMD()
    assert (method.keeps, method.sends, method.receives) == (plain.keeps, plain.sends, plain.receives)
    down = method.broadcast(state)
    digest, revisit = method.plan(down).phases
    assert (digest.data, digest.epochs, revisit.data, revisit.epochs) == ("proxy", 3, "private", 2)
    assert torch.equal(digest.references["soft_labels"], state.teacher_labels)
    assert torch.equal(method.uplink(trained, down).need(SoftLabels).probabilities, trained.predict_proxy())
    merged = method.merge(state, iter(uplinks), server)
    assert merged.round == 5
    assert torch.equal(merged.weights["w"], merged.consensus)
    assert merged.consensus.dtype == state.teacher_labels.dtype

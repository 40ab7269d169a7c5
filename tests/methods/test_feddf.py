"""FedDF: the mean of the weights, then distillation from the softmax of the mean of the merchants' logits."""

from dataclasses import replace

import pytest
import torch

from fed_distill.errors import UplinkRejected
from fed_distill.methods.feddf import FedDF
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.training.early_stopping import EarlyStopping


def with_logits(uplinks, logits):
    return [up.having(SoftLabels(one.softmax(dim=-1))) for up, one in zip(uplinks, logits, strict=True)]


def test_the_target_is_the_softmax_of_the_mean_of_the_logits(state, uplinks, server):
    logits = [
        torch.tensor([[4.0, -2.0, 0.5], [0.0, 1.0, 2.0], [-30.0, 5.0, 0.0]]),
        torch.randn(3, 3, generator=torch.Generator().manual_seed(0)) * 3,
    ]
    merged = FedDF().merge(state, with_logits(uplinks, logits), server)
    expected = ((logits[0] + logits[1]) / 2).softmax(dim=-1)
    torch.testing.assert_close(merged.consensus, expected)
    (phase,) = server.plans[-1].phases
    assert phase.data == "proxy"
    assert torch.equal(phase.references["soft_labels"], merged.consensus)


def test_a_probability_of_zero_does_not_break_the_target(state, uplinks, server):
    certain = torch.eye(3)
    merged = FedDF().merge(state, [up.having(SoftLabels(certain)) for up in uplinks], server)
    torch.testing.assert_close(merged.consensus, certain)


def test_the_teacher_takes_part_by_its_share(state, uplinks, server):
    ensemble = FedDF().merge(state, uplinks, server).consensus
    mixed = FedDF(teacher_share=0.25).merge(state, uplinks, server).consensus
    torch.testing.assert_close(mixed, 0.25 * state.teacher_labels + 0.75 * ensemble)


def test_merchants_send_weights_and_proxy_probabilities(state, trained):
    up = FedDF().uplink(trained, FedDF().broadcast(state))
    assert up.kinds == set(FedDF.sends)
    assert up.need(StudentUpdate).arrays["w"].tolist() == [2.0, -2.0]
    assert torch.equal(up.need(SoftLabels).probabilities, trained.predict_proxy())


def test_the_weights_are_the_aggregators(state, uplinks, server):
    merged = FedDF(server_epochs=3).merge(state, uplinks, server)
    assert (merged.round, merged.weights["w"].tolist()) == (5, [111.0, 222.0])
    assert server.plans[-1].phases[0].epochs == 3


def test_distillation_may_end_when_the_score_no_longer_improves(state, uplinks, server):
    FedDF(server_epochs=3).merge(state, uplinks, server)
    FedDF(server_epochs=3, patience=1000, check_every=50).merge(state, uplinks, server)
    assert server.stoppings == [None, EarlyStopping(1000, 50)]


def test_weights_and_ensemble_come_from_one_pass(state, uplinks, server):
    once = FedDF().merge(state, iter(uplinks), server)
    again = FedDF().merge(state, uplinks, server)
    assert once.weights["w"].tolist() == [111.0, 222.0]
    assert torch.equal(once.consensus, again.consensus)
    assert once.consensus.dtype == torch.float32


def test_an_ensemble_of_nobody_is_refused(state, uplinks, server):
    silent = [replace(up, payloads=(up.need(StudentUpdate),)) for up in uplinks]
    with pytest.raises(UplinkRejected, match="no merchant sent soft labels"):
        FedDF().merge(state, silent, server)

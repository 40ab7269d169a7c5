"""FedMD: no weights travel; the consensus is the mean of the merchants' soft labels, mixed with the teacher."""

import pytest
import torch

from fed_distill.methods.base import replace
from fed_distill.methods.fedmd import FedMD
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.transport.messages import Downlink


def test_the_first_downlink_is_the_teachers_soft_labels(state):
    down = FedMD().broadcast(state)
    assert (down.round, down.kinds) == (5, {SoftLabels})
    assert torch.equal(down.need(SoftLabels).probabilities, state.teacher_labels)


def test_later_downlinks_are_the_consensus(state):
    consensus = torch.full((3, 3), 1 / 3)
    assert torch.equal(FedMD().broadcast(replace(state, consensus=consensus)).need(SoftLabels).probabilities, consensus)


def test_merchants_digest_the_consensus_then_revisit_their_examples(state):
    method = FedMD(digest_epochs=3, local_epochs=2)
    down = method.broadcast(state)
    digest, revisit = method.plan(down).phases
    assert (digest.data, digest.epochs) == ("proxy", 3)
    assert torch.equal(digest.references["soft_labels"], down.need(SoftLabels).probabilities)
    assert (revisit.data, revisit.epochs) == ("private", 2)


def test_merchants_keep_their_students_and_send_no_weights(state, trained):
    assert FedMD.keeps == "own_student"
    up = FedMD().uplink(trained, FedMD().broadcast(state))
    assert up.kinds == set(FedMD.sends) == {SoftLabels}
    assert torch.equal(up.need(SoftLabels).probabilities, trained.predict_proxy())


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, [0.3, 0.2, 0.5]), (1.0, [0.7, 0.2, 0.1]), (0.25, [0.4, 0.2, 0.4])],
)
def test_the_consensus_counts_each_merchant_the_same_and_the_teacher_by_its_share(
    state, uplinks, share, expected, server
):
    merged = FedMD(teacher_share=share).merge(state, uplinks, server)
    torch.testing.assert_close(merged.consensus[0], torch.tensor(expected))
    torch.testing.assert_close(merged.consensus.sum(dim=-1), torch.ones(3))
    assert merged.round == 5


def test_the_global_student_is_taught_the_consensus(state, uplinks, server):
    merged = FedMD().merge(state, uplinks, server)
    assert merged.weights["w"] is merged.consensus
    assert server.plans == []


def test_uplinks_are_taken_one_after_another(state, uplinks, server):
    sent = [up.need(SoftLabels).probabilities.clone() for up in uplinks]
    once = FedMD().merge(state, iter(uplinks), server).consensus
    assert torch.equal(once, FedMD().merge(state, uplinks, server).consensus)
    assert all(torch.equal(up.need(SoftLabels).probabilities, labels) for up, labels in zip(uplinks, sent, strict=True))


def test_the_global_student_is_distilled_anew_or_from_its_last_weights(state, uplinks, server):
    anew, onwards = (FedMD(onwards=onwards).merge(state, uplinks, server) for onwards in (False, True))
    assert set(anew.weights) == {"w"}
    assert onwards.weights["from"] is state.weights["w"]
    assert torch.equal(onwards.weights["w"], onwards.consensus)
    assert torch.equal(onwards.consensus, anew.consensus)


def test_merchants_pretrain_on_their_examples_alone_before_they_send_anything_and_digest_later(state, uplinks, server):
    method, first = FedMD(pretrain_epochs=5, local_epochs=2), replace(state, round=0)
    down = method.broadcast(first)
    assert (down.round, down.payloads) == (1, ())
    (pretrain,) = method.plan(down).phases
    assert (pretrain.data, pretrain.epochs) == ("private", 5)
    merged = method.merge(first, uplinks, server)
    digest, revisit = method.plan(method.broadcast(merged)).phases
    assert torch.equal(digest.references["soft_labels"], merged.consensus)
    assert (revisit.data, revisit.epochs) == ("private", 2)


@pytest.mark.parametrize("options", [{}, {"pretrain_epochs": 2.0}])
def test_private_examples_may_have_a_rate_of_their_own(options):
    down = Downlink(1, () if options else (SoftLabels(torch.full((2, 3), 1 / 3)),))
    phases = FedMD(private_rate_scale=0.1, **options).plan(down).phases
    assert [(phase.data, phase.learning_rate_scale) for phase in phases] == [
        *([] if options else [("proxy", 1.0)]),
        ("private", 0.1),
    ]

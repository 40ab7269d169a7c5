"""Selective-FD: merchants keep back what they are not sure of, and ambiguous consensus teaches nobody."""

import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import replace
from fed_distill.methods.selective_fd import SelectiveFD
from fed_distill.methods.selective_fd_kulsif import SelectiveFDKuLSIF
from fed_distill.payloads.density_selected_soft_labels import DensitySelectedSoftLabels
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels
from fed_distill.transport.messages import Uplink

PREDICTED = torch.tensor([[0.4, 0.3, 0.3], [0.05, 0.05, 0.9], [0.7, 0.2, 0.1]])
LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 1.0, 0.0]])


def answers(name, places, *rows):
    answered = torch.zeros(3, dtype=torch.bool)
    answered[list(places)] = True
    return Uplink(name, 1, (SelectedSoftLabels(torch.tensor(rows), answered),))


@pytest.fixture
def answered_uplinks():
    """The first example is answered by both (and not alike), the second by one, the third by nobody."""
    return [answers("a", [0, 1], [0.9, 0.1, 0.0], [0.1, 0.8, 0.1]), answers("b", [0], [0.1, 0.1, 0.8])]


@pytest.mark.parametrize(("share", "expected"), [(0.1, [1]), (0.5, [1, 2]), (1.0, [0, 1, 2])])
def test_a_merchant_answers_what_it_is_most_confident_of(state, trained, share, expected):
    method = SelectiveFD(answer_share=share)
    up = method.uplink(replace(trained, predict_proxy=lambda: PREDICTED), method.broadcast(state))
    assert torch.equal(up.need(SelectedSoftLabels).answered.nonzero().flatten(), torch.tensor(expected))
    assert torch.equal(up.need(SelectedSoftLabels).probabilities, PREDICTED[expected])
    assert up.kinds == set(SelectiveFD.sends) == {SelectedSoftLabels}


def test_equal_confidence_is_answered_in_the_order_of_the_proxy_set(state, trained):
    same = torch.tensor([[0.5, 0.3, 0.2]] * 3)
    up = SelectiveFD(answer_share=0.6).uplink(replace(trained, predict_proxy=lambda: same), None)
    assert up.need(SelectedSoftLabels).answered.tolist() == [True, True, False]


def test_the_consensus_is_the_mean_over_those_who_answer(state, answered_uplinks, server):
    consensus = SelectiveFD().merge(state, iter(answered_uplinks), server).consensus
    torch.testing.assert_close(consensus, torch.tensor([[0.5, 0.1, 0.4], [0.1, 0.8, 0.1], [1 / 3, 1 / 3, 1 / 3]]))
    assert consensus.dtype == state.teacher_labels.dtype


def test_the_teacher_takes_part_by_its_share_and_alone_where_nobody_answers(state, answered_uplinks, server):
    consensus = SelectiveFD(teacher_share=0.5).merge(state, answered_uplinks, server).consensus
    expected = torch.stack(
        [
            0.5 * state.teacher_labels[0] + 0.5 * torch.tensor([0.5, 0.1, 0.4]),
            0.5 * state.teacher_labels[1] + 0.5 * torch.tensor([0.1, 0.8, 0.1]),
            state.teacher_labels[2],
        ]
    )
    torch.testing.assert_close(consensus, expected)


def test_the_global_student_is_taught_what_is_clear_and_the_teacher_elsewhere(state, answered_uplinks, server):
    """Entropies of the consensus, of log 3: 0.86, 0.58 and 1."""
    merged = SelectiveFD(max_entropy=0.7).merge(state, answered_uplinks, server)
    taught = torch.stack([state.teacher_labels[0], torch.tensor([0.1, 0.8, 0.1]), state.teacher_labels[2]])
    torch.testing.assert_close(merged.weights["w"], taught)


def test_merchants_digest_what_is_clear_and_nothing_else(state, answered_uplinks, loss_of, server):
    method = SelectiveFD(max_entropy=0.7, digest_epochs=3, local_epochs=2)
    digest, revisit = method.plan(method.broadcast(method.merge(state, answered_uplinks, server))).phases
    assert (digest.data, digest.epochs, revisit.data, revisit.epochs) == ("proxy", 3, "private", 2)
    losses = loss_of(digest, LOGITS)
    target = torch.tensor([[0.1, 0.8, 0.1]])
    expected = kl_div(log_softmax(LOGITS[1:2], dim=-1), target, reduction="none").sum()
    torch.testing.assert_close(losses, torch.stack([torch.tensor(0.0), 3.0 * expected, torch.tensor(0.0)]))
    together = loss_of(digest, LOGITS)
    for place in range(3):
        references = {name: values[place : place + 1] for name, values in digest.references.items()}
        alone = loss_of(digest, LOGITS[place : place + 1], **references)
        torch.testing.assert_close(alone, together[place : place + 1], atol=0, rtol=0)


def test_what_nobody_answers_is_dropped_even_by_the_laxest_selector(state, answered_uplinks, server):
    method = SelectiveFD(max_entropy=0.99)
    digest, _ = method.plan(method.broadcast(method.merge(state, answered_uplinks, server))).phases
    assert digest.references["example_weights"].tolist() == [1.5, 1.5, 0.0]


def test_where_all_is_ambiguous_only_private_examples_are_trained(state, answered_uplinks, server):
    method = SelectiveFD(max_entropy=0.1)
    merged = method.merge(state, answered_uplinks, server)
    assert torch.equal(merged.weights["w"], state.teacher_labels)
    (phase,) = method.plan(method.broadcast(merged)).phases
    assert phase.data == "private"


def test_a_consensus_of_nobody_is_refused(state, uplinks, server):
    with pytest.raises(UplinkRejected, match="no merchant sent soft labels"):
        SelectiveFD().merge(state, uplinks, server)


def test_by_density_a_merchant_answers_what_is_most_typical_of_its_data(state, trained, server):
    """Of the conftest's merchant: the second example, then the third."""
    method = SelectiveFDKuLSIF(answer_share=0.5)
    up = method.uplink(trained, method.broadcast(state))
    sent = up.need(DensitySelectedSoftLabels)
    assert up.kinds == {*SelectiveFDKuLSIF.sends}
    assert sent.answered.tolist() == [False, True, True]
    assert torch.equal(sent.probabilities, trained.predict_proxy()[1:])
    consensus = method.merge(state, [up], server).consensus
    torch.testing.assert_close(consensus, torch.tensor([[1 / 3] * 3, [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]))

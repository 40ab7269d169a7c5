"""FedAvg sends the student, trains on private labels, and leaves the merging to the aggregator."""

import math

import torch

from fed_distill.methods.fedavg import FedAvg
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights


def test_it_broadcasts_the_global_student_of_the_next_round(state):
    down = FedAvg().broadcast(state)
    assert (down.round, down.weights, down.kinds) == (5, state.weights, {StudentWeights})


def test_merchants_train_on_their_labels_only(state, loss_of):
    method = FedAvg(local_epochs=2.5)
    (phase,) = method.plan(method.broadcast(state)).phases
    assert (phase.data, phase.epochs, phase.proximal_mu) == ("private", 2.5, 0.0)
    loss = loss_of(phase, torch.tensor([[0.0, math.log(3.0), 0.0]]), labels=torch.tensor([1]))
    torch.testing.assert_close(loss, torch.tensor([-math.log(3 / 5)]))


def test_the_uplink_is_how_far_the_weights_moved(state, trained):
    up = FedAvg().uplink(trained, FedAvg().broadcast(state))
    assert (up.merchant, up.examples, up.kinds) == ("a", 10, {StudentUpdate})
    assert up.need(StudentUpdate).arrays["w"].tolist() == [2.0, -2.0]


def test_merging_asks_the_aggregator_and_ends_the_round(state, uplinks, server):
    merged = FedAvg().merge(state, uplinks, server)
    assert merged.round == 5
    assert merged.weights["w"].tolist() == [111.0, 222.0]
    assert server.plans == []
    assert state.round == 4
    assert state.weights["w"].tolist() == [1.0, 2.0]

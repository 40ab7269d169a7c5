"""FedAvg with distillation: private labels first, then the teacher's soft labels on the proxy set."""

import torch

from fed_distill.methods.fedavg_kd import FedAvgKD
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate


def test_the_teachers_soft_labels_go_along(state):
    down = FedAvgKD().broadcast(state)
    assert (down.round, down.weights, down.need(SoftLabels).probabilities) == (5, state.weights, state.teacher_labels)


def test_merchants_train_on_their_labels_and_then_on_the_teacher(state):
    method = FedAvgKD(local_epochs=2, proxy_steps=7, proxy_rate_scale=0.1)
    private, proxy = method.plan(method.broadcast(state)).phases
    assert (private.data, private.epochs) == ("private", 2)
    assert (proxy.data, proxy.steps, proxy.epochs) == ("proxy", 7, None)
    assert (private.learning_rate_scale, proxy.learning_rate_scale) == (1.0, 0.1)
    assert torch.equal(proxy.references["soft_labels"], state.teacher_labels)


def test_the_distillation_loss_is_hintons_at_the_temperature(state, loss_of):
    method = FedAvgKD(temperature=2.0)
    proxy = method.plan(method.broadcast(state)).phases[1]
    logits = torch.tensor([[1.0, -1.0, 0.5], [0.0, 0.0, 0.0], [2.0, 0.0, -3.0]])
    p = (state.teacher_labels.log() / 2).softmax(dim=-1)
    q = (logits / 2).softmax(dim=-1)
    torch.testing.assert_close(loss_of(proxy, logits), 4 * (p * (p / q).log()).sum(dim=-1))


def test_a_student_that_agrees_with_the_teacher_has_no_loss(state, loss_of):
    proxy = FedAvgKD().plan(FedAvgKD().broadcast(state)).phases[1]
    loss = loss_of(proxy, state.teacher_labels.log() + 3.0)
    torch.testing.assert_close(loss, torch.zeros(3), atol=1e-6, rtol=0)


def test_only_weights_come_back(state, trained, uplinks, server):
    up = FedAvgKD().uplink(trained, FedAvgKD().broadcast(state))
    assert up.kinds == {StudentUpdate}
    assert up.need(StudentUpdate).arrays["w"].tolist() == [2.0, -2.0]
    assert FedAvgKD().merge(state, uplinks, server).weights["w"].tolist() == [111.0, 222.0]

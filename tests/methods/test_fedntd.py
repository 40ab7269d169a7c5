"""FedNTD keeps what the global student says between the classes that an example is not of."""

import pytest
import torch
from torch.nn import KLDivLoss
from torch.nn.functional import cross_entropy

from fed_distill.config import FederationConfig, TrainerConfig
from fed_distill.errors import ConfigError
from fed_distill.methods.fedntd import FedNTD, not_true
from fed_distill.payloads.student_update import StudentUpdate

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 1.0, 0.0], [0.0, 3.0, 1.0]])
GLOBAL = torch.tensor([[0.3, -0.5, 1.0], [2.0, 0.2, 0.3], [0.0, 0.0, 0.0], [1.0, -3.0, 2.0]])
LABELS = torch.tensor([0, 1, 2, 1])


def test_the_loss_is_that_of_the_paper(state, loss_of):
    """Eq. 4 to 6, one example at a time, with torch's own divergence over the logits that are left."""
    method = FedNTD(local_epochs=3, beta=0.7, temperature=2.0)
    (phase,) = method.plan(method.broadcast(state)).phases
    assert (phase.data, phase.epochs) == ("private", 3)
    losses = loss_of(phase, LOGITS, labels=LABELS, global_probabilities=GLOBAL.softmax(dim=-1))
    for place, (own, theirs, label) in enumerate(zip(LOGITS, GLOBAL, LABELS.tolist(), strict=True)):
        left = [number for number in range(3) if number != label]
        log_q = (own[left] / 2.0).log_softmax(dim=-1).unsqueeze(0)
        p = (theirs[left] / 2.0).softmax(dim=-1).unsqueeze(0)
        expected = cross_entropy(own, torch.tensor(label)) + 0.7 * 2.0**2 * KLDivLoss(reduction="batchmean")(log_q, p)
        torch.testing.assert_close(losses[place], expected)


def test_nothing_pulls_where_the_merchant_keeps_what_the_global_student_says(state, loss_of):
    method = FedNTD()
    (phase,) = method.plan(method.broadcast(state)).phases
    raised = LOGITS + 5.0 * torch.nn.functional.one_hot(LABELS, 3)  # the true class is the labels' business alone
    losses = loss_of(phase, raised, labels=LABELS, global_probabilities=LOGITS.softmax(dim=-1))
    torch.testing.assert_close(losses, cross_entropy(raised, LABELS, reduction="none"))


def test_merchants_ask_the_global_student_of_their_own_examples(state):
    plan = FedNTD().plan(FedNTD().broadcast(state))
    (wanted,) = plan.predicted("private").values()
    assert (wanted.by, wanted.what) == ("global", "probabilities")
    assert not plan.looks_back


def test_the_true_class_is_left_out():
    values = torch.arange(12.0).view(4, 3)
    assert not_true(values, LABELS).tolist() == [[1.0, 2.0], [3.0, 5.0], [6.0, 7.0], [9.0, 11.0]]


@pytest.mark.parametrize("classes", [3, 4])
def test_a_task_of_two_classes_is_refused(classes):
    FedNTD().check(FederationConfig(), TrainerConfig(), classes)
    with pytest.raises(ConfigError, match="of 2 classes"):
        FedNTD().check(FederationConfig(), TrainerConfig(), 2)


def test_weights_travel_as_in_fedavg(state, trained, uplinks, server):
    down = FedNTD().broadcast(state)
    up = FedNTD().uplink(trained, down)
    assert (down.weights, up.kinds) == (state.weights, {StudentUpdate})
    assert FedNTD().merge(state, uplinks, server).weights["w"].tolist() == [111.0, 222.0]

"""FedProto: merchants send mean representations by class, and pull their own towards the mean of all."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fed_distill.errors import TrainingError, UplinkRejected
from fed_distill.methods.base import replace
from fed_distill.methods.fedproto import FedProto
from fed_distill.models.base import Outputs
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.transport.messages import Uplink

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 1.0, 0.0]])
LABELS = torch.tensor([0, 1, 2])
OWN = torch.tensor([[1.0, 0.0], [2.0, 2.0], [5.0, -3.0]])
"""Representations of the three examples."""


def prototypes(*rows):
    """Rows of means; None for a class that is absent."""
    given = torch.tensor([[0.0, 0.0] if row is None else row for row in rows])
    return Prototypes(given, torch.tensor([row is not None for row in rows]))


@pytest.fixture
def told():
    """Two merchants, unlike in size and in what classes they have; nobody has the last class."""
    return [
        Uplink("a", 10, (prototypes([1.0, 4.0], [2.0, 0.0], None),)),
        Uplink("b", 90, (prototypes([3.0, 0.0], None, None),)),
    ]


def losses(phase, own=OWN, rows=slice(None), **references):
    outputs = Outputs(LOGITS[rows], (own[rows].unsqueeze(1),))
    return phase.objective(outputs, {name: value[rows] for name, value in references.items()})


def next_phase(method, state, told, server):
    (phase,) = method.plan(method.broadcast(method.merge(state, told, server))).phases
    return phase


def test_in_the_first_round_merchants_train_on_their_labels_alone(state):
    down = FedProto().broadcast(state)
    assert (down.round, down.payloads) == (5, ())
    (phase,) = FedProto(local_epochs=3).plan(down).phases
    assert (phase.data, phase.epochs) == ("private", 3)
    torch.testing.assert_close(losses(phase, labels=LABELS), cross_entropy(LOGITS, LABELS, reduction="none"))


def test_a_merchant_sends_the_means_of_its_representations_by_class():
    sent = Prototypes.over(torch.tensor([[1.0, 2.0], [5.0, 0.0], [3.0, 4.0]]), torch.tensor([2, 0, 2]), 4)
    assert sent.means.tolist() == [[5.0, 0.0], [0.0, 0.0], [2.0, 3.0], [0.0, 0.0]]
    assert sent.present.tolist() == [True, False, True, False]


def test_the_mean_is_over_the_merchants_that_have_the_class(state, told, server):
    merged = FedProto().merge(state, told, server)
    assert merged.round == 5
    assert merged.kept["means"].tolist() == [[2.0, 2.0], [2.0, 0.0], [0.0, 0.0]]
    assert merged.kept["present"].tolist() == [True, True, False]


def test_a_class_that_nobody_has_any_more_keeps_its_mean(state, told, server):
    first = FedProto().merge(state, told, server)
    then = FedProto().merge(first, [Uplink("b", 1, (prototypes(None, None, [7.0, 8.0]),))], server)
    assert then.kept["means"].tolist() == [[2.0, 2.0], [2.0, 0.0], [7.0, 8.0]]
    assert then.kept["present"].tolist() == [True, True, True]


def test_later_the_loss_adds_the_distance_to_the_prototype_of_the_label(state, told, server):
    """Means over two entries of squared differences: ((1 - 2)^2 + (0 - 2)^2) / 2, ((2 - 2)^2 + 2^2) / 2, none."""
    phase = next_phase(FedProto(regularization=0.5), state, told, server)
    assert phase.hidden
    expected = cross_entropy(LOGITS, LABELS, reduction="none") + 0.5 * torch.tensor([2.5, 2.0, 0.0])
    torch.testing.assert_close(losses(phase, labels=LABELS), expected)


def test_a_loss_does_not_depend_on_the_others_of_its_batch(state, told, server):
    phase = next_phase(FedProto(), state, told, server)
    together = losses(phase, labels=LABELS)
    for place in range(3):
        alone = losses(phase, rows=slice(place, place + 1), labels=LABELS)
        torch.testing.assert_close(alone, together[place : place + 1], atol=0, rtol=0)


def test_the_server_trains_on_the_teachers_labels_and_the_distance_expected_over_them(state, told, server):
    """Squared distances to (2, 2) and (2, 0), halved: 2.5 and 0.5; 0 and 2; 17 and 9. The last class has none."""
    merged = FedProto(regularization=0.5, server_epochs=2).merge(state, told, server)
    assert merged.weights is state.weights  # what the recording services return
    (phase,) = server.plans[-1].phases
    assert (phase.data, phase.epochs, phase.hidden) == ("proxy", 2, True)
    teacher = phase.references["soft_labels"]
    assert torch.equal(teacher, state.teacher_labels)
    divergence = (teacher * (teacher.log() - LOGITS.log_softmax(dim=-1))).sum(dim=-1)
    distance = torch.tensor([0.7 * 2.5 + 0.2 * 0.5, 0.1 * 0.0 + 0.8 * 2.0, 0.25 * 17.0 + 0.25 * 9.0])
    torch.testing.assert_close(losses(phase, soft_labels=teacher), divergence + 0.5 * distance)


def test_only_prototypes_leave_a_merchant(state, trained):
    up = FedProto().uplink(trained, FedProto().broadcast(state))
    assert up.kinds == set(FedProto.sends) == {Prototypes}
    assert up.need(Prototypes).means.tolist() == [[4.0, 2.0], [0.0, 0.0], [1.0, -1.0]]


def test_students_of_another_width_are_refused_with_the_remedy(state, told, server):
    phase = next_phase(FedProto(), state, told, server)
    with pytest.raises(TrainingError, match="the student's has 3, the prototypes have 2; choose students of equal"):
        losses(phase, torch.ones(3, 3), labels=LABELS)


def test_prototypes_of_nobody_are_refused(state, told, server):
    with pytest.raises(UplinkRejected, match="no merchant sent prototypes"):
        FedProto().merge(state, [replace(one, payloads=()) for one in told], server)

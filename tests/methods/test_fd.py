"""FD: merchants send what their students make of each class, and learn what all make of it."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fed_distill.errors import UplinkRejected
from fed_distill.methods.fd import FD
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.transport.messages import Uplink

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 1.0, 0.0]])
LABELS = torch.tensor([0, 1, 2])


def means(*rows):
    """Class means of rows; None for a class that is absent."""
    given = torch.tensor([[0.0] * 3 if row is None else row for row in rows])
    return ClassMeans(given, torch.tensor([row is not None for row in rows]))


@pytest.fixture
def told():
    """Two merchants, unlike in size and in what classes they have; nobody has the last class."""
    return [
        Uplink("a", 10, (means([0.8, 0.1, 0.1], [0.2, 0.6, 0.2], None),)),
        Uplink("b", 90, (means([0.6, 0.3, 0.1], None, None),)),
    ]


def test_in_the_first_round_merchants_train_on_their_labels_alone(state, loss_of):
    down = FD().broadcast(state)
    assert (down.round, down.payloads) == (5, ())
    (phase,) = FD(local_epochs=3).plan(down).phases
    assert (phase.data, phase.epochs) == ("private", 3)
    expected = cross_entropy(LOGITS, LABELS, reduction="none")
    torch.testing.assert_close(loss_of(phase, LOGITS, labels=LABELS), expected)


def test_later_the_loss_adds_gamma_times_the_cross_entropy_with_the_mean_of_the_class(state, told, loss_of, server):
    method = FD(gamma=0.5)
    (phase,) = method.plan(method.broadcast(method.merge(state, told, server))).phases
    log_q = LOGITS.log_softmax(dim=-1)
    of_class = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.0, 0.0, 0.0]])  # of the last class nothing is known
    expected = torch.stack([-log_q[place, place] - 0.5 * (of_class[place] * log_q[place]).sum() for place in range(3)])
    torch.testing.assert_close(loss_of(phase, LOGITS, labels=LABELS), expected)


def test_a_loss_does_not_depend_on_the_others_of_its_batch(state, told, loss_of, server):
    (phase,) = FD().plan(FD().broadcast(FD().merge(state, told, server))).phases
    together = loss_of(phase, LOGITS, labels=LABELS)
    for place in range(3):
        rows = slice(place, place + 1)
        alone = loss_of(phase, LOGITS[rows], labels=LABELS[rows])
        torch.testing.assert_close(alone, together[rows], atol=0, rtol=0)


def test_only_class_means_leave_a_merchant(state, trained):
    up = FD().uplink(trained, FD().broadcast(state))
    assert up.kinds == set(FD.sends) == {ClassMeans}
    assert torch.equal(up.need(ClassMeans).probabilities, trained.class_means().probabilities)
    assert FD.keeps == "own_student"


def test_the_global_student_is_taught_the_teacher_seen_through_the_class_means(state, told, server):
    merged = FD().merge(state, iter(told), server)
    assert merged.round == 5
    rows = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.0, 0.0, 1.0]])  # the last class keeps its own label
    seen = torch.stack([sum(p * row for p, row in zip(one, rows, strict=True)) for one in state.teacher_labels])
    torch.testing.assert_close(merged.weights["w"], seen)
    mixed = FD(teacher_share=0.25).merge(state, told, server)
    torch.testing.assert_close(mixed.weights["w"], 0.25 * state.teacher_labels + 0.75 * seen)


def test_a_class_that_nobody_tells_of_this_time_keeps_its_mean(state, told, server):
    first = FD().merge(state, told, server)
    second = FD().merge(first, [Uplink("c", 1, (means(None, None, [0.1, 0.1, 0.8]),))], server)
    down = FD().broadcast(second).need(ClassMeans)
    torch.testing.assert_close(down.probabilities, torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.6, 0.2], [0.1, 0.1, 0.8]]))
    assert down.present.all()


def test_a_merge_without_class_means_is_refused(state, uplinks, server):
    with pytest.raises(UplinkRejected, match="no merchant sent class means"):
        FD().merge(state, uplinks, server)

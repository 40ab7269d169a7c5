"""PATE: merchants vote, the server's tally answers, and the global student is taught the answers."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import replace
from fed_distill.methods.pate import PATE
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.payloads.votes import Votes
from fed_distill.transport.messages import Uplink

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 1.0, 0.0]])


@pytest.fixture
def voters():
    """Five merchants of unequal size: class 0 wins the first example by 3 to 2, all agree on the last."""
    votes = ([0, 1, 2], [0, 2, 2], [0, 1, 2], [1, 1, 2], [1, 0, 2])
    return [
        Uplink(f"m{place}", 10**place, (Votes(torch.tensor(classes, dtype=torch.int64)),))
        for place, classes in enumerate(votes)
    ]


@pytest.fixture
def merged(state, voters, server):
    """A function: the state after a merge whose tally gives ``answers``."""

    def merge(answers, **options):
        server.answers = torch.tensor(answers)
        return PATE(**options).merge(state, voters, server)

    return merge


def test_merchants_train_the_global_student_on_private_labels_alone(state, loss_of):
    method = PATE(local_epochs=3)
    down = method.broadcast(state)
    assert method.keeps != "own_student"
    assert (down.round, down.kinds) == (5, {StudentWeights})
    assert down.weights is state.weights
    (phase,) = method.plan(down).phases
    assert (phase.data, phase.epochs) == ("private", 3)
    labels = torch.tensor([0, 2, 1])
    torch.testing.assert_close(
        loss_of(phase, LOGITS, labels=labels), cross_entropy(LOGITS, labels, reduction="none"), atol=0, rtol=0
    )


def test_only_the_predicted_classes_of_proxy_examples_leave_a_merchant(state, trained):
    predicted = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
    up = PATE().uplink(replace(trained, predict_proxy=lambda: predicted), PATE().broadcast(state))
    assert torch.equal(up.need(Votes).classes, torch.tensor([1, 0, 2]))
    assert up.need(Votes).classes.dtype == torch.int64
    assert up.kinds == set(PATE.sends) == {Votes}


def test_the_tally_is_asked_once_with_every_merchant_counting_the_same(state, voters, server):
    merged = PATE().merge(state, iter(voters), server)
    (histogram,) = server.counted
    assert torch.equal(histogram, torch.tensor([[3, 2, 0], [1, 3, 1], [0, 0, 5]]))
    assert histogram.dtype == torch.int64
    assert merged.round == 5


def test_without_a_mechanism_the_plurality_is_taught(state, voters, server):
    taught = PATE().merge(state, voters, server).weights
    assert torch.equal(taught["w"], torch.eye(3))
    assert taught["at"] == 1.0  # a class softened by another temperature is no cross-entropy


def test_an_example_without_an_answer_keeps_the_teachers_soft_labels(merged, state):
    taught = merged([2, -1, 0]).weights["w"]
    assert torch.equal(taught, torch.stack([torch.eye(3)[2], state.teacher_labels[1], torch.eye(3)[0]]))


def test_an_answer_is_mixed_with_the_teachers_soft_labels_by_share(merged):
    target = torch.tensor([[0.175, 0.05, 0.775], [0.775, 0.2, 0.025], [0.0625, 0.8125, 0.125]])
    torch.testing.assert_close(merged([2, 0, 1], teacher_share=0.25).weights["w"], target)


def test_without_any_answer_the_student_stays_as_it_was(merged, state):
    after = merged([-1, -1, -1])
    assert after.weights is state.weights
    assert after.round == 5


def test_a_merge_without_votes_is_refused(state, uplinks, server):
    with pytest.raises(UplinkRejected, match="no merchant sent votes that could be counted"):
        PATE().merge(state, uplinks, server)

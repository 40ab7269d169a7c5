"""PATE: merchants vote, the server's tally answers, and only answered examples teach the global student."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import replace
from fed_distill.methods.pate import PATE
from fed_distill.transport.messages import Uplink

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 1.0, 0.0]])


@pytest.fixture
def voters():
    """Five merchants of unequal size: class 0 wins the first example by 3 to 2, all agree on the last."""
    votes = ([0, 1, 2], [0, 2, 2], [0, 1, 2], [1, 1, 2], [1, 0, 2])
    return [
        Uplink(f"m{place}", 10**place, votes=torch.tensor(classes, dtype=torch.int64))
        for place, classes in enumerate(votes)
    ]


@pytest.fixture
def merged(state, voters):
    """A function: the state after a merge whose tally gives ``answers``."""

    def merge(answers, **options):
        return PATE(**options).merge(replace(state, tally=lambda _: torch.tensor(answers)), voters)

    return merge


def test_merchants_train_the_global_student_on_private_labels_alone(state, loss_of):
    method = PATE(local_epochs=3)
    down = method.broadcast(state)
    assert not method.personal
    assert (down.round, down.soft_labels) == (5, None)
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
    assert torch.equal(up.votes, torch.tensor([1, 0, 2]))
    assert up.votes.dtype == torch.int64
    assert up.parts == set(PATE.sends) == {"votes"}


def test_the_tally_is_asked_once_with_every_merchant_counting_the_same(state, voters):
    asked = []

    def tally(histogram):
        asked.append(histogram)
        return histogram.argmax(dim=-1)

    merged = PATE().merge(replace(state, tally=tally), iter(voters))
    (histogram,) = asked
    assert torch.equal(histogram, torch.tensor([[3, 2, 0], [1, 3, 1], [0, 0, 5]]))
    assert histogram.dtype == torch.int64
    assert merged.round == 5
    assert merged.weights is state.weights


def test_without_a_mechanism_the_plurality_is_learned(state, voters):
    (phase,) = PATE().merge(state, voters).server_plan.phases
    assert torch.equal(phase.references["soft_labels"], torch.eye(3))
    assert torch.equal(phase.references["example_weights"], torch.ones(3))


def test_the_server_learns_the_answers_and_nothing_from_the_rest(merged, loss_of):
    (phase,) = merged([2, -1, 0], server_epochs=4).server_plan.phases
    assert (phase.data, phase.epochs) == ("proxy", 4)
    losses = loss_of(phase, LOGITS)
    expected = cross_entropy(LOGITS[[0, 2]], torch.tensor([2, 0]), reduction="none")
    assert losses[1] == 0.0
    torch.testing.assert_close(losses[[0, 2]], 1.5 * expected)  # two of three are answered
    torch.testing.assert_close(losses.mean(), expected.mean())  # so the mean over all is the mean over the answered


def test_an_unanswered_example_has_no_gradient(merged, loss_of):
    (phase,) = merged([2, -1, 0], teacher_share=0.5, temperature=3.0).server_plan.phases
    logits = LOGITS.clone().requires_grad_()
    loss_of(phase, logits).sum().backward()
    assert torch.equal(logits.grad[1], torch.zeros(3))
    assert bool((logits.grad[[0, 2]] != 0).all())


def test_an_answer_is_mixed_with_the_teachers_soft_labels_by_share(merged, state, loss_of):
    (phase,) = merged([2, 0, 1], teacher_share=0.25).server_plan.phases
    target = torch.tensor([[0.175, 0.05, 0.775], [0.775, 0.2, 0.025], [0.0625, 0.8125, 0.125]])
    torch.testing.assert_close(phase.references["soft_labels"], target)
    expected = kl_div(log_softmax(LOGITS, dim=-1), target, reduction="none").sum(dim=-1)
    torch.testing.assert_close(loss_of(phase, LOGITS), expected)


def test_a_loss_does_not_depend_on_the_others_of_its_batch(merged, loss_of):
    (phase,) = merged([2, -1, 0], temperature=2.0).server_plan.phases
    together = loss_of(phase, LOGITS)
    for place in range(3):
        references = {name: values[place : place + 1] for name, values in phase.references.items()}
        alone = loss_of(phase, LOGITS[place : place + 1], **references)
        torch.testing.assert_close(alone, together[place : place + 1], atol=0, rtol=0)


def test_without_any_answer_the_student_stays_as_it_was(merged, state):
    after = merged([-1, -1, -1])
    assert after.server_plan.phases == ()
    assert after.weights is state.weights
    assert after.round == 5


def test_a_plan_of_the_round_before_is_not_trained_again(state, voters):
    before = PATE().merge(state, voters)
    assert before.server_plan.phases
    after = PATE().merge(replace(before, tally=lambda _: torch.full((3,), -1)), voters)
    assert after.server_plan.phases == ()


def test_a_merge_without_votes_is_refused(state, uplinks):
    with pytest.raises(UplinkRejected, match="no merchant sent votes that could be counted"):
        PATE().merge(state, uplinks)

"""FML trains a merchant's own student and the shared one on each other's predictions, and sends the shared one."""

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from fed_distill.methods.fml import FML
from fed_distill.models.base import Outputs
from fed_distill.payloads.student_update import StudentUpdate

OWN = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])
SHARED = torch.tensor([[0.0, 1.0, -1.0], [1.0, -2.0, 0.5]])
LABELS = torch.tensor([0, 2])


def divergence(p, q):
    """KL(p || q) of two rows of probabilities."""
    return sum(float(one) * (float(one.log()) - float(other.log())) for one, other in zip(p, q, strict=True))


def test_the_loss_is_that_of_the_paper(state):
    method = FML(local_epochs=2, alpha=0.3, beta=0.8)
    plan = method.plan(method.broadcast(state))
    (phase,) = plan.phases
    assert plan.pair
    assert (phase.data, phase.epochs) == ("private", 2)
    losses = phase.objective(Outputs(OWN, shared=Outputs(SHARED)), {"labels": LABELS})
    for place, (own, shared, label) in enumerate(zip(OWN, SHARED, LABELS, strict=True)):
        p, q = own.softmax(dim=-1), shared.softmax(dim=-1)
        local = 0.3 * float(cross_entropy(own, label)) + 0.7 * divergence(q, p)
        meme = 0.8 * float(cross_entropy(shared, label)) + 0.2 * divergence(p, q)
        assert float(losses[place]) == pytest.approx(local + meme, rel=1e-5)


def test_each_student_learns_from_the_other_as_it_is(state):
    """The gradient of a softmax' cross-entropy or divergence is its probabilities without the target's."""
    method = FML(alpha=0.3, beta=0.8)
    (phase,) = method.plan(method.broadcast(state)).phases
    own, shared = OWN.clone().requires_grad_(), SHARED.clone().requires_grad_()
    phase.objective(Outputs(own, shared=Outputs(shared)), {"labels": LABELS}).sum().backward()
    p, q, truth = OWN.softmax(dim=-1), SHARED.softmax(dim=-1), one_hot(LABELS, 3)
    torch.testing.assert_close(own.grad, 0.3 * (p - truth) + 0.7 * (p - q))
    torch.testing.assert_close(shared.grad, 0.8 * (q - truth) + 0.2 * (q - p))


def test_the_shared_students_are_averaged_and_the_own_ones_kept(state, trained, uplinks, server):
    method = FML()
    down = method.broadcast(state)
    up = method.uplink(trained, down)
    assert (down.weights, up.kinds) == (state.weights, {StudentUpdate})
    assert method.merge(state, uplinks, server).weights["w"].tolist() == [111.0, 222.0]
    assert FML.keeps == "own_student"

"""MOON draws a merchant's representations to the global student's, and away from its own of before."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from fed_distill.errors import TrainingError
from fed_distill.methods.moon import MOON
from fed_distill.models.base import Outputs
from fed_distill.training.plan import Predicted

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])
LABELS = torch.tensor([0, 2])
OWN = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
THEIRS = torch.tensor([[0.0, 3.0], [0.6, 0.8]])
BEFORE = torch.tensor([[-2.0, 0.0], [0.8, -0.6]])
SIMILARITIES = [(0.0, -1.0), (1.0, 0.0)]
"""Cosines of each own representation with the global and with the previous one."""


def phase_of(state, **options):
    method = MOON(**options)
    (phase,) = method.plan(method.broadcast(state)).phases
    return phase


def losses(phase, own, theirs, before):
    """Of a student whose representation is its only hidden state's."""
    references = {"labels": LABELS, "global_representation": theirs, "previous_representation": before}
    return phase.objective(Outputs(LOGITS, (own.unsqueeze(1),)), references)


def test_the_loss_is_that_of_the_paper(state):
    """Eq. 3 and 4 from cosines that can be read off."""
    found = losses(phase_of(state, mu=0.4, temperature=0.5), OWN, THEIRS, BEFORE)
    for place, (toward, away) in enumerate(SIMILARITIES):
        near, far = math.exp(toward / 0.5), math.exp(away / 0.5)
        contrast = -math.log(near / (near + far))
        expected = float(cross_entropy(LOGITS[place], LABELS[place])) + 0.4 * contrast
        assert float(found[place]) == pytest.approx(expected, rel=1e-6)


def test_without_a_student_of_before_the_contrast_does_not_pull(state):
    own = OWN.clone().requires_grad_()
    losses(phase_of(state), own, THEIRS, THEIRS).sum().backward()
    assert own.grad.abs().max() < 1e-6


def test_merchants_represent_their_own_examples_and_keep_their_student(state):
    plan = MOON().plan(MOON().broadcast(state))
    assert set(plan.predicted("private").values()) == {
        Predicted("global", "representation"),
        Predicted("previous", "representation"),
    }
    assert plan.looks_back
    assert all(phase.hidden for phase in plan.phases)
    assert MOON.keeps != "own_student"


def test_a_student_without_hidden_states_is_refused(state):
    references = {"labels": LABELS, "global_representation": THEIRS, "previous_representation": BEFORE}
    with pytest.raises(TrainingError, match="no representation"):
        phase_of(state).objective(Outputs(LOGITS), references)

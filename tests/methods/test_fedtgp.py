"""FedTGP: the server trains prototypes that merchants' ones tell apart."""

import math

import pytest
import torch

from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import replace
from fed_distill.methods.fedproto import FedProto
from fed_distill.methods.fedtgp import FedTGP, contrast, margin
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.transport.messages import Uplink


def prototypes(*rows):
    """Rows of means; None for a class that is absent."""
    given = torch.tensor([[0.0, 0.0] if row is None else row for row in rows])
    return Prototypes(given, torch.tensor([row is not None for row in rows]))


SENT = {
    "a": prototypes([0.0, 1.0], [3.0, 0.0], None),
    "b": prototypes([1.0, 2.0], None, None),
    "c": prototypes([2.0, 0.0], [4.0, 4.0], None),
}
"""Means: (1, 1) and (3.5, 2), which are apart by sqrt(6.25 + 1)."""


@pytest.fixture
def told():
    return [Uplink(name, 10, (sent,)) for name, sent in SENT.items()]


def slow_loss(vectors, present, least):
    """Eq. 8 as it is written, one prototype after another."""
    losses = []
    for sent in SENT.values():
        for own in range(3):
            if not sent.present[own]:
                continue
            terms = {}
            for other in range(3):
                if present[other]:
                    apart = math.dist(sent.means[own].tolist(), vectors[other])
                    terms[other] = math.exp(-(apart + (least if other == own else 0.0)))
            losses.append(-math.log(terms[own] / sum(terms.values())))
    return sum(losses) / len(losses)


def slow_step(vectors, present, least, rate):
    """A step along the difference quotient."""
    tiny, moved = 1e-5, [list(row) for row in vectors]
    for place in range(3):
        for entry in range(2):
            ends = []
            for sign in (1, -1):
                changed = [list(row) for row in vectors]
                changed[place][entry] += sign * tiny
                ends.append(slow_loss(changed, present, least))
            moved[place][entry] -= rate * (ends[0] - ends[1]) / (2 * tiny)
    return moved


def test_the_margin_is_the_largest_distance_to_the_nearest_other_class_and_is_capped():
    """The nearest of (0, 0) and (3, 4) are each other, at 5; that of (3, 16) is at 12."""
    means = prototypes([0.0, 0.0], [3.0, 4.0], [3.0, 16.0])
    assert margin(means, 100.0) == pytest.approx(12.0)
    assert margin(means, 7.0) == 7.0
    assert margin(prototypes(None, [3.0, 4.0], None), 100.0) == 100.0


def test_the_loss_is_that_of_the_paper():
    vectors, present = [[0.5, 0.5], [3.0, 1.0], [0.0, 0.0]], torch.tensor([True, True, False])
    own = torch.cat([sent.means[sent.present] for sent in SENT.values()])
    found = contrast(own, torch.tensor([0, 1, 0, 0, 1]), torch.tensor(vectors), present, 0.7)
    assert float(found) == pytest.approx(slow_loss(vectors, present, 0.7), rel=1e-5)


def test_prototypes_are_trained_from_the_mean_and_then_from_the_last(state, told, server):
    method = FedTGP(server_steps=3, server_rate=0.5)
    expected, present = [[1.0, 1.0], [3.5, 2.0], [0.0, 0.0]], torch.tensor([True, True, False])
    for _ in range(2):
        state = method.merge(state, iter(told), server)
        for _ in range(3):
            expected = slow_step(expected, present, math.sqrt(7.25), 0.5)
        torch.testing.assert_close(state.kept["means"], torch.tensor(expected), atol=1e-4, rtol=1e-4)
        assert torch.equal(state.kept["present"], present)
    assert (state.round, state.kept["means"].dtype) == (6, torch.float32)


def test_classes_are_further_apart_than_their_means(state, told, server):
    trained, mean = (method.merge(state, told, server).kept["means"] for method in (FedTGP(), FedProto()))
    assert torch.dist(*trained[:2]) > torch.dist(*mean[:2]) + 0.1


def test_a_class_that_comes_later_starts_from_its_mean(state, told, server):
    method = FedTGP(server_steps=1, server_rate=1e-6)
    first = method.merge(state, told, server)
    then = method.merge(first, [Uplink("d", 1, (prototypes(None, None, [7.0, 8.0]),))], server)
    assert then.kept["present"].all()
    torch.testing.assert_close(then.kept["means"], torch.tensor([[1.0, 1.0], [3.5, 2.0], [7.0, 8.0]]))


def test_prototypes_of_nobody_are_refused(state, told, server):
    with pytest.raises(UplinkRejected, match="no merchant sent prototypes"):
        FedTGP().merge(state, [replace(one, payloads=()) for one in told], server)

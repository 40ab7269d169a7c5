"""Expert-FD: a merchant counts where its own data are close, answers nothing else, and cannot claim more."""

import math

import pytest
import torch

from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import replace
from fed_distill.methods.expert_fd import ExpertFD
from fed_distill.payloads.base import Context
from fed_distill.payloads.expert_soft_labels import ExpertSoftLabels
from fed_distill.transport.messages import Uplink

PREDICTED = torch.tensor([[0.4, 0.3, 0.3], [0.05, 0.05, 0.9], [0.7, 0.2, 0.1]])
PLAIN = ExpertFD(answer_share=1.0, teacher_share=0.0, concentration=math.log(4.0))
"""A merchant with the most expertise counts 4 times as much as one with none, and twice as much as one with half."""


def answers(name, levels, *rows):
    """Of a merchant with these levels of expertise, of which it has not answered the examples with None."""
    answered = torch.tensor([level is not None for level in levels])
    levels = torch.tensor([level for level in levels if level is not None], dtype=torch.uint8)
    return Uplink(name, 1, (ExpertSoftLabels(torch.tensor(rows).reshape(-1, 3), answered, levels),))


ONE, OTHER = [0.9, 0.1, 0.0], [0.1, 0.1, 0.8]


@pytest.fixture
def expert_uplinks():
    """The first example is answered by two, the second by one, the third by nobody."""
    return [answers("a", [255, 51, None], ONE, [0.1, 0.8, 0.1]), answers("b", [0, None, None], OTHER)]


@pytest.mark.parametrize(("share", "expected"), [(0.1, [2]), (0.5, [0, 2]), (1.0, [0, 2])])
def test_a_merchant_answers_what_is_closest_to_its_data_and_nothing_that_is_not_close(state, trained, share, expected):
    method, close = ExpertFD(answer_share=share), torch.tensor([0.4, 0.001, 0.7])
    merchant = replace(trained, predict_proxy=lambda: PREDICTED, expertise=lambda: close)
    sent = method.uplink(merchant, method.broadcast(state)).need(ExpertSoftLabels)
    assert sent.answered.nonzero().flatten().tolist() == expected
    assert torch.equal(sent.probabilities, PREDICTED[expected])
    torch.testing.assert_close(sent.expertise, close[expected].double(), atol=0.5 / 255, rtol=0)


def test_the_consensus_is_the_distribution_weighted_combination(state, expert_uplinks, server):
    consensus = PLAIN.merge(state, iter(expert_uplinks), server).consensus
    expected = torch.stack(
        [0.8 * torch.tensor(ONE) + 0.2 * torch.tensor(OTHER), torch.tensor([0.1, 0.8, 0.1]), state.teacher_labels[2]]
    )
    torch.testing.assert_close(consensus, expected)
    assert consensus.dtype == state.teacher_labels.dtype


def test_it_is_that_of_a_softmax_over_all_merchants(state, server):
    draw = torch.Generator().manual_seed(0)
    labels = torch.randn(7, 3, 3, generator=draw).softmax(dim=-1)
    levels = torch.randint(0, 256, (7, 3), generator=draw)
    up = [answers(f"m{k}", levels[k].tolist(), *labels[k].tolist()) for k in range(7)]
    method = replace(PLAIN, concentration=20.0)
    shares = (20.0 * levels.double() / 255).softmax(dim=0)
    expected = torch.einsum("kn,knc->nc", shares, labels.double()).float()
    torch.testing.assert_close(method.merge(state, up, server).consensus, expected)


def test_the_teacher_has_its_share_and_labels_alone_what_nobody_answers(state, expert_uplinks, server):
    merged = replace(PLAIN, teacher_share=0.25).merge(state, expert_uplinks, server)
    alone = PLAIN.merge(state, expert_uplinks, server).consensus
    torch.testing.assert_close(merged.consensus, 0.25 * state.teacher_labels + 0.75 * alone)
    torch.testing.assert_close(merged.consensus[2], state.teacher_labels[2])
    assert torch.equal(merged.weights["w"], merged.consensus)


def test_the_largest_concentration_lets_the_most_similar_merchant_decide_and_stays_finite(state, server):
    up = [answers("a", [3, 200, 255], ONE, ONE, ONE), answers("b", [1, 201, 0], OTHER, OTHER, OTHER)]
    consensus = replace(PLAIN, concentration=500.0).merge(state, up, server).consensus
    expected = torch.stack([torch.tensor(ONE), torch.tensor(OTHER), torch.tensor(ONE)])
    torch.testing.assert_close(consensus, expected, atol=0.16, rtol=0)  # one level of 255 is worth exp(1.96)


def test_a_byzantine_merchant_that_claims_everything_counts_for_its_share_of_the_proxy_set(state, server):
    honest = answers("a", [128, 128, 128], ONE, ONE, ONE)
    claim = answers("b", [255, 254, 255], OTHER, OTHER, OTHER)
    method = replace(PLAIN, answer_share=0.6, concentration=500.0)
    consensus = method.merge(state, [honest, claim], server).consensus
    torch.testing.assert_close(consensus[0], torch.tensor(OTHER))
    torch.testing.assert_close(consensus[1], torch.tensor(ONE))
    torch.testing.assert_close(consensus[2], torch.tensor(OTHER))


def test_an_attacker_that_scales_its_answers_is_surer_and_more_expert_and_still_valid():
    context = Context({}, 3, 3)
    sent = answers("a", [20, 200, None], ONE, PREDICTED[0].tolist()).need(ExpertSoftLabels)
    scaled = sent.scaled(-10.0, context)
    scaled.validate(context)
    assert scaled.levels.tolist() == [200, 255]
    assert scaled.probabilities.argmax(dim=1).tolist() == [2, 1]


def test_a_consensus_of_nobody_is_refused(state, uplinks, server):
    with pytest.raises(UplinkRejected, match="no merchant sent soft labels"):
        ExpertFD().merge(state, uplinks, server)

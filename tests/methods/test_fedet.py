"""Fed-ET: the sure ones make the consensus, and those that disagree are heard."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from fed_distill.errors import ConfigError, UplinkRejected
from fed_distill.methods import METHODS
from fed_distill.methods.base import replace
from fed_distill.methods.fedet import FedET
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.transport.messages import Uplink

LOGITS = torch.tensor([[0.5, 0.2, -0.3], [1.0, 0.0, 0.4], [0.2, 0.1, -0.8]])


@pytest.fixture
def sent():
    """Logits of four merchants; on the last example all of them agree."""
    scores = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(3)) * 2
    scores[:, 2] = torch.tensor([[0.0, 3.0, 1.0], [0.0, 1.0, 0.5], [-1.0, 2.0, 0.0], [0.2, 0.3, 0.1]])
    return scores


@pytest.fixture
def told(sent):
    return [Uplink(f"m{number}", 10 + number, (SoftLabels(one.softmax(dim=-1)),)) for number, one in enumerate(sent)]


def by_hand(sent, example):
    """The paper's consensus logits, its class, and the logits of who disagrees, from the logits themselves."""
    scores = [one[example].double() for one in sent]
    trust = [float(one.var(unbiased=False)) for one in scores]

    def average(chosen):
        total = sum(trust[place] for place in chosen)
        return sum(trust[place] / total * (scores[place] - scores[place].mean()) for place in chosen)

    consensus = average(range(len(scores)))
    answer = int(consensus.argmax())
    others = [place for place, one in enumerate(scores) if int(one.argmax()) != answer]
    return consensus, answer, average(others) if others else None


def test_the_consensus_weighs_merchants_by_their_confidence(state, sent, told, server):
    merged = FedET().merge(state, iter(told), server)
    assert (merged.round, merged.weights) == (5, state.weights)
    for example in range(3):
        consensus, _, _ = by_hand(sent, example)
        expected = consensus.softmax(dim=-1).float()
        torch.testing.assert_close(merged.consensus[example], expected, atol=1e-6, rtol=1e-5)
    down = FedET().broadcast(merged)
    assert torch.equal(down.need(SoftLabels).probabilities, merged.consensus)


def test_the_server_learns_the_consensus_class_and_hears_who_disagrees(state, sent, told, loss_of, server):
    FedET(diversity=0.3, server_epochs=4).merge(state, iter(told), server)
    (phase,) = server.plans[-1].phases
    assert (phase.data, phase.epochs) == ("proxy", 4)
    losses = loss_of(phase, LOGITS)
    heard = 0
    for example in range(3):
        _, answer, disagreeing = by_hand(sent, example)
        expected = cross_entropy(LOGITS[example], torch.tensor(answer))
        if disagreeing is not None:
            heard += 1
            log_q, p = LOGITS[example].log_softmax(dim=-1), disagreeing.softmax(dim=-1).float()
            expected = expected + 0.3 * kl_div(log_q, p, reduction="sum")
        torch.testing.assert_close(losses[example], expected)
    assert 0 < heard < 3


def test_one_that_knows_nothing_is_not_heard(state, told, server):
    silent = Uplink("silent", 10**6, (SoftLabels(torch.full((3, 3), 1 / 3)),))
    with_it, without = (FedET().merge(state, some, server).consensus for some in ([*told, silent], told))
    torch.testing.assert_close(with_it, without)
    alone = FedET().merge(state, [silent], server).consensus
    torch.testing.assert_close(alone, torch.full((3, 3), 1 / 3))


def test_the_teacher_takes_part_by_its_share(state, told, server):
    merchants = FedET().merge(state, told, server).consensus
    mixed = FedET(teacher_share=0.25).merge(state, told, server).consensus
    torch.testing.assert_close(mixed, 0.25 * state.teacher_labels + 0.75 * merchants)


def test_certain_merchants_give_finite_numbers(state, server):
    certain = Uplink("a", 1, (SoftLabels(torch.eye(3)),))
    merged = FedET().merge(state, [certain, certain.having(SoftLabels(torch.eye(3).roll(1, dims=0)))], server)
    (phase,) = server.plans[-1].phases
    assert all(torch.isfinite(value).all() for value in (merged.consensus, *phase.references.values()))


def test_a_merge_without_soft_labels_is_refused(state, told, server):
    with pytest.raises(UplinkRejected, match="no merchant sent soft labels"):
        FedET().merge(state, [replace(one, payloads=()) for one in told], server)


def test_it_always_goes_on_from_the_last_global_student_which_is_no_option():
    with pytest.raises(ConfigError, match="method 'fedet' has no option 'onwards'"):
        METHODS.build("fedet", {"onwards": True})

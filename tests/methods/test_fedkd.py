"""FedKD: mentor and mentee teach each other the more the less they err, and the mentee's update is sent as factors."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import GlobalState, Trained, replace
from fed_distill.methods.fedkd import FedKD
from fed_distill.models.base import Outputs
from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.student_update import StudentUpdate

OWN = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3]])
SHARED = torch.tensor([[0.0, 1.0, -1.0], [1.0, -2.0, 0.5]])
LABELS = torch.tensor([0, 2])


def mean(current, uplinks):
    """Of whole updates or the rows that are sent, of merchants that all send the same."""
    sent = [uplink.need(StudentUpdate) for uplink in uplinks]
    merged = {name: value.clone() for name, value in current.items()}
    for name in sent[0].arrays:
        rows = sent[0].rows.get(name, slice(None))
        merged[name][rows] += torch.stack([one.arrays[name] for one in sent]).mean(dim=0)
    return merged


@pytest.fixture
def state():
    """A table, a matrix and a bias, in the third of five rounds."""
    draw = torch.Generator().manual_seed(0)
    weights = {
        "table": torch.randn(40, 6, generator=draw),
        "matrix": torch.randn(12, 8, generator=draw),
        "bias": torch.randn(8, generator=draw),
    }
    return GlobalState(2, weights, torch.ones(1, 3) / 3, rounds=5)


@pytest.fixture
def trained(state):
    """A merchant whose mentee moved by matrices of rank 3, of which one component has nearly all energy."""

    def make(seed, rows=tuple(range(0, 40, 2))):
        draw = torch.Generator().manual_seed(seed)

        def low(rows, columns):
            scales = torch.tensor([10.0, 1.0, 0.1])
            return torch.randn(rows, 3, generator=draw) * scales @ torch.randn(3, columns, generator=draw)

        rows = torch.tensor(rows)
        arrays = {
            "table": state.weights["table"][rows] + low(len(rows), 6),
            "matrix": state.weights["matrix"] + low(12, 8),
            "bias": state.weights["bias"] + 1.0,
        }
        weights = PartialWeights(arrays, {"table": rows}, {"table": torch.ones_like(rows)})
        return Trained(f"m{seed}", 5, weights, state.weights, *(None,) * 6)

    return make


def test_students_teach_each_other_by_how_right_they_are(state):
    """The gradient of a softmax' cross-entropy or divergence is its probabilities without the target's."""
    plan = FedKD(local_epochs=2).plan(FedKD().broadcast(state))
    (phase,) = plan.phases
    assert plan.pair
    assert (phase.data, phase.epochs) == ("private", 2)
    own, shared = OWN.clone().requires_grad_(), SHARED.clone().requires_grad_()
    losses = phase.objective(Outputs(own, shared=Outputs(shared)), {"labels": LABELS})
    losses.sum().backward()
    p, q, truth = OWN.softmax(dim=-1), SHARED.softmax(dim=-1), one_hot(LABELS, 3)
    errs = cross_entropy(OWN, LABELS, reduction="none") + cross_entropy(SHARED, LABELS, reduction="none")
    torch.testing.assert_close(own.grad, (p - truth) + (p - q) / errs.unsqueeze(1))
    torch.testing.assert_close(shared.grad, (q - truth) + (q - p) / errs.unsqueeze(1))
    apart = (p * (p.log() - q.log())).sum(dim=-1) + (q * (q.log() - p.log())).sum(dim=-1)
    torch.testing.assert_close(losses.detach(), errs + apart / errs)


def test_students_that_are_both_sure_and_right_have_a_finite_loss(state):
    (phase,) = FedKD().plan(FedKD().broadcast(state)).phases
    own, shared = ((200.0 * one_hot(LABELS, 3)).requires_grad_() for _ in range(2))
    losses = phase.objective(Outputs(own, shared=Outputs(shared)), {"labels": LABELS})
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0]
    assert not own.grad.any()


def test_energy_grows_from_the_first_to_the_last_round(state):
    method = FedKD(energy_start=0.5, energy_end=0.9)
    found = [method.broadcast(replace(state, round=number)).scalars["energy"] for number in range(5)]
    assert found == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert method.broadcast(replace(state, round=0, rounds=1)).scalars["energy"] == 0.5


@pytest.mark.parametrize(("energy", "rank"), [(0.9, 1), (0.999, 2)])
def test_the_mentees_update_leaves_as_factors_that_keep_the_energy(state, trained, energy, rank):
    method, one = FedKD(energy_start=energy, energy_end=energy), trained(1)
    up = method.uplink(one, method.broadcast(state))
    update = up.need(LowRankUpdate)
    assert up.kinds == set(FedKD.sends) == {LowRankUpdate}
    assert set(update.plain.arrays) == {"bias"}
    assert {name: len(value) for name, value in update.thin.items()} == {"table": rank, "matrix": rank}
    starts = {"table": state.weights["table"][::2], "matrix": state.weights["matrix"]}
    for name, start in starts.items():
        moved = one.weights.arrays[name] - start
        lost = (update.thin[name].T @ update.wide[name] - moved).square().sum() / moved.square().sum()
        assert lost <= 1 - energy + 1e-6


def test_rows_of_tables_may_be_sent_as_they_are(state, trained):
    """Whatever energy is kept of matrices; a table that was trained whole is a matrix like others."""
    method, one = FedKD(energy_start=0.9, energy_end=0.9, factor_tables=False), trained(1)
    update = method.uplink(one, method.broadcast(state)).need(LowRankUpdate)
    assert (set(update.plain.arrays), set(update.thin)) == ({"bias", "table"}, {"matrix"})
    torch.testing.assert_close(update.plain.arrays["table"], one.weights.arrays["table"] - state.weights["table"][::2])
    assert torch.equal(update.plain.rows["table"], torch.arange(0, 40, 2))
    every = LowRankUpdate.factored(PartialWeights(one.update.arrays), 0.9, tables=False)
    assert set(every.thin) == {"matrix", "table"}


def test_merging_adds_the_mean_of_what_was_sent(state, trained):
    """With nearly all energy kept it is the mean of the mentees; rows that nobody sent stay."""
    method = FedKD(energy_start=1.0, energy_end=1.0)
    one, other = trained(1), trained(2)
    merged = method.merge(
        state, (method.uplink(each, method.broadcast(state)) for each in (one, other)), SimpleNamespace(average=mean)
    )
    assert merged.round == 3
    for name, rows in {"table": slice(0, None, 2), "matrix": slice(None), "bias": slice(None)}.items():
        expected = (one.weights.arrays[name] + other.weights.arrays[name]) / 2
        torch.testing.assert_close(merged.weights[name][rows], expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(merged.weights["table"][1::2], state.weights["table"][1::2])


def test_a_mentee_that_is_not_finite_is_refused_by_name(state, trained):
    one = trained(1)
    one.weights.arrays["matrix"][0, 0] = torch.inf
    with pytest.raises(UplinkRejected, match="merchant m1: the update of matrix is not finite"):
        FedKD().uplink(one, FedKD().broadcast(state))

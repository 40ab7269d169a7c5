"""SCAFFOLD against a plain rendering of its algorithm, on merchants whose gradients are known."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fed_distill.config import FederationConfig, TrainerConfig
from fed_distill.errors import ConfigError
from fed_distill.methods.base import GlobalState, HasControlVariate, Trained
from fed_distill.methods.fedavg import FedAvg
from fed_distill.methods.scaffold import Scaffold
from fed_distill.models.weights import PartialWeights
from fed_distill.payloads.control_variate import ControlVariate
from fed_distill.payloads.local_steps import LocalSteps
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.transport.messages import Uplink

CURVATURES, OPTIMA = (1.0, 10.0, 3.0), ((4.0, 0.0), (-1.0, 2.0), (0.0, 5.0))
EXAMPLES = (5, 500, 50)
RATE, STEPS = 0.05, 4
"""Merchant i's loss is 1/2 a_i |y - b_i|^2, so its gradient a_i (y - b_i)."""


def mean(current, uplinks):
    """As all aggregators do it: by examples."""
    heard = list(uplinks)
    examples = torch.tensor([float(uplink.examples) for uplink in heard], dtype=torch.float64)
    updates = torch.stack([up.need(StudentUpdate).arrays["w"].double() for up in heard])
    return {"w": current["w"] + torch.einsum("i,ij->j", examples / examples.sum(), updates)}


def start():
    zeros = torch.zeros(2, dtype=torch.float64)
    return GlobalState(0, {"w": zeros}, torch.ones(1, 2) / 2, population=3)


def one_round(method, state, kept, merchants):
    """Merchants take their steps by the plan of a method, which they may correct."""
    down = method.broadcast(state)
    up = []
    for merchant in merchants:
        correcting = isinstance(method, HasControlVariate)
        correction = method.correction(down, kept.get(merchant)) if correcting else {}
        y = down.weights["w"].clone()
        steps = (method.local_steps or STEPS) if correcting else STEPS
        for _ in range(steps):
            gradient = CURVATURES[merchant] * (y - torch.tensor(OPTIMA[merchant], dtype=torch.float64))
            y = y - RATE * (gradient + correction.get("w", 0.0))
        weights = PartialWeights({"w": y})
        name, start = str(merchant), down.weights
        trained = Trained(name, EXAMPLES[merchant], weights, start, *(None,) * 6, steps=steps, learning_rate=RATE)
        up.append(method.uplink(trained, down))
        if correcting:
            kept[merchant] = method.keep(trained, down, kept.get(merchant))
    return method.merge(state, iter(up), SimpleNamespace(average=mean, local_rate=RATE))


def test_rounds_are_those_of_the_algorithm():
    """Algorithm 1, option II, with a global step size of 1; merchants take part now and then."""
    state, kept = start(), {}
    x, c, own = np.zeros(2), np.zeros(2), np.zeros((3, 2))
    for merchants in ([0, 1, 2], [1], [0, 2], [0, 1], [2]):
        state = one_round(Scaffold(), state, kept, merchants)
        moved, changed = [], []
        for merchant in merchants:
            y = x.copy()
            for _ in range(STEPS):
                y -= RATE * (CURVATURES[merchant] * (y - np.array(OPTIMA[merchant])) - own[merchant] + c)
            new = own[merchant] - c + (x - y) / (STEPS * RATE)
            moved.append(y - x)
            changed.append(new - own[merchant])
            own[merchant] = new
        x, c = x + np.mean(moved, axis=0), c + np.sum(changed, axis=0) / 3
        np.testing.assert_allclose(state.weights["w"].numpy(), x, rtol=1e-5)  # updates are in float32
        np.testing.assert_allclose(state.kept["w"].numpy(), c, rtol=1e-5)
        for merchant in merchants:
            np.testing.assert_allclose(kept[merchant]["w"].numpy(), own[merchant], rtol=1e-5)


def test_by_examples_students_and_control_variates_have_the_same_weights():
    """Algorithm 1 with weights p_i = n_i / n in place of 1 / N in both sums: c is the weighted mean of all c_i."""
    share = np.array(EXAMPLES)[:, None] / sum(EXAMPLES)
    state, kept = start(), {}
    for _ in range(3):
        state = one_round(Scaffold(weighting="examples", local_steps=7), state, kept, [0, 1, 2])
        own = np.stack([kept[merchant]["w"].numpy() for merchant in range(3)])
        np.testing.assert_allclose(state.kept["w"].numpy(), (share * own).sum(axis=0), rtol=1e-5)
    for _ in range(200):
        state = one_round(Scaffold(weighting="examples"), state, kept, [0, 1, 2])
    weights = share * np.array(CURVATURES)[:, None]
    optimum = (weights * np.array(OPTIMA)).sum(axis=0) / weights.sum()  # of the mean loss over all examples
    np.testing.assert_allclose(state.weights["w"].numpy(), optimum, atol=1e-5)


def test_weights_by_examples_need_all_merchants_in_each_round():
    plain, some = TrainerConfig(optimizer="sgd"), FederationConfig(aggregator="fedavg", participation=0.5)
    Scaffold().check(some, plain, 4)
    with pytest.raises(ConfigError, match=r"participation = 1\.0"):
        Scaffold(weighting="examples").check(some, plain, 4)


def test_only_the_update_and_the_number_of_steps_are_sent(state, trained):
    up = Scaffold().uplink(replace(trained, steps=3, learning_rate=0.1), Scaffold().broadcast(state))
    assert up.kinds == set(Scaffold.sends) == {StudentUpdate, LocalSteps}
    assert up.need(LocalSteps).steps == 3


def test_rows_that_are_not_sent_have_not_moved():
    """An uplink that no honest merchant sends: K eta = 0.5, so the change is -2 times the update, minus c = 1."""
    table, row = torch.zeros(3, 2), {"t": torch.tensor([1])}
    state = GlobalState(1, {"t": table}, torch.ones(1, 2) / 2, kept={"t": torch.ones(3, 2)})
    sent = Uplink("a", 1, (StudentUpdate({"t": torch.tensor([[3.0, 0.5]])}, row, row), LocalSteps.of(5)))
    none = Uplink("b", 1, (sent.need(StudentUpdate),))
    heard = []

    def average(current, up):
        heard.extend(uplink.merchant for uplink in up)
        return current

    merged = Scaffold().merge(state, [sent, none], SimpleNamespace(average=average, local_rate=0.1))
    assert heard == ["a"]
    assert merged.kept["t"].tolist() == [[0.0, 0.0], [-6.0, -1.0], [0.0, 0.0]]


def test_it_finds_the_common_optimum_that_fedavg_misses():
    weights = np.array(CURVATURES)[:, None]
    optimum = (weights * np.array(OPTIMA)).sum(axis=0) / weights.sum()
    ends = {}
    for method in (Scaffold(), FedAvg()):
        state, kept = start(), {}
        for _ in range(200):
            state = one_round(method, state, kept, [0, 1, 2])
        ends[type(method)] = np.abs(state.weights["w"].numpy() - optimum).max()
    assert ends[Scaffold] < 1e-5
    assert ends[FedAvg] > 0.1


def test_every_step_on_private_labels_is_corrected(state):
    (phase,) = Scaffold(local_epochs=2).plan(Scaffold().broadcast(state)).phases
    assert (phase.data, phase.epochs, phase.steps, phase.corrected) == ("private", 2, None, True)
    (phase,) = Scaffold(local_steps=9).plan(Scaffold().broadcast(state)).phases
    assert (phase.epochs, phase.steps) == (None, 9)
    assert Scaffold().broadcast(state).get(ControlVariate) is None
    assert Scaffold.keeps != "own_student"


@pytest.mark.parametrize("options", [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.9}])
def test_steps_that_do_not_tell_a_gradient_are_refused(options):
    with pytest.raises(ConfigError, match="optimizer = 'sgd'"):
        Scaffold().check(FederationConfig(), TrainerConfig(**options), 4)


@pytest.mark.parametrize(
    ("aggregator", "options"), [("fedsubavg", {}), ("fedmedian", {}), ("krum", {}), ("fedavg", {"weight": "examples"})]
)
def test_another_mean_than_that_of_control_variates_is_refused(aggregator, options):
    plain = TrainerConfig(optimizer="sgd")
    for mean in ("fedavg", "fedadam"):
        Scaffold().check(FederationConfig(aggregator=mean), plain, 4)
    with pytest.raises(ConfigError, match="averaged like its control variates"):
        Scaffold().check(FederationConfig(aggregator=aggregator, aggregator_options=options), plain, 4)


def test_what_is_kept_of_one_weight_does_not_need_the_others():
    """A merchant may have frozen what others train: where either side knows nothing, it is 0."""
    down = Scaffold().broadcast(start()).having(ControlVariate({"a": torch.ones(2)}))
    correction = Scaffold().correction(down, {"b": torch.ones(3)})
    assert {name: value.tolist() for name, value in correction.items()} == {"a": [1.0, 1.0], "b": [-1.0, -1.0, -1.0]}

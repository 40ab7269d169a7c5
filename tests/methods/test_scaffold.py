"""SCAFFOLD against a plain rendering of its algorithm, on merchants whose gradients are known."""

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
from fed_distill.payloads.student_update import StudentUpdate

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
        for _ in range(STEPS):
            gradient = CURVATURES[merchant] * (y - torch.tensor(OPTIMA[merchant], dtype=torch.float64))
            y = y - RATE * (gradient + correction.get("w", 0.0))
        weights = PartialWeights({"w": y})
        name, start = str(merchant), down.weights
        trained = Trained(
            name, EXAMPLES[merchant], weights, start, None, None, None, None, steps=STEPS, learning_rate=RATE
        )
        up.append(method.uplink(trained, down))
        if correcting:
            kept[merchant] = method.keep(trained, down, kept.get(merchant))
    return method.merge(state, iter(up), SimpleNamespace(average=mean))


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
    assert (phase.data, phase.epochs, phase.corrected) == ("private", 2, True)
    assert Scaffold().broadcast(state).get(ControlVariate) is None
    assert Scaffold.keeps != "own_student"


@pytest.mark.parametrize("options", [{"optimizer": "adamw"}, {"optimizer": "sgd", "momentum": 0.9}])
def test_steps_that_do_not_tell_a_gradient_are_refused(options):
    with pytest.raises(ConfigError, match="optimizer = 'sgd'"):
        Scaffold().check(FederationConfig(), TrainerConfig(**options), 4)


def test_parts_of_students_are_refused():
    plain = TrainerConfig(optimizer="sgd")
    Scaffold().check(FederationConfig(aggregator="fedavg"), plain, 4)
    with pytest.raises(ConfigError, match="fedsubavg averages rows"):
        Scaffold().check(FederationConfig(aggregator="fedsubavg"), plain, 4)


def test_what_is_kept_of_one_weight_does_not_need_the_others():
    """A merchant may have frozen what others train: where either side knows nothing, it is 0."""
    down = Scaffold().broadcast(start()).having(ControlVariate({"a": torch.ones(2)}))
    correction = Scaffold().correction(down, {"b": torch.ones(3)})
    assert {name: value.tolist() for name, value in correction.items()} == {"a": [1.0, 1.0], "b": [-1.0, -1.0, -1.0]}

"""FedAvg with control variates, which correct each local step for the difference of a merchant's and the mean gradient.

Karimireddy et al., "SCAFFOLD: Stochastic controlled averaging for federated learning", ICML 2020, algorithm 1 with
option II: a step is y - eta_l (g_i(y) - c_i + c); after K steps c_i+ = c_i - c + (x - y) / (K eta_l), and the server
adds the sum of c_i+ - c_i, divided by the number N of all merchants, to c. Students and control variates have the same
weights, since the corrections c - c_i cancel only if both are averaged alike: equal weights for all merchants as in the
paper, or by examples as in the ``fedavg`` control.

The paper sends y - x and c_i+ - c_i. The latter is (x - y) / (K eta_l) - c, which the server computes from the update,
the number of steps and its own c and eta_l: half the uplink. Updates must arrive exactly, so that both ends have equal
control variates, and lossy coding of them is rejected.

The paper has equal K for all merchants (``local_steps``). With ``local_epochs``, a merchant takes more steps the more
examples it has: c_i+ remains its mean gradient, but its update has a larger weight in the mean, so that the fixed point
is that of another objective (Wang et al., "Tackling the objective inconsistency problem", NeurIPS 2020).

A control without distillation. The correction changes all rows of tables, so that whole students are trained and sent.
It requires all answers: if an uplink is lost or rejected, the merchant has updated c_i but the server has not updated
c, and they stay inconsistent.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fed_distill.config import FederationConfig, PositiveInt, TrainerConfig
from fed_distill.distill.losses import hard_labels
from fed_distill.errors import ConfigError
from fed_distill.methods.base import GlobalState, Keeps, Services, Trained, replace
from fed_distill.methods.fedavg import FedAvg
from fed_distill.models.weights import PartialWeights, Weights
from fed_distill.payloads.control_variate import ControlVariate
from fed_distill.payloads.local_steps import LocalSteps
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.training.plan import Duration, Phase, Plan
from fed_distill.transport.messages import Carrier, Downlink, Kinds, Uplink

_MEANS = ("fedavg", "fedavgm", "fedadam", "fedadagrad", "fedyogi")
"""Aggregators that take the mean of the updates, and possibly a server optimizer's step along it."""


@dataclass(frozen=True)
class Scaffold(FedAvg):
    """local_epochs: epochs on a merchant's private examples per round. local_steps: steps instead of epochs, the same
    number K for all merchants. weighting: weights of updates and control variates, equal or by examples; the latter
    requires that all merchants take part in each round."""

    local_steps: PositiveInt | None = None
    weighting: Literal["merchants", "examples"] = "merchants"
    keeps: ClassVar[Keeps] = "control_variate"
    sends: ClassVar[Kinds] = (StudentUpdate, LocalSteps)
    receives: ClassVar[Kinds] = (StudentWeights, ControlVariate)

    def check(self, federation: FederationConfig, training: TrainerConfig, classes: int) -> None:
        """Raise ConfigError unless merchants train by plain gradient descent, which determines the mean gradient, and
        whole students are averaged as control variates are."""
        if training.optimizer != "sgd" or training.momentum:
            kind = "sgd with momentum" if training.optimizer == "sgd" else training.optimizer
            raise ConfigError(
                f"method scaffold corrects steps of plain gradient descent, not of {kind}: set optimizer = 'sgd' "
                "and momentum = 0 in [training.merchants] (in private federations in [privacy.training])"
            )
        if federation.aggregator not in _MEANS or "weight" in federation.aggregator_options:
            raise ConfigError(
                "method scaffold requires that students are averaged like its control variates: use aggregator "
                f"{', '.join(_MEANS)}, without the option weight"
            )
        if self.weighting == "examples" and federation.participation < 1.0:
            raise ConfigError(
                "method scaffold with weighting = 'examples' requires the examples of all merchants in each round: set "
                "federation.participation = 1.0, or weighting = 'merchants'"
            )

    def idle_options(self, rounds: int) -> dict[str, str]:
        """Epochs, if steps are given."""
        return {} if self.local_steps is None else {"local_epochs": f"local_steps is {self.local_steps}"}

    def broadcast(self, state: GlobalState) -> Downlink:
        """Send the global student and c, once it exists."""
        down = super().broadcast(state)
        return down.having(ControlVariate(state.kept)) if state.kept else down

    def private_durations(self, round: int) -> tuple[Duration, ...]:
        """Train for ``local_steps``, or without them for ``local_epochs``, in every round."""
        return super().private_durations(round) if self.local_steps is None else (Duration(steps=self.local_steps),)

    def plan(self, down: Downlink) -> Plan:
        """Train on private labels with corrected steps."""
        (own,) = self.private_durations(down.round)
        return Plan((Phase(hard_labels(), epochs=own.epochs, steps=own.steps, corrected=True),))

    def correction(self, down: Downlink, kept: Weights | None) -> Weights:
        """Return c - c_i, each 0 at first."""
        of_all, own = _sent(down), kept or {}
        return {name: _of(of_all, name, like) - _of(own, name, like) for name, like in {**own, **of_all}.items()}

    def keep(self, trained: Trained, down: Downlink, kept: Weights | None) -> Weights:
        """Return c_i+."""
        change = change_of(trained.update.arrays, trained.steps * trained.learning_rate, _sent(down))
        return {name: _of(kept or {}, name, value) + value for name, value in change.items()}

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send the update, y - x, and the number K of steps."""
        return super().uplink(trained, down).having(LocalSteps.of(trained.steps))

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Aggregate the weights, and add the merchants' mean change of control variates, times their share of all
        merchants, to c."""
        sums: dict[str, Tensor] = {}
        merged_merchants = total = 0

        def received() -> Iterator[Uplink]:
            nonlocal merged_merchants, total
            for uplink in up:
                update, steps = uplink.get(StudentUpdate), uplink.get(LocalSteps)
                if update is None or steps is None:
                    continue
                weight = uplink.examples if self.weighting == "examples" else 1
                arrays = whole_update(update, state.weights)
                for name, change in change_of(arrays, steps.steps * server.local_rate, state.kept).items():
                    sums[name] = _of(sums, name, change.double()) + weight * change.double()
                merged_merchants, total = merged_merchants + 1, total + weight
                yield replace(uplink, examples=weight)

        merged = super().merge(state, received(), server)
        share = merged_merchants / state.population / max(total, 1)
        moved = {
            name: (_of(state.kept, name, value) + value * share).to(state.weights[name].dtype)
            for name, value in sums.items()
        }
        return replace(merged, kept={**state.kept, **moved})


def change_of(update: Weights, travelled: float, control: Weights) -> dict[str, Tensor]:
    """Return c_i+ - c_i = (x - y) / (K eta_l) - c for every trained weight.

    :param update: y - x by weight
    :param travelled: K eta_l, the number of steps times their learning rate
    :param control: c; 0 for a weight that it lacks
    """
    return {name: -moved / travelled - _of(control, name, moved) for name, moved in update.items()}


def whole_update(update: PartialWeights, weights: Weights) -> dict[str, Tensor]:
    """Return an update of whole weights, 0 in the rows of tables that were not sent."""
    whole = dict(update.arrays)
    for name, rows in update.rows.items():
        whole[name] = torch.zeros(weights[name].shape).index_copy(0, rows, update.arrays[name])
    return whole


def _sent(carrier: Carrier) -> Weights:
    sent = carrier.get(ControlVariate)
    return {} if sent is None else sent.arrays


def _of(control_variate: Weights, name: str, like: Tensor) -> Tensor:
    return control_variate[name] if name in control_variate else torch.zeros_like(like)

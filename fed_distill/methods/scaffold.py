"""FedAvg with control variates, which correct each local step for the difference of a merchant's and the mean gradient.

Karimireddy et al., "SCAFFOLD: Stochastic controlled averaging for federated learning", ICML 2020, algorithm 1 with
option II: a step is y - eta_l (g_i(y) - c_i + c); after K steps c_i+ = c_i - c + (x - y) / (K eta_l), and the server
adds the sum of c_i+ - c_i, divided by the number N of all merchants, to c. As in the paper, merchants have equal weight
for students and control variates, since the corrections c - c_i cancel only if both are averaged alike.

A control without distillation. The correction changes all rows of tables, so that whole students are trained and sent,
and control variates of the same size. It requires all answers: if an uplink is lost or rejected, the merchant has
updated c_i but the server has not updated c, and they stay inconsistent.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fed_distill.aggregation import SUBMODEL_AGGREGATORS
from fed_distill.config import FederationConfig, TrainerConfig
from fed_distill.distill.losses import hard_labels
from fed_distill.errors import ConfigError
from fed_distill.methods.base import GlobalState, Keeps, Services, Trained, replace
from fed_distill.methods.fedavg import FedAvg
from fed_distill.models.weights import Weights
from fed_distill.payloads.control_variate import ControlVariate
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.training.plan import Phase, Plan
from fed_distill.transport.messages import Carrier, Downlink, Kinds, Uplink


@dataclass(frozen=True)
class Scaffold(FedAvg):
    """local_epochs: epochs on a merchant's private examples per round (K steps)."""

    keeps: ClassVar[Keeps] = "control_variate"
    sends: ClassVar[Kinds] = (StudentUpdate, ControlVariate)
    receives: ClassVar[Kinds] = (StudentWeights, ControlVariate)

    def check(self, federation: FederationConfig, training: TrainerConfig, classes: int) -> None:
        """Raise ConfigError unless merchants train by plain gradient descent, which determines the mean gradient, and
        whole students are averaged."""
        if training.optimizer != "sgd" or training.momentum:
            kind = "sgd with momentum" if training.optimizer == "sgd" else training.optimizer
            raise ConfigError(
                f"method scaffold corrects steps of plain gradient descent, not of {kind}: set optimizer = 'sgd' "
                "and momentum = 0 in [training.merchants] (in private federations in [privacy.training])"
            )
        if federation.aggregator in SUBMODEL_AGGREGATORS:
            raise ConfigError(
                f"method scaffold sends whole students, but {federation.aggregator} averages rows: use another one"
            )

    def broadcast(self, state: GlobalState) -> Downlink:
        """Send the global student and c, once it exists."""
        down = super().broadcast(state)
        return down.having(ControlVariate(state.kept)) if state.kept else down

    def plan(self, down: Downlink) -> Plan:
        """Train on private labels with corrected steps."""
        return Plan((Phase(hard_labels(), epochs=self.local_epochs, corrected=True),))

    def correction(self, down: Downlink, kept: Weights | None) -> Weights:
        """Return c - c_i, each 0 at first."""
        of_all, own = _sent(down), kept or {}
        return {name: _of(of_all, name, like) - _of(own, name, like) for name, like in {**own, **of_all}.items()}

    def keep(self, trained: Trained, down: Downlink, kept: Weights | None) -> Weights:
        """Return c_i+."""
        return {name: _of(kept or {}, name, change) + change for name, change in _change(trained, down).items()}

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send the update, y - x, and c_i+ - c_i."""
        return super().uplink(trained, down).having(ControlVariate(_change(trained, down)))

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Aggregate the weights with equal weight per merchant, and add the sum of changes divided by the number of all
        merchants to c."""
        sums: dict[str, Tensor] = {}

        def received() -> Iterator[Uplink]:
            for uplink in up:
                for name, change in _sent(uplink).items():
                    sums[name] = _of(sums, name, change.double()) + change
                yield replace(uplink, examples=1)

        merged = super().merge(state, received(), server)
        moved = {
            name: (_of(state.kept, name, total) + total / state.population).to(state.weights[name].dtype)
            for name, total in sums.items()
        }
        return replace(merged, kept={**state.kept, **moved})


def _change(trained: Trained, down: Downlink) -> dict[str, Tensor]:
    """Return c_i+ - c_i = (x - y) / (K eta_l) - c for every trained weight."""
    travelled = trained.steps * trained.learning_rate
    return {name: -moved / travelled - _of(_sent(down), name, moved) for name, moved in trained.update.arrays.items()}


def _sent(carrier: Carrier) -> Weights:
    sent = carrier.get(ControlVariate)
    return {} if sent is None else sent.arrays


def _of(control_variate: Weights, name: str, like: Tensor) -> Tensor:
    return control_variate[name] if name in control_variate else torch.zeros_like(like)

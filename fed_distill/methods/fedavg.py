"""Federated averaging without a teacher: train on private labels, average the updates.

McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017, algorithm 1.
Merchants send updates: the global student plus their mean is the mean of the trained students. The aggregator is
configurable.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fed_distill.config import PositiveFloat
from fed_distill.distill.losses import hard_labels
from fed_distill.methods.base import GlobalState, Keeps, Service, Services, Trained, replace
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.training.plan import Duration, Phase, Plan
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class FedAvg:
    """local_epochs: epochs on a merchant's private examples per round (E in the paper)."""

    local_epochs: PositiveFloat = 1.0
    keeps: ClassVar[Keeps] = "nothing"
    sends: ClassVar[Kinds] = (StudentUpdate,)
    uses: ClassVar[tuple[Service, ...]] = ("average",)
    receives: ClassVar[Kinds] = (StudentWeights,)

    def broadcast(self, state: GlobalState) -> Downlink:
        """Send the global student."""
        return Downlink(state.round + 1, (StudentWeights(state.weights),))

    def private_durations(self, round: int) -> tuple[Duration, ...]:
        """Train for ``local_epochs`` in every round."""
        return (Duration(self.local_epochs),)

    def plan(self, down: Downlink) -> Plan:
        """Train on private labels."""
        (own,) = self.private_durations(down.round)
        return Plan((Phase(hard_labels(), epochs=own.epochs, steps=own.steps),))

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send the update."""
        return Uplink(trained.merchant, trained.examples, (StudentUpdate.of(trained.update),))

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Add the aggregated update to the global student."""
        return replace(state, round=state.round + 1, weights=server.average(state.weights, up))

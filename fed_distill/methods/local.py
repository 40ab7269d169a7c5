"""No federation: every merchant trains alone from the server's student, without aggregation.

A control for the gain from federation.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fed_distill.methods.base import GlobalState, Service, Services, replace
from fed_distill.methods.fedavg import FedAvg
from fed_distill.transport.messages import Uplink


@dataclass(frozen=True)
class Local(FedAvg):
    """local_epochs: epochs of each merchant."""

    uses: ClassVar[tuple[Service, ...]] = ()

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Return the state with an unchanged global student."""
        return replace(state, round=state.round + 1)

"""No federation: every merchant trains alone from the server's student, and nothing is merged.

The control that shows what a merchant gains by taking part at all.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fed_distill.methods.base import GlobalState, Service, Services, replace
from fed_distill.methods.fedavg import FedAvg
from fed_distill.transport.messages import Uplink


@dataclass(frozen=True)
class Local(FedAvg):
    """local_epochs: epochs of each merchant alone."""

    uses: ClassVar[tuple[Service, ...]] = ()

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """The global student stays as it was."""
        return replace(state, round=state.round + 1)

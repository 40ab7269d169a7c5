"""FedAvg with a proximal term that penalizes the distance to the global student.

Li et al., "Federated optimization in heterogeneous networks", MLSys 2020, eq. 2.
"""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fed_distill.distill.losses import hard_labels
from fed_distill.methods.fedavg import FedAvg
from fed_distill.training.plan import Phase, Plan
from fed_distill.transport.messages import Downlink


@dataclass(frozen=True)
class FedProx(FedAvg):
    """proximal_mu: weight mu of the penalty mu/2 * ||w - w_global||^2; 0 is FedAvg."""

    proximal_mu: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.01

    def plan(self, down: Downlink) -> Plan:
        """Train on private labels with the proximal term."""
        (own,) = self.private_durations(down.round)
        return Plan((Phase(hard_labels(), epochs=own.epochs, steps=own.steps, proximal_mu=self.proximal_mu),))

"""FedAvg with local distillation from the teacher: private labels, then the teacher's soft labels on the proxy set.

The distillation loss is Hinton et al., "Distilling the knowledge in a neural network", 2015, section 2; the averaging
is McMahan et al., AISTATS 2017. The proxy phase reduces client drift.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from fed_distill.config import PositiveFloat
from fed_distill.distill.losses import hard_labels, soft_labels
from fed_distill.methods.base import GlobalState
from fed_distill.methods.fedavg import FedAvg
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.training.plan import Phase, Plan
from fed_distill.transport.messages import Downlink, Kinds


@dataclass(frozen=True)
class FedAvgKD(FedAvg):
    """proxy_steps: batches of the proxy set per round. temperature: of the distillation loss. proxy_rate_scale: factor
    on the learning rate of these batches, if private steps need a different one, as under DP."""

    proxy_steps: Annotated[int, Field(ge=0)] = 16
    temperature: PositiveFloat = 2.0
    proxy_rate_scale: PositiveFloat = 1.0
    receives: ClassVar[Kinds] = (StudentWeights, SoftLabels)

    def idle_options(self, rounds: int) -> dict[str, str]:
        """What says how to distil, if no batch is distilled."""
        return {} if self.proxy_steps else dict.fromkeys(("temperature", "proxy_rate_scale"), "proxy_steps is 0")

    def broadcast(self, state: GlobalState) -> Downlink:
        """Send the global student and the teacher's soft labels."""
        return super().broadcast(state).having(SoftLabels(state.teacher_labels))

    def plan(self, down: Downlink) -> Plan:
        """Train on private labels, then on the teacher's soft labels for a part of the proxy set."""
        (own,) = self.private_durations(down.round)
        private = Phase(hard_labels(), epochs=own.epochs, steps=own.steps)
        proxy = Phase(
            soft_labels(self.temperature),
            data="proxy",
            steps=self.proxy_steps,
            references={"soft_labels": down.need(SoftLabels).probabilities},
            learning_rate_scale=self.proxy_rate_scale,
        )
        return Plan((private, proxy))

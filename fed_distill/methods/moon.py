"""FedAvg with a contrastive term: representations are pulled to the global student's and pushed from the previous ones.

Li et al., "Model-contrastive federated learning", CVPR 2021 (MOON): the loss is l_sup + mu * l_con (eq. 4), with
l_con = -log(exp(sim(z, z_glob) / tau) / (exp(sim(z, z_glob) / tau) + exp(sim(z, z_prev) / tau))) (eq. 3), sim the
cosine. A control without distillation. In a merchant's first round, the global student replaces the previous one, and
the term has no gradient. Representations are the last hidden states; the paper adds a projection head.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fed_distill.config import PositiveFloat
from fed_distill.distill.losses import cross_entropy
from fed_distill.methods.base import Keeps
from fed_distill.methods.fedavg import FedAvg
from fed_distill.models.base import Outputs
from fed_distill.models.prediction import representation
from fed_distill.training.plan import Objective, Phase, Plan, Predicted, References
from fed_distill.transport.messages import Downlink


@dataclass(frozen=True)
class MOON(FedAvg):
    """mu: weight of the contrastive term; 0 is FedAvg. temperature: of this term (tau in the paper)."""

    mu: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    temperature: PositiveFloat = 0.5
    keeps: ClassVar[Keeps] = "last_student"

    def idle_options(self, rounds: int) -> dict[str, str]:
        """The contrastive term's, which has no gradient in a merchant's first round."""
        reason = "no merchant has a previous student in the only round"
        return dict.fromkeys(("mu", "temperature"), reason) if rounds == 1 else {}

    def plan(self, down: Downlink) -> Plan:
        """Train on private labels and on the representations of the global and the previous student."""
        (own,) = self.private_durations(down.round)
        phase = Phase(
            contrast(self.mu, self.temperature),
            epochs=own.epochs,
            steps=own.steps,
            predicted={
                "global_representation": Predicted("global", "representation"),
                "previous_representation": Predicted("previous", "representation"),
            },
            hidden=True,
        )
        return Plan((phase,))


def contrast(mu: float, temperature: float) -> Objective:
    """Return the objective of eq. 4 with the references ``labels``, ``global_representation`` and
    ``previous_representation``."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        own = representation(outputs)
        toward = F.cosine_similarity(own, references["global_representation"], dim=-1)
        away = F.cosine_similarity(own, references["previous_representation"], dim=-1)
        similarities = torch.stack([toward, away], dim=-1) / temperature
        contrastive = -F.log_softmax(similarities, dim=-1)[:, 0]
        return cross_entropy(outputs.logits, references["labels"]) + mu * contrastive

    return objective

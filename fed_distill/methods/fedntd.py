"""FedAvg with local not-true distillation, which preserves the global student's knowledge of absent classes.

Lee et al., "Preservation of the global knowledge by not-true distillation in federated learning", NeurIPS 2022: local
training on labels causes forgetting of classes without local examples. The loss is
L_CE(q, y) + beta * L_NTD(q_l, q_g) (eq. 4), with L_NTD the divergence of the merchant's softmax over the not-true
classes from the global student's at temperature tau (eq. 5 and 6). As in the authors' code, L_NTD is multiplied by
tau^2.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fed_distill.config import FederationConfig, PositiveFloat, TrainerConfig
from fed_distill.distill.losses import cross_entropy, distillation_kl, soften
from fed_distill.errors import ConfigError
from fed_distill.methods.fedavg import FedAvg
from fed_distill.models.base import Outputs
from fed_distill.training.plan import Objective, Phase, Plan, Predicted, References
from fed_distill.transport.messages import Downlink


@dataclass(frozen=True)
class FedNTD(FedAvg):
    """beta: weight of not-true distillation; 0 is FedAvg. temperature: of the distillation (tau in the paper)."""

    beta: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    temperature: PositiveFloat = 1.0

    def check(self, federation: FederationConfig, training: TrainerConfig, classes: int) -> None:
        """Raise ConfigError for two classes, for which there is only one not-true class."""
        if classes < 3:
            raise ConfigError(
                f"method fedntd distils over the not-true classes, of which a task of {classes} classes has one: use "
                "fedavg, which is equivalent, or a task with more classes"
            )

    def plan(self, down: Downlink) -> Plan:
        """Train on private labels and on the global student's probabilities for the same examples."""
        (own,) = self.private_durations(down.round)
        phase = Phase(
            not_true_distillation(self.beta, self.temperature),
            epochs=own.epochs,
            steps=own.steps,
            predicted={"global_probabilities": Predicted("global", "probabilities")},
        )
        return Plan((phase,))


def not_true_distillation(beta: float, temperature: float) -> Objective:
    """Return the objective of eq. 4 with references ``labels`` and ``global_probabilities`` (at temperature 1)."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        logits, labels = outputs.logits, references["labels"]
        others = soften(not_true(references["global_probabilities"], labels), temperature)
        kept = distillation_kl(not_true(logits, labels), others, temperature)
        return cross_entropy(logits, labels) + beta * kept

    return objective


def not_true(values: Tensor, labels: Tensor) -> Tensor:
    """Return ``values`` ``[batch, classes]`` without each example's true class: ``[batch, classes - 1]``."""
    classes = values.shape[1]
    others = torch.arange(classes, device=labels.device) != labels.unsqueeze(1)
    return values[others].view(len(values), classes - 1)

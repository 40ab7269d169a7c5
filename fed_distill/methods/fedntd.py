"""FedAvg whose merchants keep what the global student says of the classes that an example is not of.

Lee et al., "Preservation of the global knowledge by not-true distillation in federated learning", NeurIPS 2022: a
merchant's labels teach it the true classes, and make it forget the others, of which it may have no example. The loss is
L_CE(q, y) + beta * L_NTD(q_l, q_g) (eq. 4), L_NTD the divergence of the merchant's softmax over the not-true classes
alone from the global student's at temperature tau (eq. 5 and 6). As in the authors' code L_NTD is times tau^2.
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
    """beta: weight of not-true distillation; 0 is FedAvg. temperature: of it (tau in the paper)."""

    beta: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    temperature: PositiveFloat = 1.0

    def check(self, federation: FederationConfig, training: TrainerConfig, classes: int) -> None:
        """ConfigError for two classes: of the one that is not true there is nothing to distil."""
        if classes < 3:
            raise ConfigError(
                f"method fedntd distils between the classes that are not the true one, and of {classes} classes there "
                "is only one such: take fedavg, which is the same here, or a task of more classes"
            )

    def plan(self, down: Downlink) -> Plan:
        """Private labels, and the global student's probabilities on the same examples."""
        phase = Phase(
            not_true_distillation(self.beta, self.temperature),
            epochs=self.local_epochs,
            predicted={"global_probabilities": Predicted("global", "probabilities")},
        )
        return Plan((phase,))


def not_true_distillation(beta: float, temperature: float) -> Objective:
    """Objective: eq. 4 with the references ``labels`` and ``global_probabilities`` (at temperature 1)."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        logits, labels = outputs.logits, references["labels"]
        others = soften(not_true(references["global_probabilities"], labels), temperature)
        kept = distillation_kl(not_true(logits, labels), others, temperature)
        return cross_entropy(logits, labels) + beta * kept

    return objective


def not_true(values: Tensor, labels: Tensor) -> Tensor:
    """``values`` ``[batch, classes]`` without each example's true class: ``[batch, classes - 1]``."""
    classes = values.shape[1]
    others = torch.arange(classes, device=labels.device) != labels.unsqueeze(1)
    return values[others].view(len(values), classes - 1)

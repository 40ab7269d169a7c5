"""Federated mutual learning: a merchant's own student and the shared one distil each other; only the latter is sent.

Shen et al., "Federated mutual learning", 2020: on every batch both are trained, with the losses L_local = alpha *
CE(local) + (1 - alpha) * KL(meme || local) and L_meme = beta * CE(meme) + (1 - beta) * KL(local || meme) (eq. 3 and 4);
the memes, the shared students, are averaged. The own students, of any model, stay at the merchants. If both have the
same model, both start as the server's student: for a merchant that participates from the first round they are equal
until the first aggregation, up to dropout and noise.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fed_distill.distill.losses import cross_entropy, distillation_kl
from fed_distill.methods.base import Keeps
from fed_distill.methods.fedavg import FedAvg
from fed_distill.models.base import Outputs
from fed_distill.training.plan import Objective, Phase, Plan, References
from fed_distill.transport.messages import Downlink

Share = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True)
class FML(FedAvg):
    """alpha: weight of the labels in the own student's loss, in [0, 1]; the rest is distillation. beta: the same for
    the shared student."""

    alpha: Share = 0.5
    beta: Share = 0.5
    keeps: ClassVar[Keeps] = "own_student"

    def plan(self, down: Downlink) -> Plan:
        """Train both students on private labels and on each other's predictions."""
        (own,) = self.private_durations(down.round)
        return Plan((Phase(mutual(self.alpha, self.beta), epochs=own.epochs, steps=own.steps),), pair=True)


def mutual(alpha: float, beta: float) -> Objective:
    """Return the objective of a pair: the sum of both losses; the other's predictions are constants."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        assert outputs.shared is not None
        own, shared, labels = outputs.logits, outputs.shared.logits, references["labels"]
        local = alpha * cross_entropy(own, labels) + (1.0 - alpha) * divergence(own, shared)
        meme = beta * cross_entropy(shared, labels) + (1.0 - beta) * divergence(shared, own)
        return local + meme

    return objective


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student) for logits ``[batch, classes]``; the teacher's are constants."""
    return distillation_kl(student, teacher.detach().softmax(dim=-1), 1.0)

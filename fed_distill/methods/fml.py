"""Mutual learning: a merchant's own student and the shared one teach each other, and only the shared one is sent.

Shen et al., "Federated mutual learning", 2020: on every batch both are trained, by
L_local = alpha * CE(local) + (1 - alpha) * KL(meme || local) and L_meme = beta * CE(meme) + (1 - beta) * KL(local ||
meme) (eq. 3 and 4); merchants' memes, the shared students, are averaged. The own students, of any kinds, stay. Where
they are of one kind with the shared one both begin as the server's student: of a merchant that is there from the first
round on they are the same until the first mean, but for what dropout or noise draws for each.
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
    """alpha: weight of the labels in the own student's loss, in [0, 1]; the rest is what the shared one says. beta: of
    the labels in the shared one's."""

    alpha: Share = 0.5
    beta: Share = 0.5
    keeps: ClassVar[Keeps] = "own_student"

    def plan(self, down: Downlink) -> Plan:
        """Both students on private labels and on each other's predictions."""
        return Plan((Phase(mutual(self.alpha, self.beta), epochs=self.local_epochs),), pair=True)


def mutual(alpha: float, beta: float) -> Objective:
    """Objective of a pair: the sum of both losses, each student's with the other's predictions held fixed."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        assert outputs.shared is not None
        own, shared, labels = outputs.logits, outputs.shared.logits, references["labels"]
        local = alpha * cross_entropy(own, labels) + (1.0 - alpha) * taught(own, shared)
        meme = beta * cross_entropy(shared, labels) + (1.0 - beta) * taught(shared, own)
        return local + meme

    return objective


def taught(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of two students' logits ``[batch, classes]``; the teacher's are held fixed."""
    return distillation_kl(student, teacher.detach().softmax(dim=-1), 1.0)

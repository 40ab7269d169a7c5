"""Federated prototype learning: merchants send mean representations of classes, and pull their own towards the mean.

Tan et al., "FedProto: Federated prototype learning across heterogeneous clients", AAAI 2022, algorithm 1: a merchant
sends the mean representation of its examples of each class (eq. 3), the server averages them by class (eq. 6), and a
merchant's loss is its cross-entropy plus lambda times the distance to the mean prototypes (eq. 7). Students stay at the
merchants and may differ by merchant, if their representations have one width.

Deviations, the first two as in the authors' code: prototypes have equal weights over the merchants that have the class,
where eq. 6 weights them by examples, whose number by class would have to be sent; the distance is that of each example
to the prototype of its label, the squared one divided by the width, where eq. 7 compares means; merchants classify by
their heads, which the cross-entropy trains, where the paper takes the nearest prototype. Prototypes are computed from
private examples after training, so no privacy unit but ``label`` covers them: others reject ``fedproto``.

The paper has no global student. Here the server is one more participant, whose examples are the proxy set: the global
student continues on the teacher's soft labels, and its representations are pulled to the merchants' prototypes by the
same loss, expected over the teacher's probabilities of the label. So it learns classes from the teacher, and from
merchants where each class is to be found.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fed_distill.config import PositiveFloat
from fed_distill.distill.losses import cross_entropy, hard_labels, soft_labels
from fed_distill.errors import TrainingError, UplinkRejected
from fed_distill.methods.base import GlobalState, Keeps, Service, Services, Trained, replace
from fed_distill.models.base import Outputs
from fed_distill.models.prediction import representation
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.training.plan import Duration, Objective, Phase, Plan, References
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class FedProto:
    """local_epochs: epochs on private examples. regularization: lambda, weight of the distance to the prototypes
    relative to 1 for the label. server_epochs: epochs of the global student on the proxy set per round."""

    local_epochs: PositiveFloat = 1.0
    regularization: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    server_epochs: PositiveFloat = 1.0
    keeps: ClassVar[Keeps] = "own_student"
    uses: ClassVar[tuple[Service, ...]] = ("distil",)
    sends: ClassVar[Kinds] = (Prototypes,)
    receives: ClassVar[Kinds] = (Prototypes,)

    def broadcast(self, state: GlobalState) -> Downlink:
        """Send the mean prototypes; nothing before the first round."""
        return Downlink(state.round + 1, () if (means := known(state)) is None else (means,))

    def private_durations(self, round: int) -> tuple[Duration, ...]:
        """Train for ``local_epochs`` in every round."""
        return (Duration(self.local_epochs),)

    def plan(self, down: Downlink) -> Plan:
        """Train on private labels and the mean prototypes."""
        means = down.get(Prototypes)
        objective = hard_labels() if means is None else to_prototypes(means, self.regularization)
        (own,) = self.private_durations(down.round)
        return Plan((Phase(objective, epochs=own.epochs, steps=own.steps, hidden=True),))

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send the prototypes of the private examples; no weights."""
        return Uplink(trained.merchant, trained.examples, (trained.prototypes(),))

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Merge the prototypes, and train the global student."""
        means = self.merged(state, up)
        train = Phase(
            to_expected_prototypes(means, self.regularization),
            data="proxy",
            epochs=self.server_epochs,
            references={"soft_labels": state.teacher_labels},
            hidden=True,
        )
        weights = server.distil(state.weights, Plan((train,)))
        return replace(state, round=state.round + 1, kept=vars(means), weights=weights)

    def merged(self, state: GlobalState, up: Iterable[Uplink]) -> Prototypes:
        """Average by class; a class that no merchant has keeps the previous mean."""
        return mean_prototypes(up, known(state))


def known(state: GlobalState) -> Prototypes | None:
    """Return the mean prototypes; None before the first round."""
    return Prototypes(**state.kept) if state.kept else None


def mean_prototypes(up: Iterable[Uplink], before: Prototypes | None = None) -> Prototypes:
    """Return the mean over the merchants that have a class; ``before`` for a class that none has.

    :raises UplinkRejected: no merchant sent prototypes
    """
    total: Tensor | None = None
    counts = torch.zeros(0)
    for uplink in up:
        if (sent := uplink.get(Prototypes)) is not None:
            if total is None:
                total, counts = torch.zeros_like(sent.means, dtype=torch.float64), torch.zeros(len(sent.means))
            total += sent.means
            counts += sent.present
    if total is None:
        raise UplinkRejected("no merchant sent prototypes that could be merged")
    present = counts > 0
    means = (total / counts.clamp_min(1.0).unsqueeze(1)).float()
    if before is None:
        return Prototypes(means, present)
    return Prototypes(torch.where(present.unsqueeze(1), means, before.means), present | before.present)


def to_prototypes(prototypes: Prototypes, weight: float) -> Objective:
    """Return the objective of eq. 7: cross-entropy with the reference ``labels``, plus ``weight`` times the distance to
    the label's prototype, if there is one."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        labels = references["labels"]
        distance = distances(outputs, prototypes).gather(1, labels.unsqueeze(1)).squeeze(1)
        return cross_entropy(outputs.logits, labels) + weight * distance

    return objective


def to_expected_prototypes(prototypes: Prototypes, weight: float) -> Objective:
    """Return the objective: distillation from the reference ``soft_labels``, plus ``weight`` times the distance to the
    prototypes, expected over ``soft_labels``."""
    distil = soft_labels(1.0)

    def objective(outputs: Outputs, references: References) -> Tensor:
        distance = (references["soft_labels"] * distances(outputs, prototypes)).sum(dim=1)
        return distil(outputs, references) + weight * distance

    return objective


def distances(outputs: Outputs, prototypes: Prototypes) -> Tensor:
    """Return the mean squared difference of each example's representation and each prototype, ``[batch, classes]``; 0
    for a class without one.

    :raises TrainingError: they have another width
    """
    own = representation(outputs)
    means, present = prototypes.means.to(own), prototypes.present.to(own)
    if own.shape[1] != means.shape[1]:
        raise TrainingError(
            f"method fedproto requires representations of one width: the student's has {own.shape[1]}, the prototypes "
            f"have {means.shape[1]}; choose students of equal width in student.by_merchant"
        )
    return (own.unsqueeze(1) - means).square().mean(dim=2) * present

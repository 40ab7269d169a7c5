"""Federated distillation with soft labels per class instead of per proxy example.

Jeong et al., "Communication-efficient on-device machine learning: federated distillation and augmentation under
non-IID private data", 2018, algorithm 1 (FD): a merchant sends the mean of its student's probabilities over its own
examples of each class, and the server averages them; a merchant's loss is the cross-entropy with the label plus gamma
times the cross-entropy with the mean of that label's class. Means are over all merchants that have the class; the paper
excludes a merchant's own mean from its target, a difference that vanishes with many merchants. They are computed from
private examples after training, so no privacy unit but ``label`` covers them: ``fd`` is rejected under the others.

The paper has no global student. Here the server re-initialises and distils one from the teacher's soft labels on the
proxy set mapped through the class means: sum over c of p_teacher(c | x) times the mean of class c. A class without a
mean keeps its one-hot label.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fed_distill.aggregation.class_means import RunningClassMeans
from fed_distill.config import PositiveFloat
from fed_distill.distill.losses import cross_entropy, hard_labels, soft_cross_entropy
from fed_distill.methods.base import GlobalState, Keeps, Service, Services, Trained, replace
from fed_distill.models.base import Outputs
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.training.plan import Duration, Objective, Phase, Plan, References
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class FD:
    """local_epochs: epochs on private examples. gamma: weight of the class means in a merchant's loss, relative to 1
    for the label. teacher_share: weight of the teacher's soft labels beside the mapped ones, in [0, 1]."""

    local_epochs: PositiveFloat = 1.0
    gamma: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    keeps: ClassVar[Keeps] = "own_student"
    uses: ClassVar[tuple[Service, ...]] = ("distil_anew",)
    sends: ClassVar[Kinds] = (ClassMeans,)
    receives: ClassVar[Kinds] = (ClassMeans,)

    def idle_options(self, rounds: int) -> dict[str, str]:
        """The weight of means, which exist from the second round on."""
        return {"gamma": "there are no class means in the only round"} if rounds == 1 else {}

    def broadcast(self, state: GlobalState) -> Downlink:
        """Send the class means; nothing before the first round."""
        return Downlink(state.round + 1, () if (means := known(state)) is None else (means,))

    def private_durations(self, round: int) -> tuple[Duration, ...]:
        """Train for ``local_epochs`` in every round."""
        return (Duration(self.local_epochs),)

    def plan(self, down: Downlink) -> Plan:
        """Train on private labels and the class means."""
        (own,) = self.private_durations(down.round)
        objective = regularized(down.get(ClassMeans), self.gamma)
        return Plan((Phase(objective, epochs=own.epochs, steps=own.steps),))

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send the class means over private examples; no weights."""
        return Uplink(trained.merchant, trained.examples, (trained.class_means(),))

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Average by class, with equal weight per merchant (a class without any mean keeps the previous one), and
        distil the global student."""
        running = RunningClassMeans(state.teacher_labels.shape[1])
        for uplink in up:
            if (means := uplink.get(ClassMeans)) is not None:
                running.add(means)
        told = running.mean(before=known(state))
        means = ClassMeans(told.probabilities.to(state.teacher_labels.dtype), told.present)
        seen = through(means, state.teacher_labels)
        target = self.teacher_share * state.teacher_labels + (1.0 - self.teacher_share) * seen
        return replace(state, round=state.round + 1, kept=vars(means), weights=server.distil_anew(target))


def known(state: GlobalState) -> ClassMeans | None:
    """Return the server's class means; None before the first round."""
    return ClassMeans(**state.kept) if state.kept else None


def regularized(means: ClassMeans | None, gamma: float) -> Objective:
    """Return the objective: cross-entropy with the reference ``labels``, plus ``gamma`` times that with the mean of the
    label's class; without a mean of that class, cross-entropy only."""
    if means is None:
        return hard_labels()

    def objective(outputs: Outputs, references: References) -> Tensor:
        labels = references["labels"]
        of_label = means.probabilities.to(labels.device)[labels]  # rows of absent classes are 0, and so is their loss
        return cross_entropy(outputs.logits, labels) + gamma * soft_cross_entropy(outputs.logits, of_label)

    return objective


def through(means: ClassMeans, teacher_labels: Tensor) -> Tensor:
    """Map the teacher's soft labels ``[proxy, classes]`` through the class means."""
    own = torch.eye(len(means.present), dtype=teacher_labels.dtype)
    return teacher_labels @ torch.where(means.present.unsqueeze(1), means.probabilities, own)

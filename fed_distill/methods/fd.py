"""Soft labels by class instead of by proxy example: merchants agree on what their students make of each class.

Jeong et al., "Communication-efficient on-device machine learning: federated distillation and augmentation under
non-IID private data", 2018, algorithm 1 (FD): a merchant sends the mean of its student's probabilities over its own
examples of each class, and the server averages them; a merchant's loss is the cross-entropy with the label plus gamma
times the cross-entropy with the mean of that label's class. The means are over all merchants that have the class; the
paper leaves a merchant's own out of those that it learns from, a difference that shrinks with their number. They are
computed on private examples, after training: no unit of privacy covers them, and a protected run with ``fd`` is
refused.

The paper has no global student. Here the server teaches one anew, from the teacher's soft labels of the proxy set seen
through the class means: sum over c of p_teacher(c | x) times the mean of class c. A class that no merchant has told of
keeps its own label.
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
from fed_distill.methods.base import GlobalState, Trained, replace
from fed_distill.models.base import Outputs
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.training.plan import Objective, Phase, Plan, References
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class FD:
    """local_epochs: epochs on private examples. gamma: weight of the class means in a merchant's loss, of the label 1.
    teacher_share: weight of the teacher's soft labels beside what the class means make of them, in [0, 1]."""

    local_epochs: PositiveFloat = 1.0
    gamma: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    personal: ClassVar[bool] = True
    relearns: ClassVar[bool] = True
    sends: ClassVar[Kinds] = (ClassMeans,)
    receives: ClassVar[Kinds] = (ClassMeans,)

    def broadcast(self, state: GlobalState) -> Downlink:
        """The class means; nothing before there are any."""
        return Downlink(state.round + 1, () if (means := known(state)) is None else (means,))

    def plan(self, down: Downlink) -> Plan:
        """Private examples, with their labels and what the merchants make of them."""
        return Plan((Phase(regularized(down.get(ClassMeans), self.gamma), epochs=self.local_epochs),))

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """The means over private examples; no weights."""
        return Uplink(trained.merchant, trained.examples, (trained.class_means(),))

    def merge(self, state: GlobalState, up: Iterable[Uplink]) -> GlobalState:
        """Average by class (each merchant that has it counts the same; a class that nobody has told of this time keeps
        its mean), and teach the global student."""
        running = RunningClassMeans(state.teacher_labels.shape[1])
        for uplink in up:
            if (means := uplink.get(ClassMeans)) is not None:
                running.add(means)
        told = running.mean(before=known(state))
        means = ClassMeans(told.probabilities.to(state.teacher_labels.dtype), told.present)
        seen = through(means, state.teacher_labels)
        target = self.teacher_share * state.teacher_labels + (1.0 - self.teacher_share) * seen
        return replace(state, round=state.round + 1, kept=vars(means), weights=state.relearn(target))


def known(state: GlobalState) -> ClassMeans | None:
    """The class means that the server keeps; None before the first round is merged."""
    return ClassMeans(**state.kept) if state.kept else None


def regularized(means: ClassMeans | None, gamma: float) -> Objective:
    """Objective: cross-entropy with the reference ``labels``, plus ``gamma`` times that with the mean of the label's
    class; without any mean of that class, or of any, with the label alone."""
    if means is None:
        return hard_labels()

    def objective(outputs: Outputs, references: References) -> Tensor:
        labels = references["labels"]
        of_label = means.probabilities.to(labels.device)[labels]  # rows of absent classes are 0, and so is their loss
        return cross_entropy(outputs.logits, labels) + gamma * soft_cross_entropy(outputs.logits, of_label)

    return objective


def through(means: ClassMeans, teacher_labels: Tensor) -> Tensor:
    """The teacher's soft labels ``[proxy, classes]`` with the mean of each class in the place of its label."""
    own = torch.eye(len(means.present), dtype=teacher_labels.dtype)
    return teacher_labels @ torch.where(means.present.unsqueeze(1), means.probabilities, own)

"""FedMD in both directions: merchants learn from the server's teacher, and the teacher from them, each where the other
knows better.

Fan et al., "FedMKT: Federated mutual knowledge transfer for large and small language models", COLING 2025: one server's
large model and merchants' small ones exchange logits on a public set. By the selection of their section 3.4 (DualMinCE)
the large model learns, of each example, from the merchant whose cross-entropy with its label is least, and only where
that is less than its own; a merchant learns from the large model only where the large one's is less than its own.

The paper's public set is labelled, the proxy set is not. Here the label for the teacher is the class that merchants and
teacher agree on, and for a merchant the class that the teacher names. A merchant's own cross-entropy is of its student
as it learns, not as it came. The paper aligns tokens of two vocabularies; classes are the same for all. The global
student is taught anew the chosen merchant's soft labels where one is chosen, and the teacher's elsewhere.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fed_distill.config import PositiveFloat
from fed_distill.distill.losses import soft_labels
from fed_distill.methods.base import GlobalState, Service, Services, replace
from fed_distill.methods.fedmd import FedMD
from fed_distill.methods.selective_fd import weighted
from fed_distill.models.base import Outputs
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.training.plan import Objective, Phase, Plan, References
from fed_distill.transport.messages import Downlink, Uplink


@dataclass(frozen=True)
class FedMKT(FedMD):
    """teacher_epochs: epochs of the teacher over the proxy set in a round, of which it sees the chosen examples, at
    teacher.learning_rate. teacher_share: weight of the teacher where it is agreed on a class, in [0, 1]. Other options
    as of ``fedmd``; the digest is of what the teacher says."""

    teacher_epochs: PositiveFloat = 1.0
    uses: ClassVar[tuple[Service, ...]] = ("distil_anew", "train_teacher")

    def broadcast(self, state: GlobalState) -> Downlink:
        """The soft labels of the teacher as it is now."""
        return Downlink(state.round + 1, (SoftLabels(state.teacher_labels),))

    def plan(self, down: Downlink) -> Plan:
        """Learn from the teacher where it knows better, then revisit the private examples."""
        digest, revisit = super().plan(down).phases
        return Plan((replace(digest, objective=where_surer(soft_labels(self.temperature))), revisit))

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Agree on classes, choose whom to learn from, and have teacher and global student learn."""
        teacher, best = state.teacher_labels, SurestAnswers(*state.teacher_labels.shape)
        merchants = self.agree(state, best.noting(up)).to(teacher.dtype)
        label = (self.teacher_share * teacher + (1.0 - self.teacher_share) * merchants).argmax(dim=-1)
        chosen = best.of(label).to(teacher.dtype)
        better = _at(chosen, label) > _at(teacher, label)
        knowledge = torch.where(better.unsqueeze(1), chosen, teacher)
        weights = server.distil_anew(knowledge)
        if better.any():
            state = server.train_teacher(state, self._teacher_plan(knowledge, better.to(teacher.dtype)))
        return replace(state, round=state.round + 1, consensus=knowledge, weights=weights)

    def _teacher_plan(self, knowledge: Tensor, better: Tensor) -> Plan:
        """One phase on the examples of which a merchant knows ``better``."""
        references = {"soft_labels": knowledge, "example_weights": better / better.mean()}
        learn = weighted(soft_labels(self.temperature))
        return Plan((Phase(learn, data="proxy", epochs=self.teacher_epochs, references=references),))


class SurestAnswers:
    """Of every example, whoever is surest of each class: memory for as many answers as there are classes, however many
    merchants there are. Of equals the first."""

    def __init__(self, proxy: int, classes: int) -> None:
        self._answers = torch.zeros(proxy, classes, classes)

    def noting(self, up: Iterable[Uplink]) -> Iterator[Uplink]:
        """``up``, with soft labels noted as they pass."""
        for uplink in up:
            if (labels := uplink.get(SoftLabels)) is not None:
                surer = labels.probabilities > self._answers.diagonal(dim1=1, dim2=2)
                self._answers = torch.where(surer.unsqueeze(2), labels.probabilities.unsqueeze(1), self._answers)
            yield uplink

    def of(self, label: Tensor) -> Tensor:
        """Soft labels ``[proxy, classes]`` of the merchant with the least cross-entropy with ``label`` ``[proxy]``."""
        return self._answers[torch.arange(len(label)), label]


def where_surer(objective: Objective) -> Objective:
    """``objective`` of those examples alone of whose class ``soft_labels`` are surer than the learner is."""

    def chosen(outputs: Outputs, references: References) -> Tensor:
        theirs = references["soft_labels"]
        label = theirs.argmax(dim=-1)
        surer = _at(theirs, label) > _at(outputs.logits.detach().softmax(dim=-1), label)
        return surer * objective(outputs, references)

    return chosen


def _at(probabilities: Tensor, label: Tensor) -> Tensor:
    """Probability of each example's ``label``: the larger, the less its cross-entropy."""
    return probabilities.gather(1, label.unsqueeze(1)).squeeze(1)

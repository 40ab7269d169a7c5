"""FedMD in both directions: merchants and the teacher distil from each other where the other is better.

Fan et al., "FedMKT: Federated mutual knowledge transfer for large and small language models", COLING 2025: a server's
large model and merchants' small ones exchange logits on a public set. By the selection of section 3.4 (DualMinCE) the
large model is trained, per example, on the output of the merchant with the lowest cross-entropy with the label, if that
is lower than its own; a merchant is trained on the large model's output only where that has the lower cross-entropy.

The lowest of many cross-entropies is too low: the more merchants there are, the surer one of them is by chance, right
or wrong (winner's curse). With ``choose = "mean"`` the teacher is compared with the merchants' mean instead, which is
not selected from many.

The paper's public set is labelled, the proxy set is not. Here the label for the teacher is the class of the consensus
of merchants and teacher, and for a merchant the teacher's predicted class. The paper adds the loss on the labels of the
public set: ``label_epochs`` trains the teacher on the server's labelled examples before it distils. A merchant's own
cross-entropy is that of its student during training. The paper aligns tokens of two vocabularies; classes need no
alignment. The global student is distilled from the selected soft labels, and elsewhere from the teacher's.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fed_distill.config import PositiveFloat
from fed_distill.distill.losses import hard_labels, soft_labels
from fed_distill.methods.base import GlobalState, Service, Services, replace
from fed_distill.methods.fedmd import FedMD
from fed_distill.methods.selective_fd import weighted
from fed_distill.models.base import Outputs
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.training.plan import Objective, Phase, Plan, References
from fed_distill.transport.messages import Downlink, Uplink


@dataclass(frozen=True)
class FedMKT(FedMD):
    """choose: what the teacher is compared with, per example: ``best``, the merchant with the lowest cross-entropy, as
    in the paper, or ``mean``, the merchants' mean. teacher_epochs: epochs of the teacher on the selected examples of
    the proxy set per round, with teacher.learning_rate. label_epochs: epochs of the teacher on the server's labelled
    examples, in rounds in which it distils. teacher_share: weight of the teacher in the consensus, in [0, 1]. Other
    options: see ``fedmd``; merchants distil from the teacher."""

    choose: Literal["best", "mean"] = "best"
    teacher_epochs: PositiveFloat = 1.0
    label_epochs: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    uses: ClassVar[tuple[Service, ...]] = ("distil_anew", "distil_onwards", "train_teacher")

    def broadcast(self, state: GlobalState) -> Downlink:
        """Send the current teacher's soft labels; nothing before private pre-training."""
        if self._pretrains(state.round + 1):
            return Downlink(state.round + 1)
        return Downlink(state.round + 1, (SoftLabels(state.teacher_labels),))

    def digest(self, consensus: Tensor) -> tuple[Phase, ...]:
        """Return the phase in which merchants distil from the teacher where it is better."""
        objective = where_surer(soft_labels(self.temperature))
        return tuple(replace(phase, objective=objective) for phase in super().digest(consensus))

    def idle_options(self, rounds: int) -> dict[str, str]:
        """As in ``fedmd``, but the teacher distils at ``temperature`` in every round."""
        return {name: why for name, why in super().idle_options(rounds).items() if name != "temperature"}

    def merge_bytes(self, proxy: int, classes: int) -> int:
        """The surest answers by class and, while one merchant's are compared, the next ones, in float32."""
        return 8 * proxy * classes**2 if self.choose == "best" else 0

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Compute the consensus, select outputs, and train teacher and global student on them."""
        teacher = state.teacher_labels
        best = SurestAnswers(*teacher.shape) if self.choose == "best" else None
        merchants = self.agree(state, up if best is None else best.noting(up)).to(teacher.dtype)
        label = (self.teacher_share * teacher + (1.0 - self.teacher_share) * merchants).argmax(dim=-1)
        chosen = merchants if best is None else best.of(label).to(teacher.dtype)
        better = _at(chosen, label) > _at(teacher, label)
        knowledge = torch.where(better.unsqueeze(1), chosen, teacher)
        weights = self.distilled(state, knowledge, server)
        if better.any():
            state = server.train_teacher(state, self._teacher_plan(knowledge, better.to(teacher.dtype)))
        return replace(state, round=state.round + 1, consensus=knowledge, weights=weights)

    def _teacher_plan(self, knowledge: Tensor, better: Tensor) -> Plan:
        """Return phases on the server's labels, if any, and on the examples for which merchants are ``better``."""
        references = {"soft_labels": knowledge, "example_weights": better / better.mean()}
        learn = weighted(soft_labels(self.temperature))
        distil = Phase(learn, data="proxy", epochs=self.teacher_epochs, references=references)
        return Plan((Phase(hard_labels(), epochs=self.label_epochs), distil) if self.label_epochs else (distil,))


class SurestAnswers:
    """For every example and class, the soft labels of the most confident merchant (the first of ties).

    Memory is independent of the number of merchants."""

    def __init__(self, proxy: int, classes: int) -> None:
        self._answers = torch.zeros(proxy, classes, classes)

    def noting(self, up: Iterable[Uplink]) -> Iterator[Uplink]:
        """Yield ``up`` unchanged while recording its soft labels."""
        for uplink in up:
            if (labels := uplink.get(SoftLabels)) is not None:
                surer = labels.probabilities > self._answers.diagonal(dim1=1, dim2=2)
                self._answers = torch.where(surer.unsqueeze(2), labels.probabilities.unsqueeze(1), self._answers)
            yield uplink

    def of(self, label: Tensor) -> Tensor:
        """Return the soft labels ``[proxy, classes]`` with the lowest cross-entropy with ``label`` ``[proxy]``."""
        return self._answers[torch.arange(len(label)), label]


def where_surer(objective: Objective) -> Objective:
    """Return ``objective`` restricted to examples where ``soft_labels`` are more confident than the learner."""

    def chosen(outputs: Outputs, references: References) -> Tensor:
        theirs = references["soft_labels"]
        label = theirs.argmax(dim=-1)
        surer = _at(theirs, label) > _at(outputs.logits.detach().softmax(dim=-1), label)
        return surer * objective(outputs, references)

    return chosen


def _at(probabilities: Tensor, label: Tensor) -> Tensor:
    """Return the probability of each example's ``label``: higher means lower cross-entropy."""
    return probabilities.gather(1, label.unsqueeze(1)).squeeze(1)

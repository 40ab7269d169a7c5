"""FedMD with a confidence-weighted consensus, and a global student regularized by the merchants that disagree with it.

Cho et al., "Heterogeneous ensemble knowledge transfer for training large models in federated learning", IJCAI 2022
(Fed-ET), section 3.2: an ensemble of merchants' small heterogeneous students is distilled into a larger one at the
server. Logits are weighted by their variance over the classes, the student's confidence on the example (so a confident
student, right or wrong, may outweigh many). The loss of the server's student is CE(F(x), y(x)) with the class y of that
consensus, plus lambda KL(s_div(x) || F(x)), with s_div the same average over the merchants that predict another class.
Soft labels determine logits up to a constant per example, which affects neither.

The paper has merchants send their students' weights, for two more steps, its representation transfer: before the
distillation, the server averages their representation layers, which all models have in common, and puts the mean into
its own; afterwards it averages the small students of each architecture and puts its own representation layers into
them, for the next round. Here no weights travel, so that a merchant sends soft labels alone: merchants keep their
students, those of equal kind too, and distil from the consensus instead. Built-in students of different kinds have no
layers in common: a ``two-tower`` compares two texts' vectors, and a transformer or ``lstm`` classifies one of its own
width. The server's student is the global one, and ``student.by_merchant`` configures theirs.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fed_distill.config import PositiveFloat
from fed_distill.distill.losses import decision_cross_entropy, distillation_kl
from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import GlobalState, Service, Services, replace
from fed_distill.methods.fedmd import FedMD
from fed_distill.models.base import Outputs
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.training.plan import Objective, Phase, Plan, References
from fed_distill.transport.messages import Uplink

TINY = torch.finfo(torch.float64).tiny
"""Confidence of uniform predictions: the smallest positive number."""


@dataclass(frozen=True)
class FedET(FedMD):
    """diversity: lambda, weight of disagreeing merchants in the server's loss. server_epochs: epochs of the global
    student on that loss per round, continued from its weights. teacher_share: weight of the teacher beside the
    merchants' consensus, in [0, 1]; 0 is the paper's method. Other options: see ``fedmd``; ``temperature`` applies to
    the merchants' distillation only."""

    diversity: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.05
    server_epochs: PositiveFloat = 1.0
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    onwards: ClassVar[bool] = True  # type: ignore[misc]  # not an option: its loss trains the last global student
    uses: ClassVar[tuple[Service, ...]] = ("distil",)

    def merge_bytes(self, proxy: int, classes: int) -> int:
        """Logits by predicted class, in float64."""
        return 8 * proxy * classes**2

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Compute the confidence-weighted consensus, and distil the global student from it and from disagreement."""
        logits, trust = by_answer(up, state.teacher_labels)
        merchants = (logits.sum(dim=1) / trust.sum(dim=1, keepdim=True)).softmax(dim=-1).to(state.teacher_labels.dtype)
        consensus = self.teacher_share * state.teacher_labels + (1.0 - self.teacher_share) * merchants
        others = torch.ones_like(trust).scatter(1, consensus.argmax(dim=-1, keepdim=True), 0.0)
        total_trust = (trust * others).sum(dim=1, keepdim=True)
        disagreeing = ((logits * others.unsqueeze(-1)).sum(dim=1) / total_trust.clamp_min(TINY)).softmax(dim=-1)
        references = {
            "soft_labels": consensus,
            "disagreeing": disagreeing.to(consensus.dtype),
            "disagreed": (total_trust.squeeze(1) > 0.0).to(consensus.dtype),
        }
        learn = Phase(
            consensus_and_diversity(self.diversity), data="proxy", epochs=self.server_epochs, references=references
        )
        weights = server.distil(state.weights, Plan((learn,)))
        return replace(state, round=state.round + 1, consensus=consensus, weights=weights)


def by_answer(up: Iterable[Uplink], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return float64 sums over merchants by predicted class: of logits times confidence, ``[proxy, classes, classes]``
    (predicted class, then logit), and of confidence ``[proxy, classes]``; raise UplinkRejected without soft labels."""
    proxy, classes = like.shape
    logits = torch.zeros(proxy, classes, classes, dtype=torch.float64)
    trust = torch.zeros(proxy, classes, dtype=torch.float64)
    examples = torch.arange(proxy)
    for uplink in up:
        if (labels := uplink.get(SoftLabels)) is not None:
            sent = labels.probabilities
            scores = sent.clamp_min(torch.finfo(sent.dtype).tiny).double().log()
            scores -= scores.mean(dim=-1, keepdim=True)
            confidence = scores.square().mean(dim=-1) + TINY
            answer = sent.argmax(dim=-1)
            logits[examples, answer] += confidence.unsqueeze(1) * scores
            trust[examples, answer] += confidence
    if not trust.any():
        raise UplinkRejected("no merchant sent soft labels that could be merged")
    return logits, trust


def consensus_and_diversity(weight: float) -> Objective:
    """Return the objective: cross-entropy with the class of ``soft_labels``, plus ``weight`` times the divergence from
    the ``disagreeing`` merchants, for examples with any (``disagreed``)."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        diverse = references["disagreed"] * distillation_kl(outputs.logits, references["disagreeing"], 1.0)
        return decision_cross_entropy(outputs.logits, references["soft_labels"]) + weight * diverse

    return objective

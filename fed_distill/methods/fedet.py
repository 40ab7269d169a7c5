"""FedMD whose consensus trusts the sure ones, and whose global student hears those too that disagree with it.

Cho et al., "Heterogeneous ensemble knowledge transfer for training large models in federated learning", IJCAI 2022
(Fed-ET), section 3.2: small students of merchants, of any kinds, teach a larger one at the server. Merchants' logits
are averaged by their variance over the classes, which is a student's confidence on the example (so one that is certain,
rightly or not, outweighs many). The server's student learns the class of that consensus, CE(F(x), y(x)), plus
lambda KL(s_div(x) || F(x)), with s_div the same average of those merchants alone whose class is another. Soft labels
tell logits up to a constant an example, which changes neither.

The paper sends the merchants' students, and gives them layers of the server's. Here merchants keep their students, send
soft labels, and digest the consensus; the server's student is the global one, ``student.by_merchant`` names theirs.
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
from fed_distill.methods.base import GlobalState, replace
from fed_distill.methods.fedmd import FedMD
from fed_distill.models.base import Outputs
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.training.plan import Objective, Phase, Plan, References
from fed_distill.transport.messages import Uplink

TINY = torch.finfo(torch.float64).tiny
"""Confidence of whoever finds all classes as probable: next to none."""


@dataclass(frozen=True)
class FedET(FedMD):
    """diversity: lambda, weight of those that disagree in the server's loss. server_epochs: epochs of the global
    student on that loss, from where it stands, a round. teacher_share: weight of the teacher
    beside the merchants' consensus, in [0, 1]; 0 is the paper's method. Other options as of ``fedmd``; ``temperature``
    is of the merchants' distillation alone."""

    diversity: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.05
    server_epochs: PositiveFloat = 1.0
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    relearns: ClassVar[bool] = False

    def merge(self, state: GlobalState, up: Iterable[Uplink]) -> GlobalState:
        """Agree by confidence, and teach the global student the consensus and who disagrees with it."""
        logits, trust = by_answer(up, state.teacher_labels)
        merchants = (logits.sum(dim=1) / trust.sum(dim=1, keepdim=True)).softmax(dim=-1).to(state.teacher_labels.dtype)
        consensus = self.teacher_share * state.teacher_labels + (1.0 - self.teacher_share) * merchants
        others = torch.ones_like(trust).scatter(1, consensus.argmax(dim=-1, keepdim=True), 0.0)
        heard = (trust * others).sum(dim=1, keepdim=True)
        disagreeing = ((logits * others.unsqueeze(-1)).sum(dim=1) / heard.clamp_min(TINY)).softmax(dim=-1)
        references = {
            "soft_labels": consensus,
            "disagreeing": disagreeing.to(consensus.dtype),
            "disagreed": (heard.squeeze(1) > 0.0).to(consensus.dtype),
        }
        learn = Phase(
            consensus_and_diversity(self.diversity), data="proxy", epochs=self.server_epochs, references=references
        )
        return replace(state, round=state.round + 1, consensus=consensus, server_plan=Plan((learn,)))


def by_answer(up: Iterable[Uplink], like: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over merchants, by the class that each answers: of logits times confidence, ``[proxy, classes, classes]``
    (answer, then logit), and of confidence ``[proxy, classes]``; float64. UplinkRejected if none sent soft labels."""
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
    """Objective: cross-entropy with the class of ``soft_labels``, plus ``weight`` times the divergence from what
    ``disagreeing`` merchants say, of those examples on which some ``disagreed``."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        diverse = references["disagreed"] * distillation_kl(outputs.logits, references["disagreeing"], 1.0)
        return decision_cross_entropy(outputs.logits, references["soft_labels"]) + weight * diverse

    return objective

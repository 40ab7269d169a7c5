"""FedMD with selection: merchants answer examples on which they are confident, and ambiguous consensus is dropped.

Shao et al., "Selective knowledge sharing for privacy-preserving federated distillation without a good teacher", Nature
Communications 2024: a selector at each merchant omits proxy examples that are unlike its own data, and a selector at
the server drops ambiguous consensus, that is, of high entropy. For the global student, dropped consensus is replaced by
the server's teacher, which the paper does not have. The paper compares proxy examples with a merchant's data by a
density-ratio estimator (KuLSIF), as ``selective-fd-kulsif`` does. In ``selective-fd`` a merchant answers where its
student is most confident: a weaker criterion, as students can be confident out of distribution, but computed from
public examples, so that it costs no privacy. The paper answers where the ratio exceeds a threshold, here a merchant
answers a fixed share of the proxy set, so that its bytes do not depend on its data. Other examples are not sent.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fed_distill.config import Share
from fed_distill.distill.losses import soft_labels
from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import GlobalState, Trained
from fed_distill.methods.fedmd import FedMD
from fed_distill.models.base import Outputs
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels
from fed_distill.training.plan import Objective, Phase, References
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class SelectiveFD(FedMD):
    """answer_share: share of the proxy set that a merchant answers, by confidence. max_entropy: maximum entropy of the
    used consensus, relative to that of uniform labels. teacher_share: weight of the teacher beside the merchants, in
    [0, 1]; 0 is the paper's method; otherwise it also replaces missing answers. Other options: see ``fedmd``."""

    answer_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    max_entropy: Share = 0.9
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    sends: ClassVar[Kinds] = (SelectedSoftLabels,)

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send probabilities and indices of the proxy examples with the highest confidence."""
        probabilities = trained.predict_proxy()
        answered = self.highest(probabilities.max(dim=-1).values)
        return Uplink(trained.merchant, trained.examples, (SelectedSoftLabels(probabilities[answered], answered),))

    def highest(self, scores: Tensor) -> Tensor:
        """Return a mask of the answered share of the proxy set, by ``scores`` ``[proxy]``, the first of ties."""
        answers = math.ceil(self.answer_share * len(scores))
        answered = torch.zeros(len(scores), dtype=torch.bool)
        answered[scores.sort(descending=True, stable=True).indices[:answers]] = True
        return answered

    def agree(self, state: GlobalState, up: Iterable[Uplink]) -> Tensor:
        """Return the mean over the merchants that answer an example; without answers, the teacher's soft labels if it
        contributes, else uniform ones, which are dropped as ambiguous."""
        total = torch.zeros(state.teacher_labels.shape, dtype=torch.float64)
        counts = torch.zeros(len(total), dtype=torch.float64)
        for uplink in up:
            for sent in (one for one in uplink.payloads if isinstance(one, SelectedSoftLabels)):
                total[sent.answered] += sent.probabilities
                counts += sent.answered
        if not counts.any():
            raise UplinkRejected("no merchant sent soft labels that could be merged")
        silent = state.teacher_labels if self.teacher_share else torch.full_like(total, 1.0 / total.shape[1])
        return torch.where(counts.unsqueeze(1) > 0, total / counts.clamp_min(1.0).unsqueeze(1), silent)

    def digest(self, consensus: Tensor) -> tuple[Phase, ...]:
        """Return a phase on the unambiguous consensus; none if all of it is ambiguous."""
        clear = self._clear(consensus).to(consensus.dtype)
        if not clear.any():
            return ()
        objective = weighted(soft_labels(self.temperature))
        references = {"soft_labels": consensus, "example_weights": clear / clear.mean()}
        return (Phase(objective, data="proxy", epochs=self.digest_epochs, references=references),)

    def lesson(self, state: GlobalState, consensus: Tensor) -> Tensor:
        """Return the unambiguous consensus, and elsewhere the teacher's soft labels."""
        return torch.where(self._clear(consensus).unsqueeze(1), consensus, state.teacher_labels)

    def _clear(self, consensus: Tensor) -> Tensor:
        """Return where the entropy is low enough, bool ``[proxy]``; equal at merchants and server."""
        entropy = torch.special.entr(consensus).sum(dim=-1)
        clear: Tensor = entropy <= self.max_entropy * math.log(consensus.shape[1])
        return clear


def weighted(objective: Objective) -> Objective:
    """Return ``objective`` with per-example weights from the reference ``example_weights``, float ``[batch]``.

    Weights with mean 1 over the proxy set keep the size of a step.
    """

    def counted(outputs: Outputs, references: References) -> Tensor:
        return references["example_weights"] * objective(outputs, references)

    return counted

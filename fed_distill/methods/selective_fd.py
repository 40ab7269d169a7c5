"""FedMD in which merchants answer only what they are sure of, and nobody learns what they do not agree on.

Shao et al., "Selective knowledge sharing for privacy-preserving federated distillation without a good teacher", Nature
Communications 2024: a selector at each merchant keeps back answers to proxy examples that are unlike its own data, and
a selector at the server drops ambiguous consensus, that is, of high entropy; where the global student is taught, the
server's teacher, which the paper does without, stands in for what was dropped. The paper's merchants compare proxy
examples with their data by a density-ratio estimator (KuLSIF). Here a merchant answers where its student is most
confident: a rougher sign, as students can be confident of what they have never seen, but one that is computed by the
student on public examples alone, so that under DP it costs nothing more. Unanswered examples are not sent.
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
    """answer_share: share of the proxy set that a merchant answers, those of which its student is most confident.
    max_entropy: consensus is learned up to this entropy, as a share of the largest there is (of uniform labels).
    teacher_share: weight of the teacher beside the merchants, in [0, 1]; 0 is the paper's method, with any other it
    stands in where no merchant answers. Other options as of ``fedmd``."""

    answer_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    max_entropy: Share = 0.9
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    sends: ClassVar[Kinds] = (SelectedSoftLabels,)

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Probabilities of the proxy examples whose most probable class is most probable, and which ones they are."""
        probabilities = trained.predict_proxy()
        confidence = probabilities.max(dim=-1).values
        answers = math.ceil(self.answer_share * len(confidence))
        answered = torch.zeros(len(confidence), dtype=torch.bool)
        answered[confidence.sort(descending=True, stable=True).indices[:answers]] = True
        return Uplink(trained.merchant, trained.examples, (SelectedSoftLabels(probabilities[answered], answered),))

    def agree(self, state: GlobalState, up: Iterable[Uplink]) -> Tensor:
        """Mean over the merchants that answer an example; of one that nobody answers the teacher's soft labels if it
        takes part, else uniform ones, which are dropped as ambiguous."""
        total = torch.zeros(state.teacher_labels.shape, dtype=torch.float64)
        counts = torch.zeros(len(total), dtype=torch.float64)
        for uplink in up:
            if (sent := uplink.get(SelectedSoftLabels)) is not None:
                total[sent.answered] += sent.probabilities
                counts += sent.answered
        if not counts.any():
            raise UplinkRejected("no merchant sent soft labels that could be merged")
        silent = state.teacher_labels if self.teacher_share else torch.full_like(total, 1.0 / total.shape[1])
        return torch.where(counts.unsqueeze(1) > 0, total / counts.clamp_min(1.0).unsqueeze(1), silent)

    def digest(self, consensus: Tensor) -> tuple[Phase, ...]:
        """Learn the consensus where it is not ambiguous; nothing if it is everywhere."""
        clear = self._clear(consensus).to(consensus.dtype)
        if not clear.any():
            return ()
        objective = weighted(soft_labels(self.temperature))
        references = {"soft_labels": consensus, "example_weights": clear / clear.mean()}
        return (Phase(objective, data="proxy", epochs=self.digest_epochs, references=references),)

    def lesson(self, state: GlobalState, consensus: Tensor) -> Tensor:
        """The consensus where it is not ambiguous, and elsewhere the teacher's soft labels."""
        return torch.where(self._clear(consensus).unsqueeze(1), consensus, state.teacher_labels)

    def _clear(self, consensus: Tensor) -> Tensor:
        """Whose entropy is low enough, bool ``[proxy]``; merchants and server find the same."""
        entropy = torch.special.entr(consensus).sum(dim=-1)
        clear: Tensor = entropy <= self.max_entropy * math.log(consensus.shape[1])
        return clear


def weighted(objective: Objective) -> Objective:
    """``objective`` with each example counted by the reference ``example_weights``, float ``[batch]``.

    Weights of mean 1 over the proxy set keep the size of a step: what is left out is made up for by the rest.
    """

    def counted(outputs: Outputs, references: References) -> Tensor:
        return references["example_weights"] * objective(outputs, references)

    return counted

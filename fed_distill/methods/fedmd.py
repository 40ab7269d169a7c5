"""Federated distillation: merchants exchange soft labels on the proxy set instead of weights, with any student models.

Li and Wang, "FedMD: Heterogenous federated learning via model distillation", 2019, algorithm 1: a merchant trains on
the consensus on the public set ("digest"), then on its private examples ("revisit"), and sends its scores on the public
set; the server averages them. Here the scores are probabilities, the server's teacher contributes to the consensus, and
the server has a global student: it is re-initialised and distilled like the server's own, with the consensus in place
of the teacher's soft labels (continued distillation would overfit the proxy set). Methods with another consensus
override ``agree``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fed_distill.aggregation.running import RunningMean
from fed_distill.config import PositiveFloat
from fed_distill.distill.losses import hard_labels, soft_labels
from fed_distill.methods.base import GlobalState, Keeps, Service, Services, Trained, replace
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.training.plan import Phase, Plan
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class FedMD:
    """digest_epochs: a merchant's epochs on the consensus on the proxy set. local_epochs: epochs on private examples.
    temperature: of the merchants' distillation. teacher_share: weight of the teacher in the consensus, in [0, 1]; with
    1 the global student is the server's own."""

    digest_epochs: PositiveFloat = 1.0
    local_epochs: PositiveFloat = 1.0
    temperature: PositiveFloat = 1.0
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    keeps: ClassVar[Keeps] = "own_student"
    uses: ClassVar[tuple[Service, ...]] = ("distil_anew",)
    sends: ClassVar[Kinds] = (SoftLabels,)
    receives: ClassVar[Kinds] = (SoftLabels,)

    def broadcast(self, state: GlobalState) -> Downlink:
        """Send the consensus; in the first round, the teacher's soft labels."""
        consensus = state.teacher_labels if state.consensus is None else state.consensus
        return Downlink(state.round + 1, (SoftLabels(consensus),))

    def plan(self, down: Downlink) -> Plan:
        """Train on the consensus, then on private examples."""
        consensus = down.need(SoftLabels).probabilities
        return Plan((*self.digest(consensus), Phase(hard_labels(), epochs=self.local_epochs)))

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send probabilities on the proxy set; no weights."""
        return Uplink(trained.merchant, trained.examples, (SoftLabels(trained.predict_proxy()),))

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Compute the consensus, mix in the teacher, and distil the global student from the result."""
        merchants = self.agree(state, up).to(state.teacher_labels.dtype)
        consensus = self.teacher_share * state.teacher_labels + (1.0 - self.teacher_share) * merchants
        weights = server.distil_anew(self.lesson(state, consensus))
        return replace(state, round=state.round + 1, consensus=consensus, weights=weights)

    def agree(self, state: GlobalState, up: Iterable[Uplink]) -> Tensor:
        """Return the consensus ``[proxy, classes]``: the mean over merchants with equal weights."""
        scores = RunningMean()
        for uplink in up:
            if (labels := uplink.get(SoftLabels)) is not None:
                scores.add(labels.probabilities)
        return scores.mean()

    def digest(self, consensus: Tensor) -> tuple[Phase, ...]:
        """Return the phases in which merchants distil from a consensus on the whole proxy set."""
        references = {"soft_labels": consensus}
        return (Phase(soft_labels(self.temperature), data="proxy", epochs=self.digest_epochs, references=references),)

    def lesson(self, state: GlobalState, consensus: Tensor) -> Tensor:
        """Return the global student's targets ``[proxy, classes]`` for a consensus: the consensus itself."""
        return consensus

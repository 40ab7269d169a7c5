"""Soft labels instead of weights: merchants agree on the proxy set, whatever student each of them has.

Li and Wang, "FedMD: Heterogenous federated learning via model distillation", 2019, algorithm 1: a merchant
digests the consensus on the public set, revisits its private examples, and sends its scores on the public
set; the server averages them. Here the scores are probabilities, the server's teacher takes part in the
consensus, and the server has a global student: it is taught anew, with the consensus in the place of the teacher's soft
labels and all else as the server's own was (distilled further from where it stands, it would learn the proxy set by
heart). Methods that agree in another way than by the mean are this one with another ``agree``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fed_distill.aggregation.running import RunningMean
from fed_distill.config import PositiveFloat
from fed_distill.distill.losses import hard_labels, soft_labels
from fed_distill.methods.base import GlobalState, Trained, replace
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.training.plan import Phase, Plan
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class FedMD:
    """digest_epochs: a merchant's epochs on the consensus over the proxy set. local_epochs: epochs on private examples.
    temperature: of the merchants' distillation. teacher_share: weight of the teacher in the consensus, in [0, 1]; with
    1 the global student is the server's own."""

    digest_epochs: PositiveFloat = 1.0
    local_epochs: PositiveFloat = 1.0
    temperature: PositiveFloat = 1.0
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    personal: ClassVar[bool] = True
    relearns: ClassVar[bool] = True
    sends: ClassVar[Kinds] = (SoftLabels,)
    receives: ClassVar[Kinds] = (SoftLabels,)

    def broadcast(self, state: GlobalState) -> Downlink:
        """The consensus; before there is one, the teacher's soft labels."""
        consensus = state.teacher_labels if state.consensus is None else state.consensus
        return Downlink(state.round + 1, (SoftLabels(consensus),))

    def plan(self, down: Downlink) -> Plan:
        """Digest the consensus, then revisit the private examples."""
        consensus = down.need(SoftLabels).probabilities
        return Plan((*self.digest(consensus), Phase(hard_labels(), epochs=self.local_epochs)))

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Probabilities on the proxy set; no weights."""
        return Uplink(trained.merchant, trained.examples, (SoftLabels(trained.predict_proxy()),))

    def merge(self, state: GlobalState, up: Iterable[Uplink]) -> GlobalState:
        """Agree on the proxy set, mix in the teacher, and teach the global student that."""
        merchants = self.agree(state, up).to(state.teacher_labels.dtype)
        consensus = self.teacher_share * state.teacher_labels + (1.0 - self.teacher_share) * merchants
        weights = state.relearn(self.lesson(state, consensus))
        return replace(state, round=state.round + 1, consensus=consensus, weights=weights)

    def agree(self, state: GlobalState, up: Iterable[Uplink]) -> Tensor:
        """What the merchants say together, ``[proxy, classes]``: their mean, each merchant counting the same."""
        scores = RunningMean()
        for uplink in up:
            if (labels := uplink.get(SoftLabels)) is not None:
                scores.add(labels.probabilities)
        return scores.mean()

    def digest(self, consensus: Tensor) -> tuple[Phase, ...]:
        """How merchants learn a consensus: as the soft labels of the whole proxy set."""
        references = {"soft_labels": consensus}
        return (Phase(soft_labels(self.temperature), data="proxy", epochs=self.digest_epochs, references=references),)

    def lesson(self, state: GlobalState, consensus: Tensor) -> Tensor:
        """What of a consensus the global student is taught, ``[proxy, classes]``: all of it."""
        return consensus

"""Federated distillation: merchants exchange soft labels on the proxy set instead of weights, with any student models.

Li and Wang, "FedMD: Heterogenous federated learning via model distillation", 2019, algorithm 1: each merchant trains on
the labelled public set and then on its private examples (transfer learning). In each round, merchants send their scores
on the public set, and the server averages them; each merchant trains on this consensus ("digest"), then on its private
examples ("revisit").

Here merchants start from the server's student, which is trained on the server's labels. With ``pretrain_epochs`` the
first round is the paper's transfer learning, and the consensus comes from merchants only; without, merchants digest the
teacher's soft labels in the first round. Merchants digest a consensus at the beginning of the next round, so that they
do not digest the last one. The paper's scores are logits of a labelled public set; here they are probabilities of an
unlabeled one, and the server's teacher contributes to the consensus (``teacher_share``). The paper has no global
student: here it is distilled like the server's own, with the consensus in place of the teacher's soft labels, in each
round anew or from the last one (``onwards``). Methods with another consensus override ``agree``.
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
from fed_distill.models.weights import Weights
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.training.plan import Duration, Phase, Plan
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class FedMD:
    """digest_epochs: a merchant's epochs on the consensus on the proxy set. local_epochs: epochs on private examples.
    pretrain_epochs: epochs on private examples alone in the first round, until convergence in the paper; 0: the first
    round is like the others, with the teacher's soft labels as the consensus. private_rate_scale: factor of the
    learning rate on private examples. temperature: of the merchants' distillation. teacher_share: weight of the teacher
    in the consensus, in [0, 1]; with 1 the global student is the server's own. onwards: whether the global student is
    trained from its last weights instead of re-initialised."""

    digest_epochs: PositiveFloat = 1.0
    local_epochs: PositiveFloat = 1.0
    pretrain_epochs: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0
    private_rate_scale: PositiveFloat = 1.0
    temperature: PositiveFloat = 1.0
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    onwards: bool = False
    keeps: ClassVar[Keeps] = "own_student"
    uses: ClassVar[tuple[Service, ...]] = ("distil_anew", "distil_onwards")
    sends: ClassVar[Kinds] = (SoftLabels,)
    receives: ClassVar[Kinds] = (SoftLabels,)

    def broadcast(self, state: GlobalState) -> Downlink:
        """Send the consensus; in the first round, the teacher's soft labels, or nothing before private pre-training."""
        if self._pretrains(state.round + 1):
            return Downlink(state.round + 1)
        consensus = state.teacher_labels if state.consensus is None else state.consensus
        return Downlink(state.round + 1, (SoftLabels(consensus),))

    def private_durations(self, round: int) -> tuple[Duration, ...]:
        """Train for ``pretrain_epochs`` in the first round, if there are any, and otherwise for ``local_epochs``."""
        return (Duration(self.pretrain_epochs if self._pretrains(round) else self.local_epochs),)

    def plan(self, down: Downlink) -> Plan:
        """Train on the consensus, then on private examples; in the first round possibly on these alone."""
        (own,) = self.private_durations(down.round)
        private = Phase(hard_labels(), epochs=own.epochs, steps=own.steps, learning_rate_scale=self.private_rate_scale)
        if self._pretrains(down.round):
            return Plan((private,))
        return Plan((*self.digest(down.need(SoftLabels).probabilities), private))

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send probabilities on the proxy set; no weights."""
        return Uplink(trained.merchant, trained.examples, (SoftLabels(trained.predict_proxy()),))

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Compute the consensus, mix in the teacher, and distil the global student from the result."""
        merchants = self.agree(state, up).to(state.teacher_labels.dtype)
        consensus = self.teacher_share * state.teacher_labels + (1.0 - self.teacher_share) * merchants
        weights = self.distilled(state, self.lesson(state, consensus), server)
        return replace(state, round=state.round + 1, consensus=consensus, weights=weights)

    def distilled(self, state: GlobalState, soft_labels: Tensor, server: Services) -> Weights:
        """Return the global student, distilled from ``soft_labels`` ``[proxy, classes]``."""
        if self.onwards:
            return server.distil_onwards(state.weights, soft_labels)
        return server.distil_anew(soft_labels)

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

    def idle_options(self, rounds: int) -> dict[str, str]:
        """Of one round that pre-trains: what merchants would do with a consensus."""
        if rounds > 1 or not self.pretrain_epochs:
            return {}
        reason = f"merchants pre-train in the only round (pretrain_epochs = {self.pretrain_epochs:g})"
        return dict.fromkeys(("digest_epochs", "local_epochs", "temperature"), reason)

    def lesson(self, state: GlobalState, consensus: Tensor) -> Tensor:
        """Return the global student's targets ``[proxy, classes]`` for a consensus: the consensus itself."""
        return consensus

    def _pretrains(self, round: int) -> bool:
        return round == 1 and self.pretrain_epochs > 0.0

"""Mutual learning of a merchant's own mentor and a shared mentee, whose update alone is sent, as thin factors.

Wu et al., "Communication-efficient federated learning via knowledge distillation", Nature Communications 2022 (FedKD).
Adaptive mutual distillation: either's loss is its cross-entropy with the label plus KL(other || own) over the sum of
both cross-entropies, here of the example itself, as DP needs it: the more both err, the less they listen. The mentee's
update leaves as thin factors of its matrices, which keep a share of the squared singular values (energy) that grows
from round to round along T(t) = T_start + (T_end - T_start) t.

The paper's loss on hidden states needs students with layers alike and is left out, and its server factors what it sends
too, to merchants that keep a mentee: here they keep none, may miss rounds, and are sent the whole one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fed_distill.distill.losses import cross_entropy
from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import GlobalState, Keeps, Services, Trained, replace
from fed_distill.methods.fedavg import FedAvg
from fed_distill.methods.fml import taught
from fed_distill.models.base import Outputs
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.training.plan import Objective, Phase, Plan, References
from fed_distill.transport.messages import Downlink, Kinds, Uplink

LEAST = 1e-4
"""The least sum of cross-entropies that distillation is divided by: of both students sure and right it would be 0."""
Energy = Annotated[float, Field(gt=0.0, le=1.0)]


@dataclass(frozen=True)
class FedKD(FedAvg):
    """local_epochs: epochs over a merchant's private examples in a round. energy_start, energy_end: share of an
    update's energy that its factors keep at least, in the first and in the last round (T_start and T_end)."""

    energy_start: Energy = 0.95
    energy_end: Energy = 0.98
    keeps: ClassVar[Keeps] = "own_student"
    sends: ClassVar[Kinds] = (LowRankUpdate,)

    def broadcast(self, state: GlobalState) -> Downlink:
        """The mentee, and the energy of this round."""
        done = state.round / max(state.rounds - 1, 1)
        energy = self.energy_start + (self.energy_end - self.energy_start) * done
        return replace(super().broadcast(state), scalars={"energy": energy})

    def plan(self, down: Downlink) -> Plan:
        """Both students on private labels and on each other's predictions."""
        return Plan((Phase(adaptive_mutual(), epochs=self.local_epochs),), pair=True)

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """How the mentee moved, factored."""
        if "energy" not in down.scalars:
            raise UplinkRejected(f"merchant {trained.merchant}: the server names no energy")
        factored = LowRankUpdate.factored(trained.update, down.scalars["energy"])
        return Uplink(trained.merchant, trained.examples, (factored,))

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """The mentee moved by the aggregated update."""
        return super().merge(state, map(multiplied_out, up), server)


def multiplied_out(uplink: Uplink) -> Uplink:
    """The same with its update multiplied out."""
    update = uplink.get(LowRankUpdate)
    return uplink if update is None else replace(uplink, payloads=(StudentUpdate.of(update.multiplied_out()),))


def adaptive_mutual() -> Objective:
    """Objective of a pair: the sum of both losses, each student's with the other's predictions held fixed, and so the
    weight of the distillation."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        assert outputs.shared is not None
        mentor, mentee, labels = outputs.logits, outputs.shared.logits, references["labels"]
        task = cross_entropy(mentor, labels) + cross_entropy(mentee, labels)
        mutual = taught(mentor, mentee) + taught(mentee, mentor)
        return task + mutual / task.detach().clamp_min(LEAST)

    return objective

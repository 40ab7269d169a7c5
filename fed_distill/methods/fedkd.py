"""Mutual distillation of a merchant's own mentor and a shared mentee; only the mentee's low-rank update is sent.

Wu et al., "Communication-efficient federated learning via knowledge distillation", Nature Communications 2022 (FedKD).
Adaptive mutual distillation: the loss of either student is its cross-entropy with the label plus KL(other || own)
divided by the sum of both cross-entropies, here per example, as DP requires: distillation is weaker where both err. The
mentee's update is sent as low-rank factors, which keep a share of the squared singular values (energy) that increases
by round along T(t) = T_start + (T_end - T_start) t.

In the paper the mentor is larger than the mentee: here ``student.by_merchant`` names the mentors' model or models, and
``student.model`` the mentee's. Without it both have the mentee's model and start.

Deviations. The loss on hidden states requires students with matching layers and is omitted. The server also factorizes
the downlink in the paper, for merchants that keep a mentee: here they keep none, may miss rounds, and receive the full
mentee. The paper factorizes all matrices; without ``factor_tables``, the rows of embedding tables that a merchant's
examples use are sent as they are: few rows of unrelated tokens have no common low rank, and those of rare tokens, which
have little energy, would be lost first.
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
from fed_distill.methods.fml import divergence
from fed_distill.models.base import Outputs
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.training.plan import Objective, Phase, Plan, References
from fed_distill.transport.messages import Downlink, Kinds, Uplink

LEAST = 1e-4
"""Minimum divisor of the distillation loss, which would be 0 if both students were certain and right."""
Energy = Annotated[float, Field(gt=0.0, le=1.0)]


@dataclass(frozen=True)
class FedKD(FedAvg):
    """local_epochs: epochs on a merchant's private examples per round. energy_start, energy_end: minimum share of an
    update's energy in its factors, in the first and in the last round (T_start and T_end). factor_tables: whether
    embedding tables are sent as factors too, as in the paper, or as the rows that a merchant's examples use."""

    energy_start: Energy = 0.95
    energy_end: Energy = 0.98
    factor_tables: bool = True
    keeps: ClassVar[Keeps] = "own_student"
    sends: ClassVar[Kinds] = (LowRankUpdate,)

    def idle_options(self, rounds: int) -> dict[str, str]:
        """The energy of the last round, if there is one round."""
        return {"energy_end": "the only round has energy_start"} if rounds == 1 else {}

    def broadcast(self, state: GlobalState) -> Downlink:
        """Send the mentee, and the energy of this round."""
        done = state.round / max(state.rounds - 1, 1)
        energy = self.energy_start + (self.energy_end - self.energy_start) * done
        return replace(super().broadcast(state), scalars={"energy": energy})

    def plan(self, down: Downlink) -> Plan:
        """Train both students on private labels and on each other's predictions."""
        (own,) = self.private_durations(down.round)
        return Plan((Phase(adaptive_mutual(), epochs=own.epochs, steps=own.steps),), pair=True)

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send the mentee's update in factors."""
        if "energy" not in down.scalars:
            raise UplinkRejected(f"merchant {trained.merchant}: the server names no energy")
        factored = LowRankUpdate.factored(trained.update, down.scalars["energy"], self.factor_tables)
        return Uplink(trained.merchant, trained.examples, (factored,))

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Add the aggregated update to the mentee."""
        return super().merge(state, map(multiplied_out, up), server)


def multiplied_out(uplink: Uplink) -> Uplink:
    """The same with its update multiplied out."""
    update = uplink.get(LowRankUpdate)
    return uplink if update is None else replace(uplink, payloads=(StudentUpdate.of(update.multiplied_out()),))


def adaptive_mutual() -> Objective:
    """Return the objective of a pair: the sum of both losses; the other's predictions and the weight of the
    distillation are constants."""

    def objective(outputs: Outputs, references: References) -> Tensor:
        assert outputs.shared is not None
        mentor, mentee, labels = outputs.logits, outputs.shared.logits, references["labels"]
        task = cross_entropy(mentor, labels) + cross_entropy(mentee, labels)
        mutual = divergence(mentor, mentee) + divergence(mentee, mentor)
        return task + mutual / task.detach().clamp_min(LEAST)

    return objective

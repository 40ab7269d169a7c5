"""PATE: merchants are teachers that vote, and the global student is distilled from their consensus.

Papernot et al., "Semi-supervised knowledge transfer for deep learning from private training data", ICLR 2017 (PATE),
and "Scalable private learning with PATE", ICLR 2018. A merchant trains the global student on its private examples and
sends its predicted class for every proxy example; the server's ``tally`` counts the votes, with or without noise. The
global student is then re-initialised and distilled with the answers in place of the teacher's soft labels; examples
without an answer, which the paper drops, keep the teacher's. The temperature is 1: one-hot targets at another
temperature would require unbounded logits, with a loss scaled by T^2.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fed_distill.config import PositiveFloat
from fed_distill.distill.losses import hard_labels
from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import GlobalState, Keeps, Service, Services, Trained, replace
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.payloads.votes import Votes
from fed_distill.training.plan import Duration, Phase, Plan
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class PATE:
    """local_epochs: epochs of a merchant on its private examples per round. teacher_share: weight of the teacher's soft
    labels beside an answer, in [0, 1]; 0 is the paper's method."""

    local_epochs: PositiveFloat = 1.0
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    keeps: ClassVar[Keeps] = "nothing"
    uses: ClassVar[tuple[Service, ...]] = ("tally", "distil_anew")
    sends: ClassVar[Kinds] = (Votes,)
    receives: ClassVar[Kinds] = (StudentWeights,)

    def broadcast(self, state: GlobalState) -> Downlink:
        """Send the global student, from which every merchant starts."""
        return Downlink(state.round + 1, (StudentWeights(state.weights),))

    def private_durations(self, round: int) -> tuple[Duration, ...]:
        """Train for ``local_epochs`` in every round."""
        return (Duration(self.local_epochs),)

    def plan(self, down: Downlink) -> Plan:
        """Train on private labels."""
        (own,) = self.private_durations(down.round)
        return Plan((Phase(hard_labels(), epochs=own.epochs, steps=own.steps),))

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send the predicted class of each proxy example; no weights."""
        return Uplink(trained.merchant, trained.examples, (Votes(trained.predict_proxy().argmax(dim=-1)),))

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Count the votes with equal weight per merchant, tally them, and distil the answers, if any."""
        histogram = torch.zeros(state.teacher_labels.shape, dtype=torch.int64)
        voters = 0
        for uplink in up:
            if (votes := uplink.get(Votes)) is not None:
                histogram[torch.arange(len(histogram)), votes.classes] += 1
                voters += 1
        if not voters:
            raise UplinkRejected("no merchant sent votes that could be counted")
        answers = server.tally(histogram)
        state = replace(state, round=state.round + 1)
        if not (answers >= 0).any():
            return state
        return replace(state, weights=server.distil_anew(self.lesson(state, answers), temperature=1.0))

    def lesson(self, state: GlobalState, answers: Tensor) -> Tensor:
        """Return soft labels ``[proxy, classes]`` for answers, int64 ``[proxy]``, negative for none."""
        teacher = state.teacher_labels
        labels = F.one_hot(answers.clamp_min(0), teacher.shape[1]).to(teacher.dtype)
        mixed = self.teacher_share * teacher + (1.0 - self.teacher_share) * labels
        return torch.where((answers >= 0).unsqueeze(1), mixed, teacher)

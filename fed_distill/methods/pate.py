"""Votes instead of weights: merchants are the teachers, and the student learns what most of them agree on.

Papernot et al., "Semi-supervised knowledge transfer for deep learning from private training data", ICLR 2017 (PATE),
and "Scalable private learning with PATE", ICLR 2018. A merchant trains the global student on its private examples and
sends its predicted class of every proxy example; how the votes are counted, with noise or without, is the server's
``tally``. The global student then learns the answers, and nothing from examples that got none.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fed_distill.config import PositiveFloat
from fed_distill.distill.losses import hard_labels, soft_labels
from fed_distill.errors import UplinkRejected
from fed_distill.methods.base import GlobalState, Part, Trained, replace
from fed_distill.models.base import Outputs
from fed_distill.training.plan import Objective, Phase, Plan, References
from fed_distill.transport.messages import Downlink, Uplink


@dataclass(frozen=True)
class PATE:
    """local_epochs: epochs of a merchant on its private examples in a round. server_epochs: epochs of the global
    student over the proxy set, of which it sees the answered examples. temperature: of that distillation.
    teacher_share: weight of the teacher's soft labels beside an answer, in [0, 1]; 0 is the paper's method."""

    local_epochs: PositiveFloat = 1.0
    server_epochs: PositiveFloat = 1.0
    temperature: PositiveFloat = 1.0
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    personal: ClassVar[bool] = False
    sends: ClassVar[tuple[Part, ...]] = ("votes",)

    def broadcast(self, state: GlobalState) -> Downlink:
        """The global student, from which every merchant's own begins."""
        return Downlink(round=state.round + 1, weights=state.weights)

    def plan(self, down: Downlink) -> Plan:
        """Private labels only."""
        return Plan((Phase(hard_labels(), epochs=self.local_epochs),))

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """The predicted class of each proxy example; no weights."""
        return Uplink(trained.merchant, trained.examples, votes=trained.predict_proxy().argmax(dim=-1))

    def merge(self, state: GlobalState, up: Iterable[Uplink]) -> GlobalState:
        """Count the votes (each merchant counts the same), ask for answers, and distil from them if there are any."""
        histogram = torch.zeros(state.teacher_labels.shape, dtype=torch.int64)
        voters = 0
        for uplink in up:
            if uplink.votes is not None:
                histogram[torch.arange(len(histogram)), uplink.votes] += 1
                voters += 1
        if not voters:
            raise UplinkRejected("no merchant sent votes that could be counted")
        plan = self._server_plan(state.tally(histogram), state.teacher_labels)
        return replace(state, round=state.round + 1, server_plan=plan)

    def _server_plan(self, answers: Tensor, teacher_labels: Tensor) -> Plan:
        """One phase on the answers, int64 ``[proxy]`` and negative where there is none; nothing if there are none."""
        answered = (answers >= 0).to(teacher_labels.dtype)
        if not answered.any():
            return Plan()
        labels = F.one_hot(answers.clamp_min(0), teacher_labels.shape[1]).to(teacher_labels.dtype)
        target = self.teacher_share * teacher_labels + (1.0 - self.teacher_share) * labels
        distil = Phase(
            weighted(soft_labels(self.temperature)),
            data="proxy",
            epochs=self.server_epochs,
            references={"soft_labels": target, "example_weights": answered / answered.mean()},
        )
        return Plan((distil,))


def weighted(objective: Objective) -> Objective:
    """``objective`` with each example counted by the reference ``example_weights``, float ``[batch]``.

    Weights of mean 1 over the proxy set keep the size of a step: what is left out is made up for by the rest.
    """

    def counted(outputs: Outputs, references: References) -> Tensor:
        return references["example_weights"] * objective(outputs, references)

    return counted

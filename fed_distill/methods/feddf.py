"""Average the weights, then distil the ensemble of the merchants' students into the average on the proxy set.

Lin et al., "Ensemble distillation for robust model fusion in federated learning", NeurIPS 2020, eq. 1: the target is
the softmax of the mean of the merchants' logits. Merchants send their proxy probabilities beside their weights:
log-probabilities are logits up to a constant per example, so the target is the paper's, and the server need not
evaluate each merchant's student.

In the paper, distillation ends when the validation score has not improved for 1,000 steps, after at most 10,000
(section 4.1): ``patience`` = 1000 and a large ``server_epochs``. The score is on the server's own validation examples,
and the best student is kept, which may be the average itself. Without ``patience`` all epochs are trained. Batches are
drawn without repetition between two scores, so that ``server_epochs`` is a number of steps with ``patience``.
Deviations: the optimizer's moments start anew at each score, the learning rate is constant within a round (the paper's
follows a cosine), and merchants whose students are near chance are not dropped (the paper's "drop-worst").
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from fed_distill.aggregation.running import RunningMean
from fed_distill.config import FederationConfig, PositiveFloat, PositiveInt, TrainerConfig
from fed_distill.distill.losses import soft_labels
from fed_distill.errors import ConfigError
from fed_distill.methods.base import GlobalState, Service, Services, Trained, replace
from fed_distill.methods.fedavg import FedAvg
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.training.early_stopping import EarlyStopping
from fed_distill.training.plan import Phase, Plan
from fed_distill.transport.messages import Downlink, Kinds, Uplink


@dataclass(frozen=True)
class FedDF(FedAvg):
    """server_epochs: epochs of ensemble distillation per round, with ``patience`` at most. temperature: of its loss.
    teacher_share: weight of the server's teacher in the target, in [0, 1]; 0 is the paper's method. patience: steps
    without a better validation score after which distillation ends; None for all epochs. check_every: steps between two
    scores."""

    server_epochs: PositiveFloat = 1.0
    temperature: PositiveFloat = 1.0
    teacher_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    patience: PositiveInt | None = None
    check_every: PositiveInt = 100
    uses: ClassVar[tuple[Service, ...]] = ("average", "distil")
    sends: ClassVar[Kinds] = (StudentUpdate, SoftLabels)

    def idle_options(self, rounds: int) -> dict[str, str]:
        """What early stopping needs, without it."""
        return {} if self.patience else {"check_every": "without patience distillation is not stopped early"}

    def check(self, federation: FederationConfig, training: TrainerConfig, classes: int) -> None:
        """Refuse patience that ends before there can be a second score."""
        if self.patience is not None and self.patience < self.check_every:
            raise ConfigError(
                f"method {federation.method}: patience counts steps, and scores are {self.check_every} steps apart: "
                f"set patience = {self.check_every} or more, or a smaller check_every"
            )

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Send the update, and the trained student's probabilities on the proxy set."""
        return super().uplink(trained, down).having(SoftLabels(trained.predict_proxy()))

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Aggregate the weights and distil the ensemble's soft labels, in one pass over the uplinks."""
        logits = RunningMean()

        def received() -> Iterator[Uplink]:
            for uplink in up:
                if (labels := uplink.get(SoftLabels)) is not None:
                    tiny = torch.finfo(labels.probabilities.dtype).tiny
                    logits.add(labels.probabilities.clamp_min(tiny).log())
                yield uplink

        merged = super().merge(state, received(), server)
        ensemble = logits.mean().softmax(dim=-1).to(state.teacher_labels.dtype)
        target = self.teacher_share * state.teacher_labels + (1.0 - self.teacher_share) * ensemble
        distil = Phase(
            soft_labels(self.temperature),
            data="proxy",
            epochs=self.server_epochs,
            references={"soft_labels": target},
        )
        stopping = None if self.patience is None else EarlyStopping(self.patience, self.check_every)
        return replace(merged, consensus=target, weights=server.distil(merged.weights, Plan((distil,)), stopping))

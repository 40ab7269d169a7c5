"""The server's own training: its student before the first round, the pooled control, and phases after a merge."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fed_distill.config import RuntimeConfig, TrainingConfig
from fed_distill.data.examples import Examples, FederatedData
from fed_distill.distill.losses import hard_labels, soft_labels
from fed_distill.errors import TrainingError
from fed_distill.models import TextModel
from fed_distill.models.base import Encoded
from fed_distill.training.choosing import build_trainer
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.submodel import completed
from fed_distill.training.trainer import Failure, Learner
from fed_distill.transport.messages import Weights
from fed_distill.transport.requests import blueprint_of

Progress = Callable[[int, int], None]


def server_plan(teacher_labels: Tensor, temperature: float, epochs: float) -> Plan:
    """All that the server has, in turns: an epoch of labels, an epoch of the teacher's soft labels on the proxy."""
    phases: list[Phase] = []
    left = epochs
    while left > 0:
        share = min(1.0, left)
        phases.append(Phase(hard_labels(), epochs=share))
        phases.append(
            Phase(soft_labels(temperature), data="proxy", epochs=share, references={"soft_labels": teacher_labels})
        )
        left -= share
    return Plan(tuple(phases))


@dataclass
class ServerTraining:
    """Trains students on examples that the server holds.

    ``private`` phases of a plan run on the examples given, the public ones by default.
    """

    data: FederatedData
    config: TrainingConfig
    runtime: RuntimeConfig
    _encoded: dict[tuple[str, str], Encoded] = field(default_factory=dict)

    def pace(self) -> Pace:
        """The pace of a whole training at the server."""
        return Pace(self.config.server_learning_rate, self.config.schedule, self.config.warmup_share)

    def train(
        self,
        student: TextModel,
        weights: Weights,
        plan: Plan,
        randomness: tuple[int, *tuple[str | int, ...]],
        pace: Pace,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """The weights after training from ``weights`` on the public examples and the proxy set."""
        return self._train(student, weights, plan, randomness, pace, progress, "public", [self.data.public])

    def train_pooled(
        self,
        student: TextModel,
        weights: Weights,
        plan: Plan,
        randomness: tuple[int, *tuple[str | int, ...]],
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """The same with every merchant's examples beside the public ones: the control that federation avoids."""
        everybody = [self.data.public, *(merchant.train for merchant in self.data.merchants.values())]
        pace = replace(self.pace(), learning_rate=self.config.pooled_learning_rate)
        return self._train(student, weights, plan, randomness, pace, progress, "pooled", everybody)

    def _train(
        self,
        student: TextModel,
        weights: Weights,
        plan: Plan,
        randomness: tuple[int, *tuple[str | int, ...]],
        pace: Pace,
        progress: Progress | None,
        name: str,
        parts: Sequence[Examples],
    ) -> dict[str, Tensor]:
        labels = torch.cat([torch.from_numpy(part.labels) for part in parts])
        learner = Learner(
            f"the server ({name})",
            student,
            weights,
            private=self._encode(student, name, parts),
            labels=labels,
            proxy=self._encode(student, "proxy", [self.data.proxy]),
            randomness=randomness,
        )
        config = self.config.model_copy(
            update={
                "batch_size": self.config.server_batch_size,
                "optimizer": self.config.server_optimizer,
                "momentum": self.config.momentum if self.config.server_optimizer == "sgd" else 0.0,
            }
        )
        fitted = next(build_trainer(config, self.runtime).fit([learner], {learner.name: plan}, pace, progress))
        if isinstance(fitted, Failure):
            raise TrainingError(fitted.reason)
        return completed(fitted.weights, weights)

    def _encode(self, student: TextModel, name: str, parts: Sequence[Examples]) -> Encoded:
        key = (blueprint_of(student), name)
        if key not in self._encoded:
            examples = Examples.concatenate(parts) if len(parts) > 1 else parts[0]
            self._encoded[key] = student.encode(examples.texts, examples.pairs)
        return self._encoded[key]

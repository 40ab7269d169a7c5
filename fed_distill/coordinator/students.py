"""The server's own training: its student before the first round, the pooled control, and phases after a merge."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fed_distill import seeds
from fed_distill.config import OptimizerConfig, RuntimeConfig, TrainerConfig, TrainingConfig
from fed_distill.data.augmentation import augmented
from fed_distill.data.examples import Examples, FederatedData
from fed_distill.distill.hints import FeatureStudent, unwrapped
from fed_distill.distill.losses import hard_and_soft_labels, hard_labels
from fed_distill.distill.transfer import DistillationTarget
from fed_distill.errors import TrainingError
from fed_distill.models import TextModel, predict
from fed_distill.models.weights import Weights
from fed_distill.seeds import Randomness
from fed_distill.text.encoded import Encoded
from fed_distill.training.choosing import build_trainer
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.submodel import completed
from fed_distill.training.trainer import Failure, Learner
from fed_distill.transport.requests import blueprint_of

Progress = Callable[[int, int], None]
_FIXED = "public", "pooled"
"""Labelled examples that are the same in all trainings, so that they are encoded once."""


def distillation_plan(
    target: DistillationTarget, prepared: TextModel, epochs: float, labelled: Tensor | None = None
) -> Plan:
    """Return the plan of the server's training: epochs on labels and on the teacher's ``target`` for the proxy set,
    alternating.

    prepared: the student from ``DistillationTarget.prepared``. labelled: the teacher's probabilities on the labelled
    examples ``[examples, classes]``, if ``hard_weight`` is below 1.
    """
    distil = target.phase(prepared, 1.0)
    phases: list[Phase] = []
    left, last = epochs, max(math.ceil(epochs) - 1, 1)
    while left > 0:
        share = min(1.0, left)
        now = target.at(len(phases) / 2 / last)
        phases.append(labels_phase(now, labelled, share))
        phases.append(replace(distil, objective=now.objective(), epochs=share))
        left -= share
    return Plan(tuple(phases))


def labels_phase(target: DistillationTarget, labelled: Tensor | None, epochs: float) -> Phase:
    """Return the phase on labelled examples: their labels, mixed with soft labels if ``hard_weight`` is below 1.

    labelled: as for ``distillation_plan``.
    """
    if labelled is None:
        return Phase(hard_labels(), epochs=epochs)
    config = target.config
    objective = hard_and_soft_labels(target.temperature, config.hard_weight, config.standardize)
    return Phase(objective, epochs=epochs, references={"soft_labels": labelled})


@dataclass(frozen=True)
class Labelled:
    """Encoded examples with int64 ``labels`` ``[examples]``.

    probabilities: where labels are uncertain, those of the true ones ``[examples, classes]``, with predictions at
    ``temperature`` as prior; None to train on the labels as they are.
    """

    encoded: Encoded
    labels: Tensor
    probabilities: Tensor | None = None
    temperature: float = 1.0


@dataclass
class ServerTraining:
    """Trains students on the server's examples.

    ``private`` phases of a plan run on the given examples, by default the public ones. A student that is wrapped for
    distillation (``FeatureStudent``) takes and returns the weights of the student only.
    """

    data: FederatedData
    config: TrainingConfig
    runtime: RuntimeConfig
    _encoded: dict[tuple[str, str], Encoded] = field(default_factory=dict)

    def train(
        self,
        student: TextModel,
        weights: Weights,
        plan: Plan,
        randomness: Randomness,
        optimizer: OptimizerConfig | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """Train from ``weights`` on the public examples and the proxy set, and return the new weights.

        :param optimizer: optimizer instead of that of ``[training.server]``
        """
        config = self.config.of_server(optimizer)
        public = self._labelled(student, "public", [self.data.public], randomness)
        return self._train(student, weights, plan, randomness, config, progress, "public", public)

    def received(self, student: TextModel, examples: Examples, randomness: Randomness) -> Labelled:
        """Return encoded examples that merchants sent, for ``train_on``."""
        return self._labelled(student, "received", [examples], randomness)

    def predicted(self, student: TextModel, weights: Weights, received: Labelled, temperature: float) -> Tensor:
        """Return the probabilities of a student with ``weights`` on received examples, ``[examples, classes]``."""
        student.load_state_dict(dict(weights))
        return predict(student, received.encoded, temperature=temperature)

    def train_on(
        self, student: TextModel, weights: Weights, received: Labelled, plan: Plan, randomness: Randomness
    ) -> dict[str, Tensor]:
        """Train from ``weights`` on received examples, as in ``[training.server]``, and return the new weights."""
        config = self.config.of_server()
        return self._train(student, weights, plan, randomness, config, None, "received", received)

    def train_pooled(
        self,
        student: TextModel,
        weights: Weights,
        plan: Plan,
        randomness: Randomness,
        progress: Progress | None = None,
    ) -> dict[str, Tensor]:
        """Train on the public and all merchants' examples: the pooled control."""
        config = self.config.of_pooled()
        pooled = self._labelled(student, "pooled", self.everybody(), randomness)
        return self._train(student, weights, plan, randomness, config, progress, "pooled", pooled)

    def proxy_labels(self, model: TextModel) -> Tensor:
        """Return probabilities of ``model`` on the proxy set ``[proxy, classes]``."""
        return predict(model, self._encode(model, "proxy", [self.data.proxy]))

    def everybody(self) -> list[Examples]:
        """Return the public and every merchant's examples."""
        return [self.data.public, *(merchant.train for merchant in self.data.merchants.values())]

    def _train(
        self,
        student: TextModel,
        weights: Weights,
        plan: Plan,
        randomness: Randomness,
        config: TrainerConfig,
        progress: Progress | None,
        name: str,
        labelled: Labelled,
    ) -> dict[str, Tensor]:
        proxy = self._encode(student, "proxy", [self.data.proxy])
        if isinstance(student, FeatureStudent):
            proxy, weights = student.with_partners(proxy, self.data.proxy), student.wrapped(weights)
        learner = Learner(
            f"the server ({name})",
            student,
            weights,
            private=labelled.encoded,
            labels=labelled.labels,
            proxy=proxy,
            randomness=randomness,
            label_probabilities=labelled.probabilities,
            label_temperature=labelled.temperature,
        )
        trainer, plans = build_trainer(config, self.runtime), {learner.name: plan}
        fitted = next(trainer.fit([learner], plans, Pace.of(config), progress))
        if isinstance(fitted, Failure):
            raise TrainingError(fitted.reason)
        trained = completed(fitted.weights, weights)
        return unwrapped(trained) if isinstance(student, FeatureStudent) else trained

    def _labelled(
        self,
        student: TextModel,
        name: str,
        parts: Sequence[Examples],
        randomness: Randomness,
    ) -> Labelled:
        """Return the labelled examples, with texts augmented for this training if configured."""
        labels = torch.cat([torch.from_numpy(part.labels) for part in parts])
        if self.config.augmentation.enabled:
            draws = seeds.numpy_stream(*randomness, "augmentation")
            parts = [augmented(Examples.concatenate(parts), self.config.augmentation, draws)]
        elif name in _FIXED:
            return Labelled(self._encode(student, name, parts), labels)
        (examples,) = parts
        return Labelled(student.encode(examples.texts, examples.pairs), labels)

    def _encode(self, student: TextModel, name: str, parts: Sequence[Examples]) -> Encoded:
        key = (blueprint_of(student.student if isinstance(student, FeatureStudent) else student), name)
        if key not in self._encoded:
            examples = Examples.concatenate(parts) if len(parts) > 1 else parts[0]
            self._encoded[key] = student.encode(examples.texts, examples.pairs)
        return self._encoded[key]

"""The server's services for a method's merge: average, count votes, distil, train the teacher."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

from fed_distill.aggregation.base import Aggregator
from fed_distill.config import Experiment, OptimizerConfig
from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.coordinator.students import ServerTraining
from fed_distill.data.examples import Examples
from fed_distill.distill.losses import hard_labels
from fed_distill.errors import ConfigError, UplinkRejected
from fed_distill.evaluation.metrics import Metrics
from fed_distill.mechanisms.base import Mechanism
from fed_distill.mechanisms.label import ByLabel
from fed_distill.methods.base import GlobalState, Method, Service
from fed_distill.models import TextModel
from fed_distill.models.weights import Weights, is_finite
from fed_distill.payloads.released_labels import ReleasedLabels
from fed_distill.seeds import Randomness
from fed_distill.training.early_stopping import EarlyStopping
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.preparation import public_steps
from fed_distill.transport.messages import Uplink


class Distils(Protocol):
    """Distils one seed's global student like the server's own."""

    def distilled_anew(self, soft_labels: Tensor, temperature: float | None = None) -> Weights:
        """As ``Services.distil_anew``."""

    def distilled_onwards(self, weights: Weights, soft_labels: Tensor, *purpose: str | int) -> Weights:
        """As ``Services.distil_onwards``; ``purpose``: names the randomness of this training."""


@dataclass(frozen=True)
class Teacher:
    """The server's teacher for methods that train it: a copy for each federation, so that other federations and later
    runs use the fine-tuned one.

    :param fine_tuned: the initial teacher, which is not changed
    :param optimizer: optimizer of its steps
    """

    fine_tuned: TextModel
    optimizer: OptimizerConfig

    @classmethod
    def of(cls, fine_tuned: TextModel, experiment: Experiment) -> Self:
        """Return the teacher of an experiment, trained as in ``[training.server]`` at ``teacher.learning_rate``."""
        return cls(fine_tuned, experiment.training.server.at_constant(experiment.teacher.learning_rate))

    @cached_property
    def model(self) -> TextModel:
        """A trainable copy, created at first use; its weights are set before each use."""
        return copy.deepcopy(self.fine_tuned)

    def trained(self, state: GlobalState, plan: Plan, server: ServerTraining, randomness: Randomness) -> GlobalState:
        """Continue training of the teacher by ``plan``; return ``state`` with its weights and proxy labels."""
        weights = state.teacher_weights or self.fine_tuned.state_dict()
        trained = server.train(self.model, weights, plan, randomness, self.optimizer)
        self.model.load_state_dict(trained)
        labels = server.proxy_labels(self.model).to(state.teacher_labels.dtype)
        return replace(state, teacher_weights=trained, teacher_labels=labels)

    def validation(self, state: GlobalState, evaluator: Evaluator) -> Metrics:
        """Return metrics of the trained teacher on the common validation set."""
        self.model.load_state_dict(dict(state.teacher_weights))
        return evaluator.validation(self.model)


@dataclass(frozen=True)
class RoundServices:
    """The services of one round, as ``Services``; raise ConfigError for one that the method's ``uses`` lacks.

    :param name: name of the method, for errors
    :param aggregator: aggregator of weights
    :param count: converts this round's counts of votes to labels, with or without noise
    :param students: distils the global student like the server's own
    :param server: trains at the server; ``optimizer`` is that of the global student's steps
    :param student: the global student, to be trained
    :param score: score on the server's own validation examples, for early stopping
    :param local_rate: learning rate of merchants' steps
    :param randomness: seed, arm and number of the round
    :param mechanism: privacy mechanism of the federation; epsilon: its target, if it has one
    """

    method: Method
    name: str
    aggregator: Aggregator
    count: Callable[[Tensor], Tensor]
    students: Distils
    server: ServerTraining
    student: TextModel
    teacher: Teacher
    optimizer: OptimizerConfig
    randomness: tuple[int, str, int]
    score: Callable[[TextModel], float]
    local_rate: float
    mechanism: Mechanism
    epsilon: float | None = None

    def average(self, current: Weights, up: Iterable[Uplink]) -> Weights:
        """As ``Services.average``."""
        self._check("average")
        merged = self.aggregator.average(current, up)
        for name, value in merged.items():
            if not is_finite(value):
                raise UplinkRejected(
                    f"the aggregated weights {name} are not finite, though each update is: lower "
                    "federation.max_norm_ratio, or train at a lower learning rate"
                )
        return merged

    def tally(self, votes: Tensor) -> Tensor:
        """As ``Services.tally``."""
        self._check("tally")
        return self.count(votes)

    def distil(self, weights: Weights, plan: Plan, stopping: EarlyStopping | None = None) -> Weights:
        """As ``Services.distil``. With ``stopping``, each chunk of steps starts with new moments of the optimizer."""
        self._check("distil")
        seed, arm, number = self.randomness
        if stopping is None:
            return self.server.train(self.student, weights, plan, (seed, arm, "server", number), self.optimizer)
        steps = public_steps(plan, "proxy", len(self.server.data.proxy), self.server.config.server.batch_size)

        def train(current: Weights, chunk: Plan, place: int) -> Weights:
            return self.server.train(self.student, current, chunk, (seed, arm, "server", number, place), self.optimizer)

        def score(current: Weights) -> float:
            self.student.load_state_dict(dict(current))
            return self.score(self.student)

        return stopping.train(weights, stopping.chunks(plan, steps), train, score)

    def distil_anew(self, soft_labels: Tensor, temperature: float | None = None) -> Weights:
        """As ``Services.distil_anew``."""
        self._check("distil_anew")
        return self.students.distilled_anew(soft_labels, temperature)

    def distil_onwards(self, weights: Weights, soft_labels: Tensor) -> Weights:
        """As ``Services.distil_onwards``."""
        self._check("distil_onwards")
        _, arm, number = self.randomness
        return self.students.distilled_onwards(weights, soft_labels, arm, number)

    def train_on_released(
        self, weights: Weights, released: Mapping[str, ReleasedLabels], passes: int, learning_rate_scale: float
    ) -> Weights:
        """As ``Services.train_on_released``."""
        self._check("train_on_released")
        mechanism, epsilon = self.mechanism, self.epsilon
        if not isinstance(mechanism, ByLabel) or epsilon is None:
            raise ConfigError(f"method {self.name} trains on randomized labels: set privacy.unit = 'label'")
        examples = Examples.concatenate([sent.examples(merchant) for merchant, sent in released.items()])
        labels, outputs = (
            torch.cat([getattr(sent, name).long() for sent in released.values()]) for name in ("labels", "outputs")
        )
        seed, arm, number = self.randomness
        own = (seed, arm, "released labels", number)
        received = self.server.received(self.student, replace(examples, labels=labels.numpy()), own)
        plan = Plan((Phase(hard_labels(), epochs=1.0, learning_rate_scale=learning_rate_scale),))
        for place in range(passes):
            if mechanism.trains_on_posterior:
                temperature = mechanism.label_temperature(epsilon)
                prior = self.server.predicted(self.student, weights, received, temperature)
                targets = mechanism.targets(labels, outputs, prior, epsilon)
                received = replace(received, probabilities=targets, temperature=temperature)
            weights = self.server.train_on(self.student, weights, received, plan, (*own, place))
        return weights

    def train_teacher(self, state: GlobalState, plan: Plan) -> GlobalState:
        """As ``Services.train_teacher``."""
        self._check("train_teacher")
        seed, arm, number = self.randomness
        return self.teacher.trained(state, plan, self.server, (seed, arm, "teacher", number))

    def _check(self, service: Service) -> None:
        if service not in self.method.uses:
            raise ConfigError(
                f"method {self.name} calls the service {service!r}, which its `uses` does not declare: add it to `uses`"
            )

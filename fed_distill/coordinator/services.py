"""What the server does for a method while it merges a round: average, count votes, distil, train its teacher."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, Self

from torch import Tensor

from fed_distill.aggregation.base import Aggregator
from fed_distill.config import Experiment, OptimizerConfig
from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.coordinator.students import ServerTraining
from fed_distill.errors import ConfigError
from fed_distill.evaluation.metrics import Metrics
from fed_distill.methods.base import GlobalState, Method, Service
from fed_distill.models import TextModel
from fed_distill.models.weights import Weights
from fed_distill.seeds import Randomness
from fed_distill.training.plan import Plan
from fed_distill.transport.messages import Uplink


class DistilAnew(Protocol):
    """``Services.distil_anew`` of one seed's students."""

    def __call__(self, soft_labels: Tensor, temperature: float | None = None) -> Weights:
        """Weights of the global student, re-initialised and distilled."""


@dataclass(frozen=True)
class Teacher:
    """The server's teacher where a method trains it: a copy for each federation, so that all others, and later runs,
    have it as it was fine-tuned.

    :param fine_tuned: the teacher that it is at first, and which stays as it is.
    :param optimizer: of its steps.
    """

    fine_tuned: TextModel
    optimizer: OptimizerConfig

    @classmethod
    def of(cls, fine_tuned: TextModel, experiment: Experiment) -> Self:
        """The teacher of an experiment, trained as ``[training.server]`` says at ``teacher.learning_rate``."""
        return cls(fine_tuned, experiment.training.server.at_constant(experiment.teacher.learning_rate))

    @cached_property
    def model(self) -> TextModel:
        """A copy that may be trained, made when it is needed; its weights are set before each use."""
        return copy.deepcopy(self.fine_tuned)

    def trained(self, state: GlobalState, plan: Plan, server: ServerTraining, randomness: Randomness) -> GlobalState:
        """``state`` with the teacher trained onwards by ``plan``, and with what it predicts on the proxy set now."""
        weights = state.teacher_weights or self.fine_tuned.state_dict()
        trained = server.train(self.model, weights, plan, randomness, self.optimizer)
        self.model.load_state_dict(trained)
        labels = server.proxy_labels(self.model).to(state.teacher_labels.dtype)
        return replace(state, teacher_weights=trained, teacher_labels=labels)

    def validation(self, state: GlobalState, evaluator: Evaluator) -> Metrics:
        """Metrics on the common validation set of what the teacher has become."""
        self.model.load_state_dict(dict(state.teacher_weights))
        return evaluator.validation(self.model)


@dataclass(frozen=True)
class RoundServices:
    """The services of one round, as ``Services``. ConfigError for one that ``method`` does not declare to use.

    :param name: of the method, for errors.
    :param aggregator: merges weights.
    :param count: of the round: turns counts of votes into answers, with noise or without.
    :param anew: re-initialises and distils the global student.
    :param server: trains at the server; ``optimizer`` is that of the global student's steps.
    :param student: the global student, to be trained.
    :param randomness: of the round: seed, arm and number.
    """

    method: Method
    name: str
    aggregator: Aggregator
    count: Callable[[Tensor], Tensor]
    anew: DistilAnew
    server: ServerTraining
    student: TextModel
    teacher: Teacher
    optimizer: OptimizerConfig
    randomness: tuple[int, str, int]

    def average(self, current: Weights, up: Iterable[Uplink]) -> Weights:
        """As ``Services.average``."""
        self._check("average")
        return self.aggregator.average(current, up)

    def tally(self, votes: Tensor) -> Tensor:
        """As ``Services.tally``."""
        self._check("tally")
        return self.count(votes)

    def distil(self, weights: Weights, plan: Plan) -> Weights:
        """As ``Services.distil``."""
        self._check("distil")
        seed, arm, number = self.randomness
        return self.server.train(self.student, weights, plan, (seed, arm, "server", number), self.optimizer)

    def distil_anew(self, soft_labels: Tensor, temperature: float | None = None) -> Weights:
        """As ``Services.distil_anew``."""
        self._check("distil_anew")
        return self.anew(soft_labels, temperature)

    def train_teacher(self, state: GlobalState, plan: Plan) -> GlobalState:
        """As ``Services.train_teacher``."""
        self._check("train_teacher")
        seed, arm, number = self.randomness
        return self.teacher.trained(state, plan, self.server, (seed, arm, "teacher", number))

    def _check(self, service: Service) -> None:
        if service not in self.method.uses:
            raise ConfigError(
                f"method {self.name} asks the server to {service.replace('_', ' ')}, which its `uses` does not "
                f"declare: add {service!r} to it"
            )

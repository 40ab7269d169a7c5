"""One site: trains, keeps and measures its merchants' students. Nothing private leaves but a method's uplink.

A site knows the experiment, its own merchants' tables and the shared proxy set; what to do in a round comes
from the server as a request.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from clients.spread import spread
from clients.store import MerchantStore
from fed_distill.config import Experiment
from fed_distill.data import load
from fed_distill.data.examples import Examples, MerchantData, Task
from fed_distill.errors import FedDistillError
from fed_distill.methods import METHODS
from fed_distill.methods.base import Method, Trained
from fed_distill.models import predict
from fed_distill.models.base import Encoded, TextModel
from fed_distill.training.choosing import build_trainer
from fed_distill.training.optimization import Pace
from fed_distill.training.submodel import completed
from fed_distill.training.trainer import Failure, Fitted, Learner, Trainer
from fed_distill.transport.messages import Downlink, Uplink, Weights
from fed_distill.transport.requests import Refusal, TrainRequest, blueprint_of, built_from


@dataclass
class Site:
    """A site with its merchants; see ``open_site``."""

    experiment: Experiment
    task: Task
    merchants: Mapping[str, MerchantData]
    proxy: Examples
    store: MerchantStore
    _trainer: Trainer = field(init=False)
    _students: dict[str, TextModel] = field(default_factory=dict)
    _encoded: dict[tuple[str, str], Encoded] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._trainer = build_trainer(self.experiment.training, self.experiment.runtime)

    def train(self, request: TrainRequest, down: Downlink, starts: Mapping[str, Weights]) -> Iterator[Uplink | Refusal]:
        """Train the requested merchants, each answer when it is there; one that fails is a refusal that says why.

        ``starts`` are weights by kind of student, for merchants that keep their own and have none yet.
        """
        federation = self.experiment.arms()[request.arm]
        method: Method = METHODS.build(federation.method, federation.options)
        plan = method.plan(down)
        learners: dict[str, Learner] = {}
        for merchant in request.merchants:
            try:
                learners[merchant] = self._learner(merchant, method, request, down, starts)
            except FedDistillError as error:
                yield Refusal(merchant, str(error))
        plans = dict.fromkeys(learners, plan)
        for fitted in self._trainer.fit(list(learners.values()), plans, Pace(request.learning_rate)):
            if isinstance(fitted, Failure):
                yield Refusal(fitted.name, fitted.reason)
                continue
            try:
                yield self._uplink(learners[fitted.name], fitted, method, request, down)
            except FedDistillError as error:
                yield Refusal(fitted.name, str(error))

    def _learner(
        self, merchant: str, method: Method, request: TrainRequest, down: Downlink, starts: Mapping[str, Weights]
    ) -> Learner:
        kind = request.student_of(merchant)
        student = self._student(request.blueprints[kind])
        return Learner(
            merchant,
            student,
            self._starting_weights(merchant, kind, method, request, down, starts),
            private=self._encode(student, f"train of {merchant}", self.merchants[merchant].train),
            labels=torch.from_numpy(self.merchants[merchant].train.labels),
            proxy=self._encode(student, "proxy", self.proxy),
            randomness=(request.seed, request.arm, merchant, down.round),
        )

    def _uplink(
        self, learner: Learner, fitted: Fitted, method: Method, request: TrainRequest, down: Downlink
    ) -> Uplink:
        student = learner.student
        student.load_state_dict(completed(fitted.weights, learner.weights))
        trained = Trained(
            fitted.name, learner.examples(), fitted.weights, predict_proxy=lambda: predict(student, learner.proxy)
        )
        uplink = method.uplink(trained, down)
        if method.personal:
            self.store.save(request.arm, request.seed, fitted.name, down.round, student.state_dict())
        return self._with_metrics(uplink, fitted, student if request.test else None)

    def evaluate(self, weights: Weights, merchants: Sequence[str], blueprint: str) -> dict[str, tuple[int, int]]:
        """(right, all) test examples of each merchant under the given student; merchants without any are left out."""
        student = self._student(blueprint)
        student.load_state_dict(dict(weights))
        counted = {merchant: self._count_right(student, merchant) for merchant in merchants}
        return {merchant: counts for merchant, counts in counted.items() if counts[1]}

    def _starting_weights(
        self,
        merchant: str,
        kind: str,
        method: Method,
        request: TrainRequest,
        down: Downlink,
        starts: Mapping[str, Weights],
    ) -> Weights:
        if method.personal:
            kept = self.store.load(request.arm, request.seed, merchant, before=down.round)
            if kept is not None:
                return kept
            return starts[kind]
        assert down.weights is not None
        return down.weights

    def _with_metrics(self, uplink: Uplink, fitted: Fitted, student: TextModel | None) -> Uplink:
        metrics = {"loss": sum(fitted.loss) / max(len(fitted.loss), 1), **uplink.metrics}
        if student is not None:
            right, count = self._count_right(student, uplink.merchant)
            metrics |= {"test_right": float(right), "test_count": float(count)}
        return Uplink(uplink.merchant, uplink.examples, uplink.weights, uplink.soft_labels, metrics)

    def _count_right(self, student: TextModel, merchant: str) -> tuple[int, int]:
        test = self.merchants[merchant].test
        if not len(test):
            return 0, 0
        predicted = predict(student, self._encode(student, f"test of {merchant}", test)).argmax(dim=-1).numpy()
        return int(np.sum(predicted == test.labels)), len(test)

    def _student(self, blueprint: str) -> TextModel:
        if blueprint not in self._students:
            self._students[blueprint] = built_from(blueprint)
        return self._students[blueprint]

    def _encode(self, student: TextModel, name: str, examples: Examples) -> Encoded:
        key = (blueprint_of(student), name)
        if key not in self._encoded:
            self._encoded[key] = student.encode(examples.texts, examples.pairs)
        return self._encoded[key]


def open_site(experiment: Experiment, part: int, parts: int) -> Site:
    """Open site ``part`` of ``parts`` with its share of the merchants and a state folder in the run's."""
    data = load(experiment.data)
    sizes = {name: len(merchant.train) for name, merchant in data.merchants.items()}
    merchants = {name: data.merchants[name] for name in spread(sizes, parts)[part]}
    state = Path(experiment.runtime.folder) / experiment.name / "checkpoint" / "sites"
    return Site(experiment, data.task, merchants, data.proxy, MerchantStore(state))

"""One site: trains, keeps and measures its merchants' students. Nothing private leaves but a method's uplink.

A site knows the experiment, its own merchants' tables and the shared proxy set; what to do in a round comes
from the server as a request.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from clients.protection import Asked, Digests, Protection
from clients.spread import spread
from clients.store import MerchantStore
from fed_distill.config import Experiment, TrainingConfig
from fed_distill.data import load
from fed_distill.data.examples import Examples, FederatedData, MerchantData, Task
from fed_distill.errors import BudgetExceeded, ConfigError, FedDistillError, TrainingError, UplinkRejected
from fed_distill.methods import METHODS
from fed_distill.methods.base import Method, Trained
from fed_distill.models import predict
from fed_distill.models.base import Encoded, TextModel
from fed_distill.models.freezing import freeze
from fed_distill.training.choosing import build_trainer
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Plan
from fed_distill.training.preparation import private_steps
from fed_distill.training.submodel import completed
from fed_distill.training.trainer import Failure, Fitted, Learner, Trainer
from fed_distill.transport.messages import Downlink, Uplink, Weights
from fed_distill.transport.requests import Refusal, TrainRequest, blueprint_of, built_from

LARGEST_WEIGHT = 1e6
"""Size of a value in a downlink at most."""
_log = logging.getLogger(__name__)


@dataclass
class Site:
    """A site with its merchants; see ``open_site``."""

    experiment: Experiment
    task: Task
    merchants: Mapping[str, MerchantData]
    proxy: Examples
    store: MerchantStore
    protection: Protection
    _trainers: dict[TrainingConfig, Trainer] = field(default_factory=dict)
    _students: dict[tuple[str, bool], TextModel] = field(default_factory=dict)
    _encoded: dict[tuple[str, str], Encoded] = field(default_factory=dict)

    def train(self, request: TrainRequest, down: Downlink, starts: Mapping[str, Weights]) -> Iterator[Uplink | Refusal]:
        """Train the requested merchants, each answer when it is there; one that fails is a refusal that says why.

        ``starts`` are weights by kind of student, for merchants that keep their own and have none yet.
        """
        check_request(request, down, starts)
        federation = self.experiment.arms()[request.arm]
        method: Method = METHODS.build(federation.method, federation.options)
        plan = method.plan(down)
        digests = Digests(self.experiment, request, down)
        learners: dict[str, Learner] = {}
        sizes: dict[str, int] = {}
        for merchant in request.merchants:
            try:
                self.protection.check(merchant, request.arm)
                learner = self._learner(merchant, method, request, down, starts)
                learners[merchant], sizes[merchant] = self._protected(learner, plan, request, down, digests)
            except FedDistillError as error:
                yield self._refusal(merchant, error, request.arm)
        plans = dict.fromkeys(learners, plan)
        for fitted in self._trainer(request.arm).fit(list(learners.values()), plans, Pace(request.learning_rate)):
            if isinstance(fitted, Failure):
                yield self._refusal(fitted.name, TrainingError(fitted.reason), request.arm)
                continue
            try:
                yield self._uplink(learners[fitted.name], sizes[fitted.name], fitted, method, request, down)
            except FedDistillError as error:
                yield self._refusal(fitted.name, error, request.arm)

    def _refusal(self, merchant: str, error: FedDistillError, arm: str) -> Refusal:
        """What the server is told of a merchant that does not train; of a protected one no detail leaves the site."""
        budget = isinstance(error, BudgetExceeded)
        if self.protection.unit_of(arm) == "none":
            return Refusal(merchant, str(error), budget)
        _log.warning("%s", error)
        told = "its privacy budget or its limits do not allow this" if budget else "its training failed"
        return Refusal(merchant, f"merchant {merchant}: {told}; the site's log says more", budget)

    def _learner(
        self, merchant: str, method: Method, request: TrainRequest, down: Downlink, starts: Mapping[str, Weights]
    ) -> Learner:
        kind = request.student_of(merchant)
        student = self._student(
            request.blueprints[kind], self.protection.unit_of(request.arm) in ("example", "merchant")
        )
        return Learner(
            merchant,
            student,
            self._starting_weights(merchant, kind, method, request, down, starts),
            private=self._encode(student, f"train of {merchant}", self.merchants[merchant].train),
            labels=torch.from_numpy(self.merchants[merchant].train.labels),
            proxy=self._encode(student, "proxy", self.proxy),
            randomness=(request.seed, request.arm, merchant, down.round),
        )

    def _protected(
        self, learner: Learner, plan: Plan, request: TrainRequest, down: Downlink, digests: Digests
    ) -> tuple[Learner, int]:
        """The learner with its privacy, paid for, and by how many examples it counts."""
        unit = self.protection.unit_of(request.arm)
        if unit == "none":
            return learner, learner.examples()
        digest = digests.of(request.blueprints[request.student_of(learner.name)], learner)
        asked = Asked(learner, request, down.round, digest)
        if unit != "example":
            self.protection.join(request, learner.name, len(self.proxy))
            return learner, learner.examples()
        size = self.protection.noised_size(asked)
        steps = private_steps(plan, size, self.protection.batch_size)
        privacy, number = self.protection.example_dp(asked, size, steps)
        randomness = (*learner.randomness, "release", number) if number else learner.randomness
        return replace(learner, privacy=privacy, randomness=randomness), size

    def _uplink(
        self, learner: Learner, size: int, fitted: Fitted, method: Method, request: TrainRequest, down: Downlink
    ) -> Uplink:
        student = learner.student
        student.load_state_dict(completed(fitted.weights, learner.weights))
        trained = Trained(fitted.name, size, fitted.weights, predict_proxy=lambda: predict(student, learner.proxy))
        uplink = method.uplink(trained, down)
        undeclared = uplink.parts - set(method.sends)
        if undeclared:
            raise UplinkRejected(
                f"merchant {fitted.name}: method {request.arm} would send {', '.join(sorted(undeclared))}, which its "
                "`sends` does not declare"
            )
        if method.personal:
            self.store.save(request.arm, request.seed, fitted.name, down.round, student.state_dict())
        metrics = dict(uplink.metrics)
        if self.experiment.privacy.unit != "none" and not method.sends:
            uplink = replace(uplink, examples=1)  # of what stays at the merchant nothing is told but its scores
        elif learner.privacy is None:
            metrics["loss"] = sum(fitted.loss) / max(len(fitted.loss), 1)
        if request.test and self._tells_scores:
            right, count = self._count_right(student, uplink.merchant)
            metrics |= {"test_right": float(right), "test_count": float(count)}
        return replace(uplink, metrics=metrics)

    def join(self, request: TrainRequest) -> Iterator[Refusal]:
        """Charge merchants for a federation of which they are drawn by coins, those too that no coin will draw."""
        for merchant in request.merchants:
            try:
                self.protection.check(merchant, request.arm)
                self.protection.join(request, merchant, len(self.proxy))
            except FedDistillError as error:
                yield self._refusal(merchant, error, request.arm)

    def evaluate(self, weights: Weights, merchants: Sequence[str], blueprint: str) -> dict[str, tuple[int, int]]:
        """(right, all) test examples of each merchant under the given student; merchants without any are left out, and
        all of them where scores are kept private."""
        if not self._tells_scores:
            return {}
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

    def _count_right(self, student: TextModel, merchant: str) -> tuple[int, int]:
        test = self.merchants[merchant].test
        if not len(test):
            return 0, 0
        predicted = predict(student, self._encode(student, f"test of {merchant}", test)).argmax(dim=-1).numpy()
        return int(np.sum(predicted == test.labels)), len(test)

    def _trainer(self, arm: str) -> Trainer:
        """What trains the merchants in an arm; one for each way of training, which knows its students."""
        config = self.experiment.training_of(arm)
        if config not in self._trainers:
            self._trainers[config] = build_trainer(config, self.experiment.runtime)
        return self._trainers[config]

    @property
    def _tells_scores(self) -> bool:
        privacy = self.experiment.privacy
        return privacy.unit == "none" or privacy.report_scores

    def _student(self, blueprint: str, protected: bool = False) -> TextModel:
        """The student of a blueprint; ``protected``: with the weights frozen that private steps leave alone."""
        if (blueprint, protected) not in self._students:
            student = built_from(blueprint)
            self._students[blueprint, protected] = (
                freeze(student, self.experiment.privacy.freeze) if protected else student
            )
        return self._students[blueprint, protected]

    def _encode(self, student: TextModel, name: str, examples: Examples) -> Encoded:
        key = (blueprint_of(student), name)
        if key not in self._encoded:
            self._encoded[key] = student.encode(examples.texts, examples.pairs)
        return self._encoded[key]


def check_request(request: TrainRequest, down: Downlink, starts: Mapping[str, Weights]) -> None:
    """Raise TrainingError for what no honest server asks: its answer could tell one example from another."""
    sent = [*(down.weights or {}).values(), *(value for one in starts.values() for value in one.values())]
    sent += [] if down.soft_labels is None else [down.soft_labels]
    for value in sent:
        if value.is_floating_point() and value.numel() and not float(value.abs().max()) <= LARGEST_WEIGHT:
            raise TrainingError(f"a downlink with values that are not finite, or beyond {LARGEST_WEIGHT:g}")
    if not 0.0 <= request.learning_rate < math.inf:
        raise TrainingError(f"a learning rate of {request.learning_rate}")
    if request.population < 1 or any(rounds < 1 for rounds in request.rounds):
        raise TrainingError("a request without a positive number of merchants and of each one's rounds")


def open_site(experiment: Experiment, part: int, parts: int, data: FederatedData | None = None) -> Site:
    """Open site ``part`` of ``parts`` with its share of the merchants and a state folder in the run's.

    ``data``: what there is, where that is not what the experiment names.
    """
    data = load(experiment.data) if data is None else data
    sizes = {name: len(merchant.train) for name, merchant in data.merchants.items()}
    merchants = {name: data.merchants[name] for name in spread(sizes, parts)[part]}
    state = Path(experiment.runtime.folder) / experiment.name / "checkpoint"
    protection = Protection(experiment, state / "ledgers")
    unknown = protection.limits.merchants.keys() - data.merchants.keys()
    if unknown:
        raise ConfigError(f"the limits name a merchant that there is not: {sorted(unknown)[0]!r}")
    return Site(experiment, data.task, merchants, data.proxy, MerchantStore(state / "sites"), protection)

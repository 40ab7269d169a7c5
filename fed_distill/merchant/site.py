"""One site: trains, stores and evaluates its merchants' students. Only a method's uplinks leave it.

A site has the experiment, its own merchants' tables and the shared proxy set. The server sends a request for each
round.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from flwr.app import RecordDict
from torch import Tensor

from fed_distill.config import Experiment, TrainerConfig
from fed_distill.data.examples import Task
from fed_distill.errors import (
    BudgetExceeded,
    FedDistillError,
    NotAllowed,
    NotNow,
    TrainingError,
    UplinkRejected,
)
from fed_distill.logs import observed
from fed_distill.mechanisms.at_merchants import AtMerchants
from fed_distill.mechanisms.at_server import AtServer
from fed_distill.mechanisms.digests import Digests
from fed_distill.mechanisms.label import ByLabel
from fed_distill.mechanisms.release import Protection, Release
from fed_distill.merchant.answers import Answers
from fed_distill.merchant.arms import Arms
from fed_distill.merchant.holdings import Holdings
from fed_distill.merchant.labels import RandomizedLabels
from fed_distill.merchant.limits import Limits
from fed_distill.merchant.metrics import Tally, rule_of
from fed_distill.merchant.private_statistics import PrivateStatistics
from fed_distill.merchant.request_validation import (
    check_fit,
    check_names,
    check_request,
    check_shapes,
    outlined,
    weight_bytes,
)
from fed_distill.merchant.round_task import Participant, RoundTask, check_declared, planned, starting_weights
from fed_distill.merchant.scores import Scores
from fed_distill.methods.base import HasControlVariate, Trained
from fed_distill.models.base import TextModel
from fed_distill.models.pair import OWN, pair_blueprint, part_of, shared_of
from fed_distill.models.weights import Weights
from fed_distill.payloads.base import Context
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.storage.merchant_store import MerchantStore, kept_as
from fed_distill.training.choosing import build_trainer
from fed_distill.training.optimization import Pace
from fed_distill.training.references import predicted
from fed_distill.training.submodel import completed
from fed_distill.training.trainer import Failure, Fitted, Learner, Trainer
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.coding.kept import Kept
from fed_distill.transport.messages import Downlink, Kinds, Uplink
from fed_distill.transport.records import serialized_bytes
from fed_distill.transport.requests import Cause, Refusal, TrainRequest, blueprint_of
from fed_distill.transport.values import check_values

_log = logging.getLogger(__name__)


@dataclass
class Site:
    """A site with its merchants; see ``opening.open_site``.

    everybody: names of all merchants of the run, at any site. answers: stored answers with protected examples; None in
    a simulation.
    """

    experiment: Experiment
    task: Task
    holdings: Holdings
    store: MerchantStore
    coding: MerchantStore
    protection: Protection[Limits]
    everybody: tuple[str, ...]
    answers: Answers | None = None
    tally: Tally = field(default_factory=Tally)
    _trainers: dict[TrainerConfig, Trainer] = field(default_factory=dict)

    def train(self, request: TrainRequest, down: Downlink, starts: Mapping[str, Weights]) -> Iterator[Uplink | Refusal]:
        """Train the requested merchants and yield their answers as they finish; a failure is a refusal with a reason.

        :param starts: initial weights by student, for merchants without an own student
        """
        check_request(request, down, starts)
        check_names(request, self.holdings.merchants, self.experiment.arms())
        refusals = self._forbidden(request, down.round)
        if refusals:
            yield from refusals
            return
        student = outlined(request.global_blueprint)
        if down.get(StudentWeights) is not None:
            check_fit(down.weights, student)
        check_shapes(down, self._context(request, student.state_dict()))
        for kind, weights in starts.items():
            if kind not in request.blueprints:
                raise TrainingError(f"the request has weights of a student {kind!r}, but no blueprint for it")
            check_fit(weights, outlined(request.blueprints[kind]))
        with self.answers.alone() if self.answers else nullcontext():
            yield from self._train(request, down, starts)

    def _train(
        self, request: TrainRequest, down: Downlink, starts: Mapping[str, Weights]
    ) -> Iterator[Uplink | Refusal]:
        federation = self.experiment.arms()[request.arm]
        method = self._arms.method(request.arm)
        self.protection.mechanism(request.arm).check(self.experiment, federation, method.sends)
        plan = planned(method, down, federation.method, self.experiment.training.unlabeled)
        task = RoundTask(request, down, method, plan)
        own = "" if self.answers is None else self.protection.secret + self.answers.identity
        digests = Digests(self.experiment, request, down, own, self.holdings.texts_of(request))
        parts: dict[str, Participant] = {}
        for merchant in request.merchants:
            try:
                self.protection.check(merchant, request.arm)
                part = self._part(self._learner(merchant, task, starts), task, digests)
            except FedDistillError as error:
                yield self._refusal(merchant, error, request.arm)
                continue
            if isinstance(part, Uplink):
                yield part
            else:
                parts[merchant] = part
        learners = [part.learner for part in parts.values()]
        plans = {name: task.plan if one.learner.unlabeled else task.labelled for name, one in parts.items()}
        for fitted in self._trainer(request.arm).fit(learners, plans, Pace(request.learning_rate)):
            if isinstance(fitted, Failure):
                yield self._refusal(fitted.name, TrainingError(fitted.reason), request.arm)
                continue
            try:
                yield self._uplink(parts[fitted.name], fitted, task)
            except FedDistillError as error:
                yield self._refusal(fitted.name, error, request.arm)

    def coded(self, uplink: Uplink, codec: Codec, request: TrainRequest, down: Downlink) -> RecordDict | Refusal:
        """Encode an uplink for sending. Coding is post-processing of the merchant's private release; with noise at the
        server, the server decodes, clips and adds noise, in this order."""
        key = self._kept_of(request.arm), request.seed, uplink.merchant
        randomness = (request.seed, request.arm, uplink.merchant, down.round, "coding")
        try:
            kept = self._kept_of_coding(uplink.merchant, request, down) if codec.keeps else None
            content, kept = codec.encode_uplink(uplink, down.weights, randomness, kept)
            size = serialized_bytes(content)
            self.protection.limits.rules.check_size(size)
            if codec.keeps:
                self.coding.save(*key, down.round, kept.tensors())
        except FedDistillError as error:
            return self._refusal(uplink.merchant, error, request.arm)
        self.tally.trained += 1
        self.tally.uplink_bytes += size
        return content

    def _kept_of_coding(self, merchant: str, request: TrainRequest, down: Downlink) -> Kept:
        """Return the coding state of the merchant's last uplink; soft labels only if the server has them too."""
        key = self._kept_of(request.arm), request.seed, merchant
        kept = Kept.of(self.coding.load(*key, before=down.round))
        there = self.coding.newest(*key, before=down.round) == request.known_of(merchant)
        return kept if there else replace(kept, soft_labels=None)

    def _forbidden(self, request: TrainRequest, round: int) -> list[Refusal]:
        """Return a refusal for each merchant if the site's rules forbid the request."""
        try:
            self.protection.check_rules(request, round)
            self.check_models(request)
            if any(kind.of_labels for kind in self._arms.method(request.arm).sends):
                self.protection.limits.rules.check_texts(self.task)
        except NotAllowed as error:
            _log.warning("the request is refused: %s", error)
            return [self._refusal(merchant, error, request.arm) for merchant in request.merchants]
        return []

    def check_models(self, request: TrainRequest) -> None:
        """Raise NotAllowed if a student of the request is larger than the site's rules allow."""
        rules = self.protection.limits.rules
        if rules.max_model_mib is not None:
            rules.check_models(weight_bytes(outlined(blueprint)) for blueprint in request.blueprints.values())

    def _refusal(self, merchant: str, error: FedDistillError, arm: str) -> Refusal:
        """Return the refusal for a merchant that is not trained; in a private federation it has no details."""
        self.tally.refused[rule_of(error)] += 1
        if isinstance(error, NotAllowed):  # a rule of the site, independent of data
            cause: Cause = "hours" if isinstance(error, NotNow) else "budget"
            return Refusal(merchant, f"merchant {merchant}: not allowed by its site, {error}", cause)
        cause = "budget" if isinstance(error, BudgetExceeded) else "fault"
        protected = self.experiment.protects(arm)
        with observed(merchant=merchant):  # the server logs what it receives; the rest is logged here
            _log.log(logging.WARNING if protected else logging.INFO, "%s", error)
        if not protected and isinstance(error, TrainingError | UplinkRejected | BudgetExceeded):
            return Refusal(merchant, str(error), cause)
        if not protected:  # the text may contain a path or a row
            return Refusal(merchant, f"merchant {merchant}: {type(error).__name__}; see the site's log", cause)
        reason = "its privacy budget or its limits do not allow this" if cause == "budget" else "its training failed"
        return Refusal(merchant, f"merchant {merchant}: {reason}; see the site's log", cause)

    def _learner(self, merchant: str, task: RoundTask, starts: Mapping[str, Weights]) -> Learner:
        request, down, method, plan = task.request, task.down, task.method, task.plan
        kind = request.student_of(merchant)
        blueprint = request.blueprints[kind]
        if plan.pair:
            blueprint = pair_blueprint(request.global_blueprint, blueprint)
        mechanism = self.protection.mechanism(request.arm)
        student = self.holdings.student(blueprint, mechanism.freezes)
        randomness = (request.seed, request.arm, merchant, down.round)
        own = self.protection.own_randomness(request.seed)
        private = self.holdings.encoded_train(student, merchant, own, *randomness[1:])
        kept = self._kept(merchant, task)
        start = starting_weights(method, plan, down, kept, starts.get(kind))
        weights = {"global": down.weights, "previous": kept or down.weights, "start": start}
        wanted = plan.predicted("unlabeled")
        unlabeled, pseudo = self.holdings.unlabeled(student, merchant, wanted, weights, own, *randomness[1:])
        examples = self.holdings.merchants[merchant].train
        labels = torch.from_numpy(examples.labels)
        attack = self._arms.attack(request.arm, request.seed, merchant)
        return Learner(
            merchant,
            student,
            start,
            private=private,
            labels=labels if attack is None else attack.labels(labels, len(self.task.classes)),
            groups=mechanism.groups(examples),
            proxy=self.holdings.encoded_proxy(student, request),
            randomness=randomness,
            references=predicted(plan.predicted("private"), student, private, weights),
            unlabeled=unlabeled,
            unlabeled_references=pseudo,
            correction=method.correction(down, kept) if isinstance(method, HasControlVariate) else {},
        )

    def _kept(self, merchant: str, task: RoundTask) -> dict[str, Tensor] | None:
        """Return the merchant's state of its last round; None without one, or if the method keeps nothing."""
        if task.method.keeps == "nothing":
            return None
        return self.store.load(self._kept_of(task.request.arm), task.request.seed, merchant, before=task.down.round)

    def _kept_of(self, arm: str) -> str:
        """Return the name of the merchants' stored state for an arm."""
        settings = self.experiment.settings_of(arm) if self.experiment.protects(arm) else None
        return kept_as(arm, self.experiment.unit_of(arm), settings)

    def _keep(self, trained: Trained, student: TextModel, task: RoundTask) -> None:
        """Store the merchant's state for its next round: its student (of a pair its own), or its control variate."""
        method = task.method
        if isinstance(method, HasControlVariate):
            kept = method.keep(trained, task.down, self._kept(trained.merchant, task))
        elif task.plan.pair:
            kept = part_of(student.state_dict(), OWN)
        elif method.keeps != "nothing":
            kept = student.state_dict()
        else:
            return
        self.store.save(self._kept_of(task.request.arm), task.request.seed, trained.merchant, task.down.round, kept)

    def _part(self, learner: Learner, task: RoundTask, digests: Digests) -> Participant | Uplink:
        """Return a charged participant for a merchant, or its stored answer to an identical request."""
        request = task.request
        mechanism = self.protection.mechanism(request.arm)
        if not isinstance(mechanism, AtMerchants):
            self._check_steps(task, learner, learner.examples())
            if isinstance(mechanism, AtServer):
                self.protection.join(request, learner.name, len(self.holdings.proxy_of(request)))
            if isinstance(mechanism, ByLabel):
                examples = self.holdings.merchants[learner.name].train
                randomized = RandomizedLabels(self.protection, mechanism, self.task.gains)
                learner, drawn = randomized.learner(learner, examples, task)
                return Participant(learner, learner.examples(), drawn=drawn)
            return Participant(learner, learner.examples())
        digest = digests.of(blueprint_of(learner.student), learner)
        sends, training = task.method.sends, self._arms.private_training(request.arm)
        release = self.protection.release(learner, request, task.down.round, digest, training, sends)
        self._check_steps(task, learner, release.members, self.protection.batch_size)
        release, answer = self._kept_answer(release, sends)
        if answer is not None:
            return answer
        return Participant(self.protection.paid(release), release.members, release)

    def _check_steps(self, task: RoundTask, learner: Learner, members: int, private_batch: int | None = None) -> None:
        """Raise NotAllowed if a merchant would train for more steps than the site allows.

        :param members: the merchant's number of members of the privacy unit, noised if it is private
        :param private_batch: batch size on private examples if it is another
        """
        batch = self.experiment.training_of(task.request.arm).batch_size
        self.protection.limits.rules.check_steps(task.steps(learner, members, private_batch or batch, batch))

    def _kept_answer(self, release: Release, kinds: Kinds) -> tuple[Release, Uplink | None]:
        """Return the release for a request, and its stored answer if there is one.

        An answer that may have been sent and is no longer stored is not reproduced: it becomes a new release with a new
        charge.
        """
        if self.answers is None:
            return release, None
        while (answer := self.answers.load(release, kinds)) is None and self.protection.may_have_left(release):
            release = release.once_more()
        return release, answer

    def _uplink(self, part: Participant, fitted: Fitted, task: RoundTask) -> Uplink:
        learner, request, down, method = part.learner, task.request, task.down, task.method
        student = learner.student
        student.load_state_dict(completed(fitted.weights, learner.weights))
        statistics = PrivateStatistics(
            self.protection, self.holdings, learner, request, self.task, part.size, part.drawn
        )
        trained = Trained(
            fitted.name,
            part.size,
            shared_of(fitted.weights) if task.plan.pair else fitted.weights,
            down.weights,
            predict_proxy=lambda: self.holdings.predict_proxy(student, request),
            class_means=statistics.class_means,
            prototypes=statistics.prototypes,
            expertise=statistics.expertise,
            density_ratio=statistics.density_ratio,
            released_labels=statistics.released_labels,
            steps=fitted.steps,
            learning_rate=request.learning_rate,
        )
        uplink, attack = method.uplink(trained, down), self._arms.attack(request.arm, request.seed, fitted.name)
        uplink = uplink if attack is None else attack.uplink(uplink, self._context(request, down.weights))
        check_declared(uplink, method, request.arm)
        self._keep(trained, student, task)
        metrics = dict(uplink.metrics)
        if self.experiment.privacy.protects and not method.sends:
            uplink = replace(uplink, examples=1)  # if the student stays at the merchant, only its scores are reported
        elif learner.privacy is None and fitted.loss:
            metrics["loss"] = sum(fitted.loss) / len(fitted.loss)
        if request.test and self._scores.scorable(request, [uplink.merchant]):
            right, count = self.holdings.count_right(student, uplink.merchant)
            metrics |= {"test_right": float(right), "test_count": float(count)}
        uplink = replace(uplink, metrics=metrics)
        if self.answers is not None and part.release is not None:
            self.answers.save(part.release, uplink)
        return uplink

    def receives(self, request: TrainRequest) -> Kinds:
        """Return the allowed payloads in the downlink of a request; raise TrainingError for an unknown arm."""
        return self._arms.method(request.arm).receives

    def codec(self, request: TrainRequest) -> Codec:
        """Return the codec of a request; raise TrainingError for an unknown arm."""
        return self._arms.codec(request.arm)

    def _context(self, request: TrainRequest, weights: Weights) -> Context:
        return Context(weights, len(self.holdings.proxy_of(request)), len(self.task.classes), self.task.fields)

    def join(self, request: TrainRequest) -> Iterator[Refusal]:
        """Charge merchants for a federation with Poisson sampling, including those that are never sampled."""
        check_names(request, self.holdings.merchants, self.experiment.arms())
        refusals = self._forbidden(request, 0)
        yield from refusals
        for merchant in request.merchants if not refusals else ():
            try:
                self.protection.check(merchant, request.arm)
                self.protection.join(request, merchant, len(self.holdings.proxy_of(request)))
            except FedDistillError as error:
                yield self._refusal(merchant, error, request.arm)

    def evaluate(self, request: TrainRequest, weights: Weights) -> dict[str, tuple[int, int]]:
        """Evaluate the global student with ``weights`` on the test examples of the requested merchants.

        :return: (correct, all) test examples by merchant, (0, 0) without any; without those whose scores may not be
            reported
        :raises TrainingError: the request or the weights are invalid, as in ``train``
        """
        check_values(Downlink(0, (StudentWeights(weights),)), {})
        check_names(request, self.holdings.merchants)
        merchants = self._scores.scorable(request, request.merchants)
        if not merchants:
            return {}
        self.check_models(request)
        check_fit(weights, outlined(request.global_blueprint))
        student = self.holdings.student(request.global_blueprint)
        student.load_state_dict(dict(weights))
        return {merchant: self.holdings.count_right(student, merchant) for merchant in merchants}

    @cached_property
    def _arms(self) -> Arms:
        return Arms(self.experiment, self.everybody)

    @property
    def _scores(self) -> Scores:
        return Scores(self.experiment, self.protection, self.tally)

    def _trainer(self, arm: str) -> Trainer:
        """Return the trainer of an arm; trainers are cached by configuration, as they hold students."""
        config = self.experiment.training_of(arm)
        if config not in self._trainers:
            self._trainers[config] = build_trainer(config, self.experiment.runtime)
        return self._trainers[config]

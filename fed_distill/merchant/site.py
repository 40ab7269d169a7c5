"""One site: trains, keeps and measures its merchants' students. Nothing private leaves but a method's uplink.

A site knows the experiment, its own merchants' tables and the shared proxy set; what to do in a round comes
from the server as a request.
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
from fed_distill.mechanisms.release import Digests, Protection, Release
from fed_distill.merchant.answers import Answers
from fed_distill.merchant.arms import Arms
from fed_distill.merchant.asked import Asked, Participant, planned, starting_weights
from fed_distill.merchant.holdings import Holdings
from fed_distill.merchant.limits import Limits
from fed_distill.merchant.metrics import Tally, rule_of
from fed_distill.merchant.request_validation import (
    check_fit,
    check_names,
    check_request,
    check_shapes,
    check_values,
    outlined,
    weight_bytes,
)
from fed_distill.merchant.scores import Scores
from fed_distill.methods.base import HasControlVariate, Trained
from fed_distill.models import predict
from fed_distill.models.base import TextModel
from fed_distill.models.pair import OWN, pair_blueprint, part_of, shared_of
from fed_distill.models.weights import Weights
from fed_distill.payloads.base import Context
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.storage.merchant_store import MerchantStore, kept_as
from fed_distill.training.choosing import build_trainer
from fed_distill.training.optimization import Pace
from fed_distill.training.preparation import private_steps, proxy_steps
from fed_distill.training.references import predicted
from fed_distill.training.submodel import completed
from fed_distill.training.trainer import Failure, Fitted, Learner, Trainer
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.coding.kept import Kept
from fed_distill.transport.messages import Downlink, Kinds, Uplink
from fed_distill.transport.records import serialized_bytes
from fed_distill.transport.requests import Cause, Refusal, TrainRequest, blueprint_of

_log = logging.getLogger(__name__)


@dataclass
class Site:
    """A site with its merchants; see ``opening.open_site``.

    everybody: names of all merchants there are, here or elsewhere. answers: what it has said of protected examples,
    where it keeps that; a simulation does not.
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
        """Train the requested merchants, each answer when it is there; one that fails is a refusal that says why.

        ``starts`` are weights by kind of student, for merchants that keep their own and have none yet.
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
                raise TrainingError(f"a request with weights of a student {kind!r} that it does not describe")
            check_fit(weights, outlined(request.blueprints[kind]))
        with self.answers.alone() if self.answers else nullcontext():
            yield from self._train(request, down, starts)

    def _train(
        self, request: TrainRequest, down: Downlink, starts: Mapping[str, Weights]
    ) -> Iterator[Uplink | Refusal]:
        federation = self.experiment.arms()[request.arm]
        method = self._arms.method(request.arm)
        self.protection.mechanism(request.arm).check(self.experiment, federation, method.sends)
        asked = Asked(request, down, method, planned(method, down, federation.method))
        own = "" if self.answers is None else self.protection.secret + self.answers.identity
        digests = Digests(self.experiment, request, down, own)
        parts: dict[str, Participant] = {}
        for merchant in request.merchants:
            try:
                self.protection.check(merchant, request.arm)
                part = self._part(self._learner(merchant, asked, starts), asked, digests)
            except FedDistillError as error:
                yield self._refusal(merchant, error, request.arm)
                continue
            if isinstance(part, Uplink):
                yield part
            else:
                parts[merchant] = part
        learners = [part.learner for part in parts.values()]
        plans = dict.fromkeys(parts, asked.plan)
        for fitted in self._trainer(request.arm).fit(learners, plans, Pace(request.learning_rate)):
            if isinstance(fitted, Failure):
                yield self._refusal(fitted.name, TrainingError(fitted.reason), request.arm)
                continue
            try:
                yield self._uplink(parts[fitted.name], fitted, asked)
            except FedDistillError as error:
                yield self._refusal(fitted.name, error, request.arm)

    def coded(self, uplink: Uplink, codec: Codec, request: TrainRequest, down: Downlink) -> RecordDict | Refusal:
        """An uplink as it leaves: coded, after all that privacy asks for at a merchant, which coding post-processes.
        What the server noises, it decodes, clips and noises in this order."""
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
        """What coding has kept of the merchant's last uplink; its soft labels only if the server has these too."""
        key = self._kept_of(request.arm), request.seed, merchant
        kept = Kept.of(self.coding.load(*key, before=down.round))
        there = self.coding.newest(*key, before=down.round) == request.known_of(merchant)
        return kept if there else replace(kept, soft_labels=None)

    def _forbidden(self, request: TrainRequest, round: int) -> list[Refusal]:
        """A refusal for each merchant if the site's own rules forbid the request."""
        try:
            self.protection.check_rules(request, round)
            self.check_models(request)
        except NotAllowed as error:
            _log.warning("the request is refused: %s", error)
            return [self._refusal(merchant, error, request.arm) for merchant in request.merchants]
        return []

    def check_models(self, request: TrainRequest) -> None:
        """NotAllowed for a request with a student that is larger than the site's rules allow."""
        rules = self.protection.limits.rules
        if rules.max_model_mib is not None:
            rules.check_models(weight_bytes(outlined(blueprint)) for blueprint in request.blueprints.values())

    def _refusal(self, merchant: str, error: FedDistillError, arm: str) -> Refusal:
        """What the server is told of a merchant that does not train; of a protected one no detail leaves the site."""
        self.tally.refused[rule_of(error)] += 1
        if isinstance(error, NotAllowed):  # a rule of the site's, which tells nothing of anybody's data
            cause: Cause = "hours" if isinstance(error, NotNow) else "budget"
            return Refusal(merchant, f"merchant {merchant}: not allowed by its site, {error}", cause)
        cause = "budget" if isinstance(error, BudgetExceeded) else "fault"
        protected = self.experiment.protects(arm)
        with observed(merchant=merchant):  # what the server is not told is said here; what it is told, it says itself
            _log.log(logging.WARNING if protected else logging.INFO, "%s", error)
        if not protected and isinstance(error, TrainingError | UplinkRejected | BudgetExceeded):
            return Refusal(merchant, str(error), cause)
        if not protected:  # its text may name a path or quote a row
            return Refusal(merchant, f"merchant {merchant}: {type(error).__name__}; the site's log says more", cause)
        told = "its privacy budget or its limits do not allow this" if cause == "budget" else "its training failed"
        return Refusal(merchant, f"merchant {merchant}: {told}; the site's log says more", cause)

    def _learner(self, merchant: str, asked: Asked, starts: Mapping[str, Weights]) -> Learner:
        request, down, method, plan = asked.request, asked.down, asked.method, asked.plan
        kind = request.student_of(merchant)
        blueprint = request.blueprints[kind]
        if plan.pair:
            blueprint = pair_blueprint(request.global_blueprint, blueprint)
        mechanism = self.protection.mechanism(request.arm)
        student = self.holdings.student(blueprint, mechanism.freezes)
        randomness = (request.seed, request.arm, merchant, down.round)
        own = self.protection.own_randomness(request.seed)
        private = self.holdings.encoded_train(student, merchant, own, *randomness[1:])
        kept = self._kept(merchant, asked)
        weights = {"global": down.weights, "previous": kept or down.weights}
        examples = self.holdings.merchants[merchant].train
        labels = torch.from_numpy(examples.labels)
        attack = self._arms.attack(request.arm, request.seed, merchant)
        return Learner(
            merchant,
            student,
            starting_weights(method, plan, down, kept, starts.get(kind)),
            private=private,
            labels=labels if attack is None else attack.labels(labels, len(self.task.classes)),
            groups=mechanism.groups(examples),
            proxy=self.holdings.encoded_proxy(student, request),
            randomness=randomness,
            references=predicted(plan, student, private, weights),
            correction=method.correction(down, kept) if isinstance(method, HasControlVariate) else {},
        )

    def _kept(self, merchant: str, asked: Asked) -> dict[str, Tensor] | None:
        """What the merchant kept when it last took part; None if it never did, or the method keeps nothing."""
        if asked.method.keeps == "nothing":
            return None
        return self.store.load(self._kept_of(asked.request.arm), asked.request.seed, merchant, before=asked.down.round)

    def _kept_of(self, arm: str) -> str:
        """By what name the state that merchants keep for an arm is known."""
        settings = self.experiment.settings_of(arm) if self.experiment.protects(arm) else None
        return kept_as(arm, self.experiment.unit_of(arm), settings)

    def _keep(self, trained: Trained, student: TextModel, asked: Asked) -> None:
        """Keep what the merchant needs in its next round: its student, of a pair its own one, or what corrects it."""
        method = asked.method
        if isinstance(method, HasControlVariate):
            kept = method.keep(trained, asked.down, self._kept(trained.merchant, asked))
        elif asked.plan.pair:
            kept = part_of(student.state_dict(), OWN)
        elif method.keeps != "nothing":
            kept = student.state_dict()
        else:
            return
        self.store.save(self._kept_of(asked.request.arm), asked.request.seed, trained.merchant, asked.down.round, kept)

    def _part(self, learner: Learner, asked: Asked, digests: Digests) -> Participant | Uplink:
        """A merchant's part in a round with its privacy, paid for; or what it has answered to just this already."""
        request = asked.request
        mechanism = self.protection.mechanism(request.arm)
        if not isinstance(mechanism, AtMerchants):
            self._check_steps(asked, learner, learner.examples(), self._batch_size(request.arm))
            if isinstance(mechanism, AtServer):
                self.protection.join(request, learner.name, len(self.holdings.proxy_of(request)))
            return Participant(learner, learner.examples())
        digest = digests.of(blueprint_of(learner.student), learner)
        release = self.protection.release(learner, request, asked.down.round, digest, asked.plan)
        self._check_steps(asked, learner, release.members, self.protection.batch_size)
        release, answer = self._kept_answer(release, asked.method.sends)
        if answer is not None:
            return answer
        return Participant(self.protection.paid(release), release.members, release)

    def _batch_size(self, arm: str) -> int:
        return self.experiment.training_of(arm).batch_size

    def _check_steps(self, asked: Asked, learner: Learner, members: int, batch_size: int) -> None:
        """NotAllowed if a merchant with ``members`` of the privacy unit, which must not be more secret than what it
        releases, would train for more steps than the site allows."""
        proxy = len(next(iter(learner.proxy.values()), ()))
        steps = private_steps(asked.plan, members, batch_size)
        steps += proxy_steps(asked.plan, proxy, self._batch_size(asked.request.arm))
        self.protection.limits.rules.check_steps(steps)

    def _kept_answer(self, release: Release, kinds: Kinds) -> tuple[Release, Uplink | None]:
        """As which release a request is answered, and the answer, if it is kept.

        One that may have left and is kept no longer is not made again: that is another release, which costs anew.
        """
        if self.answers is None:
            return release, None
        while (answer := self.answers.load(release, kinds)) is None and self.protection.may_have_left(release):
            release = release.once_more()
        return release, answer

    def _uplink(self, part: Participant, fitted: Fitted, asked: Asked) -> Uplink:
        learner, request, down, method = part.learner, asked.request, asked.down, asked.method
        student = learner.student
        student.load_state_dict(completed(fitted.weights, learner.weights))
        trained = Trained(
            fitted.name,
            part.size,
            shared_of(fitted.weights) if asked.plan.pair else fitted.weights,
            down.weights,
            predict_proxy=lambda: predict(student, learner.proxy),
            class_means=lambda: self._class_means(learner, request.arm),
            steps=fitted.steps,
            learning_rate=request.learning_rate,
        )
        uplink, attack = method.uplink(trained, down), self._arms.attack(request.arm, request.seed, fitted.name)
        uplink = uplink if attack is None else attack.uplink(uplink, self._context(request, down.weights))
        undeclared = {kind.name for kind in uplink.kinds - set(method.sends)}
        if undeclared:
            raise UplinkRejected(
                f"merchant {fitted.name}: method {request.arm} would send {', '.join(sorted(undeclared))}, which its "
                "`sends` does not declare"
            )
        self._keep(trained, student, asked)
        metrics = dict(uplink.metrics)
        if self.experiment.privacy.protects and not method.sends:
            uplink = replace(uplink, examples=1)  # of what stays at the merchant nothing is told but its scores
        elif learner.privacy is None:
            metrics["loss"] = sum(fitted.loss) / max(len(fitted.loss), 1)
        if request.test and self._scores.scorable(request, [uplink.merchant]):
            right, count = self.holdings.count_right(student, uplink.merchant)
            metrics |= {"test_right": float(right), "test_count": float(count)}
        uplink = replace(uplink, metrics=metrics)
        if self.answers is not None and part.release is not None:
            self.answers.save(part.release, uplink)
        return uplink

    def _class_means(self, learner: Learner, arm: str) -> ClassMeans:
        """What the trained student makes of its own examples; ConfigError in a protected arm, whatever it would be
        sent as."""
        self.protection.mechanism(arm).check_covered(arm, (ClassMeans,))
        return ClassMeans.over(predict(learner.student, learner.private), learner.labels)

    def receives(self, request: TrainRequest) -> Kinds:
        """The kinds of payloads that the downlink of a request may hold. TrainingError for an arm that there is not."""
        return self._arms.method(request.arm).receives

    def codec(self, request: TrainRequest) -> Codec:
        """How the messages of a request are coded. TrainingError for an arm that there is not."""
        return self._arms.codec(request.arm)

    def _context(self, request: TrainRequest, weights: Weights) -> Context:
        return Context(weights, len(self.holdings.proxy_of(request)), len(self.task.classes))

    def join(self, request: TrainRequest) -> Iterator[Refusal]:
        """Charge merchants for a federation of which they are drawn by coins, those too that no coin will draw."""
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
        """(right, all) test examples of each of the request's merchants under the global student with ``weights``,
        (0, 0) of one without any; those whose scores may not be told are left out.

        Checked as a request to train is: TrainingError for weights that no honest server sends.
        """
        check_values(weights.values())
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
        """What trains the merchants in an arm; one for each way of training, which knows its students."""
        config = self.experiment.training_of(arm)
        if config not in self._trainers:
            self._trainers[config] = build_trainer(config, self.experiment.runtime)
        return self._trainers[config]

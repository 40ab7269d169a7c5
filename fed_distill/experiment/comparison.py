"""One seed of an experiment: the server's student, the controls and the federations, each stored when it is finished.

All start from the same student and are evaluated on the same test set. Federations are adapted to the domain, controls
are not; ``before_adaptation`` has the results of the method alone. With Byzantine merchants, results by merchant are of
honest ones only.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

from fed_distill.adversaries.byzantine import byzantine_merchants
from fed_distill.config import Experiment
from fed_distill.config.experiment import personal_arm
from fed_distill.coordinator.attempts import patiently
from fed_distill.coordinator.evaluation import Evaluator, MeanByUnit, accuracies, mean_metrics
from fed_distill.coordinator.federation import Federation, round_learning_rate
from fed_distill.coordinator.progress import FederationProgress
from fed_distill.coordinator.released import RELEASED, Released
from fed_distill.coordinator.rounds import federate
from fed_distill.coordinator.services import Teacher
from fed_distill.coordinator.sites import Sites
from fed_distill.coordinator.students import ServerTraining, labels_phase
from fed_distill.coordinator.uplink_validator import UplinkValidator
from fed_distill.errors import BudgetExceeded, CheckpointError
from fed_distill.evaluation.metrics import Metrics
from fed_distill.evaluation.recommenders import RECOMMENDERS, Recommender
from fed_distill.experiment.adaptation import adapted_to_domain
from fed_distill.experiment.chain_models import chain_models
from fed_distill.experiment.identities import Identities
from fed_distill.experiment.student_factory import Start, StudentFactory, known_truth, started
from fed_distill.experiment.teaching import Teaching
from fed_distill.logs import observed
from fed_distill.mechanisms.account import account
from fed_distill.mechanisms.at_server import AtServer
from fed_distill.mechanisms.base import Protecting
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.methods import METHODS
from fed_distill.models import TextModel
from fed_distill.models.weights import Weights, updated
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.reporting.callbacks import Callback
from fed_distill.reporting.outcome import Outcome
from fed_distill.reporting.store import RunStore
from fed_distill.storage.merchant_store import kept_as
from fed_distill.storage.parts import CHECKPOINT, Kind, RunPart
from fed_distill.training.plan import Plan
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.messages import Kinds
from fed_distill.transport.requests import TrainRequest, blueprint_of


@dataclass
class Comparison:
    """All evaluations of one seed. ``run`` returns an outcome for each control and federation.

    secret: seeds the server's noise; empty in a simulation, which uses the run's seed.
    """

    experiment: Experiment
    seed: int
    sites: Sites
    teaching: Teaching
    server: ServerTraining
    evaluator: Evaluator
    store: RunStore
    callbacks: Callback
    secret: str = field(default="", repr=False)

    @cached_property
    def factory(self) -> StudentFactory:
        """Trains the server's students."""
        return StudentFactory(self.experiment, self.seed, self.teaching, self.server, self.callbacks, self.evaluator)

    def run(self) -> list[Outcome]:
        """Train and evaluate the parts that are not stored yet, controls first.

        A part is skipped if merchants allow no round of it.

        :raises BudgetExceeded: merchants allow no round of the experiment's main federation
        """
        controls: dict[str, Callable[[], Outcome]] = {
            "student": partial(self._server, "student", "labels"),
            "server": partial(self._server, "server", "teacher"),
            "local": self._local,
            "pooled": self._pooled,
            "fedavg": partial(self._federation, "fedavg", "control"),
            "oracle-proxy": self._oracle,
            "bm25": self._bm25,
            **{name: partial(self._recommender, name) for name in RECOMMENDERS},
        }
        parts = {self._part("control", name): controls[name] for name in controls if name in self.experiment.controls}
        for federation in self.experiment.federations():
            title = federation.title
            parts[self._part("federation", title)] = partial(self._federation, title, "federation")
        outcomes = []
        for part, measure in parts.items():
            try:
                outcomes.append(self._kept(part, measure))
            except BudgetExceeded as error:  # of a control or compared federation, such as one without privacy
                if part == self._part("federation", self.experiment.federation.title):
                    raise
                self.callbacks.on_message(f"{part.kind} {part.name} is skipped: {error}")
        for level, measure in self._chain().items():
            outcomes.append(self._kept(self._part("level", level), measure))
        return outcomes

    def final_weights(self, title: str) -> Weights:
        """Return the evaluated weights of a federation; call it after ``run``."""
        part = self._part("federation", title)
        found = part.read(part.final)
        if found is None:
            raise CheckpointError(f"{part.final} is missing: delete {part.outcome.name} beside it to repeat this part")
        return found[0]

    def _kept(self, part: RunPart, measure: Callable[[], Outcome]) -> Outcome:
        path, remedy = part.outcome, "delete it to repeat this part"
        if path.exists():
            try:
                outcome = Outcome.load(path)
            except CheckpointError as error:
                raise CheckpointError(f"{error}; {remedy}") from error
            part.check(path, [outcome.kind, outcome.name, outcome.seed], remedy)
            again = f"delete {path} and {self._trained(part.name).rounds} to train it again"
            self.store.check(self.seed, outcome.name, outcome.lines, again)
            return outcome
        outcome = measure()
        outcome.save(path)
        return outcome

    def _start(self, name: str, start: Start = "teacher") -> Weights:
        """Return the weights of one of the server's students, trained without merchants."""
        return self._started(name, start)[0]

    def _started(self, name: str, start: Start) -> tuple[Weights, float]:
        """Return the weights of one of the server's students, and its training time in seconds."""
        part = self._part("server", started(name, start))
        found = part.read(part.final)
        if found is not None:
            return found[0], found[1]["seconds"]
        weights, seconds = self.factory.start(name, start)
        part.write(part.final, weights, {"seconds": seconds})
        return weights, seconds

    def _chain(self) -> dict[str, Callable[[], Outcome]]:
        """Return the evaluations of a chain's models; empty without assistants."""
        models = chain_models(
            self.experiment, self.factory, lambda: self._global_student(self._start(self.experiment.student.model))
        )
        return {title: partial(self._level, title, model) for title, model in models.items()}

    def _level(self, title: str, trained: Callable[[], TextModel]) -> Outcome:
        """Evaluate one model of the chain on the common test set."""
        began = time.perf_counter()
        model = trained()
        metrics, by_unit = self.evaluator.test_by_unit(model)
        metrics = {**metrics, "parameters": model.parameter_count()}
        return Outcome(title, "level", self.seed, metrics, by_unit=by_unit, seconds=time.perf_counter() - began)

    def _server(self, control: str, start: Start) -> Outcome:
        weights, seconds = self._started(self.experiment.student.model, start)
        return self._outcome(control, "control", weights, time.perf_counter() - seconds)

    def _oracle(self) -> Outcome:
        """Distil the server's student from the proxy set's true labels, about what soft labels of it can reach."""
        truth, began = known_truth(self.server.data), time.perf_counter()
        self.callbacks.on_stage(f"seed {self.seed} · true labels on the proxy set", None)
        weights = self.factory.on_true_labels(self.experiment.student.model, truth)
        return self._outcome("oracle-proxy", "control", weights, began)

    def _recommender(self, name: str) -> Outcome:
        """Evaluate a recommender without trained weights, of everybody's examples."""
        return self._untrained(name, lambda: RECOMMENDERS[name](self.server.everybody(), self.server.data.task))

    def _bm25(self) -> Outcome:
        return self._untrained("bm25", lambda: self.evaluator.bm25)

    def _untrained(self, name: str, fitted: Callable[[], Recommender]) -> Outcome:
        began = time.perf_counter()
        scores = fitted()
        metrics, by_unit = self.evaluator.recommender_by_unit(scores)
        cold, seconds = self.evaluator.recommender_cold(scores), time.perf_counter() - began
        return Outcome(name, "control", self.seed, metrics, by_unit=by_unit, cold=cold, seconds=seconds)

    def _pooled(self) -> Outcome:
        name = self.experiment.student.model
        start, student, began = self._start(name), self.factory.student(name), time.perf_counter()
        labelled = self.factory.labelled(self.server.everybody())
        phase = labels_phase(self.factory.target, labelled, self.experiment.training.pooled.epochs)
        self.callbacks.on_stage(f"seed {self.seed} · pooled", None)
        weights = self.server.train_pooled(student, start, Plan((phase,)), (self.seed, "pooled"), self.factory.step)
        return self._outcome("pooled", "control", weights, began)

    def _local(self) -> Outcome:
        """Train the server's student at each merchant alone, and evaluate all of them on the common test set."""
        federation, began = self._federation_of("local"), time.perf_counter()
        self.callbacks.on_stage(f"seed {self.seed} · each merchant alone", len(self.sites.merchants))
        method = METHODS.build("local", federation.config.options)
        start = federation.starts[federation.global_student]
        state = federation.first_state()
        rate = round_learning_rate(federation.training, 1, 1)
        request = federation.request(self.sites.merchants, rate, test=True)
        student = federation.students[federation.global_student]

        def take() -> tuple[list[Metrics], list[float], UplinkValidator]:
            intake = federation.intake(request, method.broadcast(state), {}, state, 1)
            measured, means = [], MeanByUnit()
            for done, uplink in enumerate(intake, 1):
                student.load_state_dict(updated(start, uplink.need(StudentUpdate)))
                metrics, by_unit = self.evaluator.test_by_unit(student)
                measured.append(metrics)
                means.add(by_unit)
                self.callbacks.on_step(done, {})
            return measured, means.values, intake

        measured, by_unit, intake = patiently(take, federation.config, [])
        counts = self._honest(intake.own_counts)
        return Outcome(
            name="local",
            kind="control",
            seed=self.seed,
            metrics=mean_metrics(measured),
            by_unit=by_unit,
            merchant_accuracy=accuracies(counts),
            merchant_counts={merchant: count for merchant, (_, count) in counts.items()},
            seconds=time.perf_counter() - began,
        )

    def _federation(self, arm: str, kind: Literal["control", "federation"]) -> Outcome:
        """Run all rounds, then the domain adaptation, except for controls."""
        federation = self._federation_of(arm)
        self.callbacks.on_stage(f"seed {self.seed} · {arm}", federation.config.rounds)
        with observed(federation=arm):
            progress = federate(federation, self._on_round, partial(self._on_resume, arm))
        began = time.perf_counter() - progress.seconds
        weights, notes = progress.state.weights, []
        before: Metrics | None = None
        before_by_unit: list[float] = []
        adaptation = self.experiment.adaptation
        if kind == "federation" and adaptation.enabled:
            before, before_by_unit = self.evaluator.test_by_unit(self._global_student(weights))
            result = adapted_to_domain(self.factory, self.evaluator, arm, weights)
            weights, notes = result.weights, list(result.notes)
        outcome = self._outcome(arm, kind, weights, began)
        personal = {}
        if kind == "federation" and adaptation.personal:  # merchants that fail keep the global student
            try:
                adapted_to = self._personal(arm, weights)
                personal = {name: adapted_to.get(name, value) for name, value in outcome.merchant_accuracy.items()}
            except BudgetExceeded as error:  # no site allows training without privacy
                self.callbacks.on_message(f"personal adaptation of {arm} is skipped: {error}")
        own = accuracies(self._honest(progress.personal_counts))
        part = self._part(kind, arm)
        part.write(part.final, weights, {})
        method = METHODS.build(federation.config.method, federation.config.options)
        return replace(
            outcome,
            before_adaptation=before,
            before_by_unit=before_by_unit,
            adaptation=notes,
            personal_accuracy=personal,
            own_accuracy={name: value for name, value in own.items() if name in outcome.merchant_counts},
            downlink_bytes=progress.downlink_bytes,
            uplink_bytes=progress.uplink_bytes,
            privacy=self._account(arm, method.sends),
            rounds=progress.state.round,
            lines=progress.lines,
        )

    def _account(self, arm: str, sends: Kinds) -> dict[str, Any] | None:
        """Return the privacy guarantee of an arm and the spent budgets in the merchants' ledgers; None without one."""
        mechanism = mechanism_of(self.experiment, arm)
        if not isinstance(mechanism, Protecting):
            return None
        personal = self.experiment.adaptation.personal
        spent = self.sites.spent(arm, self.seed)
        config = self.experiment.promise
        return account(mechanism, config, spent, sends, personal, reproducible_noise=not self.secret)

    def _personal(self, arm: str, weights: Weights) -> dict[str, float]:
        """Adapt the global student at each merchant, and return accuracies on the merchants' own test sets."""
        federation = self._federation_of(personal_arm(arm))
        method = METHODS.build("personal", federation.config.options)
        state = replace(federation.first_state(), weights=weights)
        rate = round_learning_rate(federation.training, 1, 1)
        merchants = self.sites.merchants
        request = federation.request(merchants, rate, test=True)
        name = federation.global_student
        starts = {merchant: {name: weights} for merchant in merchants}

        def take() -> UplinkValidator:
            intake = federation.intake(request, method.broadcast(state), starts, state, 1)
            intake.finish()
            return intake

        return accuracies(patiently(take, federation.config, []).own_counts)

    def _federation_of(self, arm: str) -> Federation:
        """Build the federation of an arm; only compared federations assign different students to merchants."""
        config, titles = self.experiment.student, [one.title for one in self.experiment.federations()]
        assigned = config.by_merchant if config.by_merchant and arm in titles else [config.model]
        models = {name: self.factory.student(name) for name in dict.fromkeys([config.model, *assigned])}
        mechanism, protected = mechanism_of(self.experiment, arm), self.experiment.protects(arm)
        released = None
        if self.secret and isinstance(mechanism, AtServer):
            released = Released(self.store.folder / RELEASED)
        arm_config = self.experiment.arms()[arm]
        starts = {name: self._start(name, arm_config.start) for name in models}
        return Federation(
            arm=arm,
            config=arm_config,
            training=self.experiment.training_of(arm),
            privacy=self.experiment.privacy,
            mechanism=mechanism,
            seed=self.seed,
            students=models,
            starts=starts,
            assigned=assigned,
            teacher_labels=self.teaching.labels,
            factory=self.factory,
            sites=self.sites,
            server=self.server,
            evaluator=self.evaluator,
            teacher=Teacher.of(self.teaching.teacher, self.experiment),
            part=self._trained(arm),
            codec=Codec.of(self.experiment.transport_of(arm)),
            byzantine=byzantine_merchants(self.experiment, self.sites.merchants, self.seed),
            identity=self._identities.of(arm, starts, released) if protected else "",
            secret=self.secret,
            released=released,
            kept_as=kept_as(arm, mechanism.name, self.experiment.settings_of(arm) if protected else None),
        )

    @cached_property
    def _identities(self) -> Identities:
        return Identities(self.experiment, self.seed, self.teaching)

    def _honest(self, counts: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        """Return counts of the honest merchants only, also for controls."""
        byzantine = byzantine_merchants(self.experiment, self.sites.merchants, self.seed)
        return {merchant: found for merchant, found in counts.items() if merchant not in byzantine}

    def _global_student(self, weights: Weights) -> TextModel:
        student = self.factory.student(self.experiment.student.model)
        student.load_state_dict(dict(weights))
        return student

    def _outcome(self, name: str, kind: Literal["control", "federation"], weights: Weights, began: float) -> Outcome:
        """Evaluate the student on the common test and validation sets, and at merchants on their own test sets."""
        model, student = self.experiment.student.model, self._global_student(weights)
        request = TrainRequest(
            arm=name,
            seed=self.seed,
            merchants=tuple(self.sites.merchants),
            students=(model,) * len(self.sites.merchants),
            blueprints={model: blueprint_of(student)},
            rounds=(0,) * len(self.sites.merchants),
            population=len(self.sites.merchants),
        )
        found, unreported = self.sites.evaluate(request, weights) if self.experiment.reports_scores else ({}, [])
        counts = self._honest(found)
        if unreported:
            self.callbacks.on_message(f"{name}: sites of {len(unreported)} merchants did not report test scores")
        scored = self.evaluator.scored(student)
        return Outcome(
            name=name,
            kind=kind,
            seed=self.seed,
            metrics=scored.metrics,
            by_unit=scored.by_unit,
            validation=scored.validation,
            cold=scored.cold,
            with_bm25=scored.with_bm25,
            with_bm25_by_unit=scored.with_bm25_by_unit,
            merchant_accuracy=accuracies(counts),
            merchant_counts={merchant: count for merchant, (_, count) in counts.items()},
            unheard=unreported,
            seconds=time.perf_counter() - began,
        )

    def _on_resume(self, arm: str, progress: FederationProgress) -> None:
        """Remove records of rounds after the checkpoint, and write the last round's record if it is missing."""
        if not self.store.rewind(self.seed, arm, progress.state.round) and progress.record:
            self._on_round(progress.record)
        path = self._trained(arm).rounds
        self.store.check(self.seed, arm, progress.lines, f"delete {path} to train it again")

    def _on_round(self, record: dict[str, Any]) -> None:
        self.store.append(record)
        self.callbacks.on_round(record)

    def _trained(self, arm: str) -> RunPart:
        """Return the stored part with an arm's rounds: a federation that is its own control is trained once."""
        titles = [federation.title for federation in self.experiment.federations()]
        return self._part("federation" if arm in titles else "control", arm)

    def _part(self, kind: Kind, name: str) -> RunPart:
        return RunPart(self.store.folder / CHECKPOINT, self.seed, kind, name)

"""One seed of an experiment: the server's student, the controls, and every federation, each kept when done.

All of them start from the same server's student and are measured on the same test set. Federations are adapted to
the domain afterwards and controls are not; ``before_adaptation`` is what the method alone gave.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from fed_distill.config import Experiment
from fed_distill.distill.adapt import Adapted, Stage, adapt, domain_stages
from fed_distill.errors import BudgetExceeded, CheckpointError
from fed_distill.methods import METHODS
from fed_distill.methods.base import GlobalState
from fed_distill.models import TextModel, build_student
from fed_distill.privacy.promise import account
from fed_distill.results.outcome import Outcome
from fed_distill.results.store import RunStore
from fed_distill.runtime import seeds
from fed_distill.runtime.callbacks import Callback
from fed_distill.runtime.checkpoints import read_checkpoint, write_checkpoint
from fed_distill.training.submodel import completed
from fed_distill.transport.messages import Weights
from fed_distill.transport.requests import TrainRequest, blueprint_of
from server.evaluation import Evaluator, accuracies, mean_metrics
from server.intake import Intake
from server.protection import counted_plainly
from server.rounds import Federation, federate, round_learning_rate
from server.sites import Sites
from server.students import ServerTraining, server_plan
from server.teaching import Teaching


@dataclass
class Comparison:
    """Everything that is measured on one seed. ``run`` gives one outcome for each control and federation."""

    experiment: Experiment
    seed: int
    sites: Sites
    teaching: Teaching
    server: ServerTraining
    evaluator: Evaluator
    store: RunStore
    callbacks: Callback

    def run(self) -> list[Outcome]:
        """Train and measure what is not kept yet; controls first."""
        controls: dict[str, Callable[[], Outcome]] = {
            "server": self._server,
            "local": self._local,
            "pooled": self._pooled,
            "fedavg": partial(self._federation, "fedavg", "control"),
        }
        outcomes = []
        for name in (name for name in controls if name in self.experiment.controls):
            try:
                outcomes.append(self._kept(f"control.{name}", controls[name]))
            except BudgetExceeded as error:  # merchants may keep out of what is trained without privacy
                self.callbacks.on_message(f"control {name} is left out: {error}")
        for federation in self.experiment.federations():
            title = federation.title
            outcomes.append(self._kept(f"federation.{title}", partial(self._federation, title, "federation")))
        return outcomes

    def student(self, name: str) -> TextModel:
        """A student by name, built the same for a seed whenever it is asked for."""
        with seeds.scope(self.seed, "student", name):
            options = self.experiment.student.options_of(name)
            return build_student(name, options, self.server.data.task, self.teaching.teacher)

    def final_weights(self, title: str) -> Weights:
        """The weights that a federation was measured with; call it after ``run``."""
        path = self._path(f"federation.{title}.final")
        found = read_checkpoint(path)
        if found is None:
            outcome = self._path(f"federation.{title}").with_suffix(".json")
            raise CheckpointError(f"{path} is missing: delete {outcome.name} beside it to make both again")
        return found[0]

    def _kept(self, name: str, measure: Callable[[], Outcome]) -> Outcome:
        path = self._path(name).with_suffix(".json")
        if path.exists():
            try:
                return Outcome.load(path)
            except CheckpointError as error:
                raise CheckpointError(f"{error}; delete it to measure this part again") from error
        outcome = measure()
        outcome.save(path)
        return outcome

    def _start(self, name: str) -> Weights:
        """The server's student of one kind: all that the server can do without merchants."""
        path = self._path(f"server.{name}")
        found = read_checkpoint(path)
        if found is not None:
            return found[0]
        student = self.student(name)
        config = self.experiment.training
        plan = server_plan(self.teaching.labels, config.server_temperature, config.server_epochs)
        self.callbacks.on_stage(f"seed {self.seed} · the server's {name}", None)
        weights = self.server.train(
            student, student.state_dict(), plan, (self.seed, "server", name), self.server.pace(), self._step
        )
        write_checkpoint(path, weights, {})
        return weights

    def _server(self) -> Outcome:
        began = time.perf_counter()
        return self._outcome("server", "control", self._start(self.experiment.student.model), began)

    def _pooled(self) -> Outcome:
        began = time.perf_counter()
        name = self.experiment.student.model
        config = self.experiment.training
        plan = server_plan(self.teaching.labels, config.server_temperature, config.pooled_epochs)
        self.callbacks.on_stage(f"seed {self.seed} · pooled", None)
        start = self._start(name)
        weights = self.server.train_pooled(self.student(name), start, plan, (self.seed, "pooled"), self._step)
        return self._outcome("pooled", "control", weights, began)

    def _local(self) -> Outcome:
        """Each merchant alone from the server's student; every one of them is measured on the common test set."""
        began = time.perf_counter()
        federation = self._federation_of("local")
        self.callbacks.on_stage(f"seed {self.seed} · each merchant alone", len(self.sites.merchants))
        method = METHODS.build("local", federation.config.options)
        start = federation.starts[federation.global_student]
        state = GlobalState(0, start, self.teaching.labels, lambda current, uplinks: current, counted_plainly)
        rate = round_learning_rate(federation.training, 1, 1)
        request = federation.request(self.sites.merchants, rate, test=True)
        chunks = self.sites.train(request, method.broadcast(state), {}, federation.chunk())
        intake = Intake(chunks, state, len(self.sites.merchants), 1)
        student = federation.students[federation.global_student]
        measured = []
        for done, uplink in enumerate(intake, 1):
            assert uplink.weights is not None
            student.load_state_dict(completed(uplink.weights, start))
            measured.append(self.evaluator.test(student))
            self.callbacks.on_step(done, {})
        counts = intake.own_counts
        return Outcome(
            name="local",
            kind="control",
            seed=self.seed,
            metrics=mean_metrics(measured),
            merchant_accuracy=accuracies(counts),
            merchant_counts={merchant: count for merchant, (_, count) in counts.items()},
            seconds=time.perf_counter() - began,
        )

    def _federation(self, arm: str, kind: Literal["control", "federation"]) -> Outcome:
        """All rounds, then domain adaptation; a control stays as federation left it."""
        federation = self._federation_of(arm)
        self.callbacks.on_stage(f"seed {self.seed} · {arm}", federation.config.rounds)
        progress = federate(federation, self._on_round, lambda number: self.store.rewind(self.seed, arm, number))
        if kind == "control" and not progress.state.round:
            raise BudgetExceeded("its merchants' limits allow no round of it")
        began = time.perf_counter() - progress.seconds
        weights, before, notes = progress.state.weights, None, []
        adaptation = self.experiment.adaptation
        if kind == "federation" and adaptation.enabled:
            before = self.evaluator.test(self._global_student(weights))
            result = self._adapt(arm, weights)
            weights, notes = result.weights, list(result.notes)
        outcome = self._outcome(arm, kind, weights, began)
        personal = {}
        if kind == "federation" and adaptation.personal:  # a merchant that failed keeps the global student
            adapted_to = self._personal(arm, weights)
            personal = {name: adapted_to.get(name, value) for name, value in outcome.merchant_accuracy.items()}
        write_checkpoint(self._path(f"{kind}.{arm}.final"), weights, {})
        method = METHODS.build(federation.config.method, federation.config.options)
        return replace(
            outcome,
            before_adaptation=before,
            adaptation=notes,
            personal_accuracy=personal,
            downlink_bytes=progress.downlink_bytes,
            uplink_bytes=progress.uplink_bytes,
            privacy=self._account(arm, method.sends),
            rounds=progress.state.round,
        )

    def _account(self, arm: str, sends: Sequence[str]) -> dict[str, Any] | None:
        """What was promised to the merchants, and what it cost them by their ledgers; None where nothing was."""
        if self.experiment.unit_of(arm) == "none":
            return None
        return account(self.experiment.privacy, self.sites.spent(arm, self.seed), sends)

    def _adapt(self, arm: str, weights: Weights) -> Adapted:
        """Domain adaptation of the global student on the server's data, judged on the validation set; of a protected
        federation on the server's own, since what is released must not depend on merchants' validation examples."""
        config = self.experiment.adaptation
        student = self.student(self.experiment.student.model)
        temperature = self.experiment.training.server_temperature
        stages = domain_stages(self.teaching.labels, temperature, config.epochs, config.learning_rate_scale)

        def train(current: Weights, stage: Stage) -> Weights:
            randomness = (self.seed, arm, "adapt", stage.title)
            return self.server.train(student, current, stage.plan, randomness, self.server.pace())

        def validate(current: Weights) -> float:
            student.load_state_dict(dict(current))
            if self.experiment.unit_of(arm) != "none":
                return self.evaluator.public_score(student)
            return self.evaluator.validation_score(student)

        self.callbacks.on_stage(f"seed {self.seed} · {arm}: domain adaptation", None)
        adapted = adapt(weights, stages, train, validate)
        for note in adapted.notes:
            self.callbacks.on_message(note)
        return adapted

    def _personal(self, arm: str, weights: Weights) -> dict[str, float]:
        """Each merchant adapts the global student to itself and keeps it; its accuracy on its own test set."""
        federation = self._federation_of(f"personal of {arm}")
        method = METHODS.build("personal", federation.config.options)
        state = GlobalState(0, weights, self.teaching.labels, lambda current, uplinks: current, counted_plainly)
        rate = round_learning_rate(federation.training, 1, 1)
        merchants = self.sites.merchants
        request = federation.request(merchants, rate, test=True)
        name = federation.global_student
        starts = {merchant: {name: weights} for merchant in merchants}
        chunks = self.sites.train(request, method.broadcast(state), starts, federation.chunk())
        intake = Intake(chunks, state, len(merchants), 1)
        intake.finish()
        return accuracies(intake.own_counts)

    def _federation_of(self, arm: str) -> Federation:
        """What an arm runs on; only the compared federations deal different students to the merchants."""
        config, titles = self.experiment.student, [one.title for one in self.experiment.federations()]
        dealt = config.by_merchant if config.by_merchant and arm in titles else [config.model]
        models = {name: self.student(name) for name in dict.fromkeys([config.model, *dealt])}
        return Federation(
            arm=arm,
            config=self.experiment.arms()[arm],
            training=self.experiment.training_of(arm),
            privacy=self.experiment.privacy,
            unit=self.experiment.unit_of(arm),
            seed=self.seed,
            students=models,
            starts={name: self._start(name) for name in models},
            dealt=dealt,
            teacher_labels=self.teaching.labels,
            sites=self.sites,
            server=self.server,
            evaluator=self.evaluator,
            checkpoint=self._path(arm),
        )

    def _global_student(self, weights: Weights) -> TextModel:
        student = self.student(self.experiment.student.model)
        student.load_state_dict(dict(weights))
        return student

    def _outcome(self, name: str, kind: Literal["control", "federation"], weights: Weights, began: float) -> Outcome:
        """Measure the student on the common test and validation sets, and at the merchants on their own test sets."""
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
        counts = self.sites.evaluate(request, weights)
        return Outcome(
            name=name,
            kind=kind,
            seed=self.seed,
            metrics=self.evaluator.test(student),
            validation=self.evaluator.validation(student),
            merchant_accuracy=accuracies(counts),
            merchant_counts={merchant: count for merchant, (_, count) in counts.items()},
            seconds=time.perf_counter() - began,
        )

    def _on_round(self, record: dict[str, Any]) -> None:
        self.store.append(record)
        self.callbacks.on_round(record)

    def _step(self, done: int, total: int) -> None:
        self.callbacks.on_step(done, {"steps": total})

    def _path(self, name: str) -> Path:
        return self.store.folder / "checkpoint" / f"seed-{self.seed}" / f"{quote(name, safe='')}.safetensors"

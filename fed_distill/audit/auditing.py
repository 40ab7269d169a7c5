"""Audit a finished run: repeat its federation without some of the examples, and attack the result.

The federation has the run's merchants, method and privacy, in this process; only the merchants' data differ. Nothing is
charged to the ledgers of the run, because the students trained here are never released.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid

from fed_distill import seeds
from fed_distill.audit.audit import Audit, audit
from fed_distill.audit.canaries import CanaryAudit, canary_audit, make_canaries
from fed_distill.audit.label_shares import (
    ShareInference,
    infer_shares,
    label_shares,
    shares_from_presence,
    shares_from_soft_labels,
)
from fed_distill.audit.roc import FloatArray
from fed_distill.audit.shadows import Recipe
from fed_distill.audit.victim import Predictor, predictor, trained_without
from fed_distill.audit.white_box_run import WhiteBox
from fed_distill.config import Experiment
from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.coordinator.federation import Federation, round_learning_rate
from fed_distill.coordinator.rounds import federate
from fed_distill.coordinator.services import Teacher
from fed_distill.coordinator.sites import Sites
from fed_distill.coordinator.students import ServerTraining
from fed_distill.data import load
from fed_distill.data.examples import Examples, FederatedData
from fed_distill.distill.losses import hard_labels
from fed_distill.errors import CheckpointError, ConfigError
from fed_distill.experiment.student_factory import StudentFactory, started
from fed_distill.experiment.teaching import Teaching, prepare_teacher, server_texts
from fed_distill.mechanisms.at_merchants import AtMerchants
from fed_distill.mechanisms.base import Mechanism
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.methods import METHODS
from fed_distill.methods.base import private_training
from fed_distill.models import TextModel, build_student
from fed_distill.models.weights import Weights, updated
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.low_rank_update import LowRankUpdate
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_update import StudentUpdate
from fed_distill.payloads.votes import Votes
from fed_distill.privacy.accounting import default_delta, noise_for
from fed_distill.privacy.dp_sgd import ExampleDP, sampling_rate
from fed_distill.privacy.ledger import Ledgers
from fed_distill.reporting.callbacks import Callback
from fed_distill.storage.files import as_file_name
from fed_distill.storage.parts import CHECKPOINT, RunPart
from fed_distill.training.choosing import build_trainer
from fed_distill.training.optimization import Pace
from fed_distill.training.plan import Phase, Plan
from fed_distill.training.preparation import private_steps
from fed_distill.training.private_training import PrivateTraining
from fed_distill.transport.coding.codec import Codec
from fed_distill.transport.messages import Uplink

CANARY_DELTA = 1e-5
"""Delta for comparing the canaries' bound with the accountant: at n^-1.1 the bound has almost no power."""

MakeGrid = Callable[[Experiment, FederatedData], Grid]
"""Builds a grid with sites that have the merchants of the given data."""


@dataclass
class Auditing:
    """The inputs of an audit. folder: folder of the finished run. make_grid: connects to its merchants."""

    folder: Path
    experiment: Experiment
    make_grid: MakeGrid
    callbacks: Callback

    def run(self, shadows: int, canaries: int) -> tuple[Audit, float | None]:
        """Attack the run's main federation on its first seed.

        :param shadows: number of shadow students for LiRA
        :param canaries: number of canaries, each included in the largest merchant's data with probability 1/2
        :returns: the audit, and the accountant's epsilon at ``CANARY_DELTA``, which the canaries' bound must not
            exceed; None without an example-level guarantee
        """
        title = self.experiment.federation.title
        members = Examples.concatenate([merchant.train for merchant in self.data.merchants.values()])
        self.callbacks.on_stage("audit: the federation without half of each merchant's examples", None)
        victim = trained_without(self._released, predictor(self.student, self.start), members, self.experiment.seed)
        self.callbacks.on_stage("audit: canaries", None)
        found, epsilon = self._canaries(canaries)
        self.callbacks.on_stage("audit: white box", None)
        white_box = WhiteBox(self.folder, self.experiment, len(self.data.merchants), len(self.data.proxy)).run()
        self.callbacks.on_stage("audit: label shares", None)
        shares = self._label_shares(title)
        self.callbacks.on_stage("audit: shadow students", None)
        recipe = self._recipe(len(victim.members))
        result = audit(
            victim,
            seed=self.experiment.seed,
            recipe=recipe,
            shadows=shadows,
            canaries=found,
            label_shares=shares,
            white_box=white_box,
            progress=lambda done, total: self.callbacks.on_step(done, {"steps": total}),
        )
        return result, epsilon

    @cached_property
    def data(self) -> FederatedData:
        """The run's data, with its proxy set."""
        return self.teaching.data

    @cached_property
    def teaching(self) -> Teaching:
        """The run's teacher, normally from the cache."""
        return prepare_teacher(self.experiment, load(self.experiment.data), self.callbacks)

    @cached_property
    def start(self) -> Weights:
        """The server's initial student of the federation."""
        name = started(self.experiment.student.model, self.experiment.federation.start)
        part = RunPart(self.folder / CHECKPOINT, self.experiment.seed, "server", name)
        found = part.read(part.final)
        if found is None:
            raise CheckpointError(f"{part.final} is missing: an audit requires the initial student of the run's server")
        return found[0]

    @cached_property
    def student(self) -> TextModel:
        """The model of the global student."""
        config = self.experiment.student
        if config.by_merchant:
            raise ConfigError("an audit requires a single student model: student.by_merchant assigns several")
        with seeds.scope(self.experiment.seed, "student", config.model):
            texts = server_texts(self.data, self.teaching.candidates)
            return build_student(config.model, config.options, self.data.task, self.teaching.teacher, texts)

    def _released(self, examples: Examples) -> Predictor:
        """Return what the federation releases if its merchants have ``examples``."""
        return self._trained(examples)[0]

    def _trained(self, examples: Examples, merchant: str = "") -> tuple[Predictor, float]:
        """Return the released student, and the epsilon of ``merchant`` at ``CANARY_DELTA``, or 0 if unnamed."""
        data = regrouped(self.data, examples)
        with self._federation(data) as federation:
            progress = federate(federation, lambda record: None, lambda progress: None)
            spent = 0.0
            if merchant and isinstance(self._mechanism, AtMerchants):
                arm, seed = federation.arm, federation.seed
                ledgers = federation.part.state / "ledgers" / f"seed-{seed}" / as_file_name(arm)
                spent = (
                    Ledgers(ledgers)
                    .of(merchant)
                    .epsilon(self._mechanism.name, CANARY_DELTA, self.experiment.promise.accountant)
                )
        return predictor(self.student, progress.state.weights), spent

    def _canaries(self, count: int) -> tuple[CanaryAudit, float | None]:
        """Audit with canaries of shuffled words in the data of the largest merchant."""
        merchant = max(self.data.merchants, key=lambda name: (len(self.data.merchants[name].train), name))
        own = self.data.merchants[merchant].train
        others = [one.train for name, one in self.data.merchants.items() if name != merchant]
        source = replace(self.data.test, merchants=(merchant,) * len(self.data.test))
        spent: list[float] = []

        def train(examples: Examples) -> Predictor:
            released, cost = self._trained(Examples.concatenate([*others, examples]), merchant)
            spent.append(cost)
            return released

        found = canary_audit(
            train,
            predictor(self.student, self.start),
            own,
            make_canaries(source, len(self.data.task.classes), count, "random_text", self.experiment.seed),
            delta=CANARY_DELTA,
            seed=self.experiment.seed,
        )
        return found, spent[0] if isinstance(self._mechanism, AtMerchants) else None

    def _label_shares(self, title: str) -> ShareInference:
        """Infer each merchant's label shares from its uplink of the first round."""
        classes = len(self.data.task.classes)
        public = label_shares(self.data.public.labels, classes)
        before = predictor(self.student, self.start)(self.data.proxy)
        guesses = {}
        with self._federation(self.data) as federation:
            method = METHODS.build(federation.config.method, federation.config.options)
            rate = round_learning_rate(federation.training, 1, federation.config.rounds)
            state = federation.first_state()
            names = federation.sites.merchants
            starts = (
                {name: {federation.global_student: self.start} for name in names}
                if method.keeps == "own_student"
                else {}
            )
            request = federation.request(names, rate)
            for chunk in federation.answers(request, method.broadcast(state), starts):
                for uplink in chunk.uplinks:
                    guesses[uplink.merchant] = self._guessed_shares(uplink, before, public)
        truths = {name: label_shares(one.train.labels, classes) for name, one in self.data.merchants.items()}
        return infer_shares(guesses, truths, public)

    def _guessed_shares(self, uplink: Uplink, before: FloatArray, public: FloatArray) -> FloatArray:
        """Infer them from the most informative payload; ``before``: predictions of the initial student on the proxy
        set."""
        if means := uplink.get(ClassMeans):
            return shares_from_presence(means.present.numpy(), public)
        if labels := uplink.get(SoftLabels):
            sent = labels.probabilities.numpy().astype(np.float64)
        elif selected := next((one for one in uplink.payloads if isinstance(one, SelectedSoftLabels)), None):
            sent = selected.probabilities.numpy().astype(np.float64)
            before = before[selected.answered.numpy()]
        elif votes := uplink.get(Votes):
            sent = np.eye(len(public))[votes.classes.numpy()]
        else:
            factored = uplink.get(LowRankUpdate)
            update = factored.multiplied_out() if factored else uplink.need(StudentUpdate)
            sent = predictor(self.student, updated(self.start, update))(self.data.proxy)
        return shares_from_soft_labels(sent, before, public)

    def _recipe(self, examples: int) -> Recipe:
        """Return the attacker's imitation of the federation: one student on all examples, trained for as long."""
        mechanism, federation = self._mechanism, self.experiment.federation
        method = METHODS.build(federation.method, federation.options)
        plan = imitated(private_training(method, federation.rounds))
        training = self.experiment.training_of(federation.title)
        privacy = None
        if isinstance(mechanism, AtMerchants):
            config, batch_size = self.experiment.promise, mechanism.expected_batch(self.experiment)
            if config.noise_multiplier is not None:
                noise = config.noise_multiplier
            else:
                assert config.epsilon is not None
                steps, rate = private_steps(plan, examples // 2, batch_size), sampling_rate(examples // 2, batch_size)
                noise = noise_for(config.epsilon, default_delta(examples), rate, steps, (), config.accountant)
            privacy = ExampleDP.configured(mechanism.settings, noise)
        trainer = build_trainer(training, self.experiment.runtime)
        return Recipe(self.student, self.start, self.data.proxy, plan, Pace.of(training), trainer, privacy)

    @property
    def _mechanism(self) -> Mechanism:
        return mechanism_of(self.experiment, self.experiment.federation.title)

    @contextmanager
    def _federation(self, data: FederatedData) -> Iterator[Federation]:
        """Open the run's main federation on other data, in a temporary folder."""
        scratch = Path(tempfile.mkdtemp(prefix="audit-"))
        experiment = self.experiment.model_copy(
            update={
                "runtime": self.experiment.runtime.model_copy(update={"folder": scratch, "sites": 1}),
                "privacy": self.experiment.privacy.model_copy(update={"ledger": None}),
            }
        )
        title, name = experiment.federation.title, experiment.student.model
        server = ServerTraining(data, experiment.training, experiment.runtime)
        try:
            yield Federation(
                arm=title,
                config=experiment.federation.model_copy(update={"validate_every": experiment.federation.rounds}),
                training=experiment.training_of(title),
                privacy=experiment.privacy,
                mechanism=self._mechanism,
                seed=experiment.seed,
                students={name: self.student},
                starts={name: self.start},
                assigned=[name],
                teacher_labels=self.teaching.labels,
                factory=StudentFactory(
                    experiment, experiment.seed, self.teaching, server, self.callbacks, self._evaluator
                ),
                sites=Sites(self.make_grid(experiment, data)),
                server=server,
                evaluator=self._evaluator,
                teacher=Teacher.of(self.teaching.teacher, experiment),
                part=RunPart(scratch / experiment.name / CHECKPOINT, experiment.seed, "federation", title),
                codec=Codec.of(experiment.transport_of(title)),
                identity="audit" if experiment.protects(title) else "",
            )
        finally:
            shutil.rmtree(scratch)

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self.data)


def imitated(training: PrivateTraining) -> Plan:
    """Return a plan with the epochs and the steps of all rounds on private examples.

    If merchants train nothing, the server trains on their examples, and the plan has one epoch per round.
    """
    durations = [one for durations in training.rounds for one in durations]
    steps = sum(one.steps or 0 for one in durations)
    epochs = sum(one.epochs or 0.0 for one in durations) if durations else float(len(training.rounds))
    phases = (
        *((Phase(hard_labels(), epochs=epochs),) if epochs else ()),
        *((Phase(hard_labels(), steps=steps),) if steps else ()),
    )
    return Plan(phases)


def regrouped(data: FederatedData, examples: Examples) -> FederatedData:
    """Return ``data`` with the merchants' training sets replaced by ``examples``; drop merchants without any."""
    names = np.array(examples.merchants, dtype=object)
    merchants = {}
    for name, merchant in data.merchants.items():
        rows = np.flatnonzero(names == name)
        if len(rows):
            merchants[name] = replace(merchant, train=examples.take(rows))
    return replace(data, merchants=merchants)

"""One experiment from data to report: teacher and soft labels first, then everything that is compared, seed by seed.

Every finished piece is kept in the run's ``checkpoint`` folder; a resumed run skips what is there.
"""

import time
from collections.abc import Collection
from pathlib import Path

import torch
from flwr.serverapp import Grid

from fed_distill import seeds
from fed_distill.adversaries import ATTACKS
from fed_distill.adversaries.byzantine import liars
from fed_distill.aggregation import AGGREGATORS, SUBMODEL_AGGREGATORS
from fed_distill.config import Experiment, FederationConfig
from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.coordinator.sites import Sites
from fed_distill.coordinator.students import ServerTraining
from fed_distill.data import load
from fed_distill.data.augmentation import check_augmentation
from fed_distill.data.examples import FederatedData, Task
from fed_distill.data.public_part import PublicPart
from fed_distill.distill.masked import check_reads
from fed_distill.distill.transfer import check_heard, check_transfer
from fed_distill.errors import ConfigError, DataError
from fed_distill.evaluation.metrics import classification_report
from fed_distill.experiment.comparison import Comparison
from fed_distill.experiment.teaching import prepare_teacher
from fed_distill.logs import observed
from fed_distill.mechanisms.promise import check_covered
from fed_distill.methods import METHODS
from fed_distill.methods.base import Correcting, Method, Mutual, Particular
from fed_distill.models import build_student, load_teacher
from fed_distill.models.adapters import check_per_example
from fed_distill.payloads.base import Payload
from fed_distill.payloads.selected_soft_labels import SelectedSoftLabels
from fed_distill.payloads.soft_labels import SoftLabels
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.payloads.votes import Votes
from fed_distill.privacy.ledger import AT_MERCHANTS
from fed_distill.reporting.callbacks import Callback
from fed_distill.reporting.outcome import Outcome
from fed_distill.reporting.report import write_report
from fed_distill.reporting.speed import speed
from fed_distill.reporting.store import CLASSES, SUMMARY, RunStore, read_audit
from fed_distill.reporting.summary import summarize
from fed_distill.training.choosing import build_trainer
from fed_distill.training.robust import check_robust, passes
from fed_distill.transport.coding.codec import CODED, Codec


def conduct(experiment: Experiment, grid: Grid, callbacks: Callback, secret: str = "") -> Path:
    """Run ``experiment`` over the sites behind ``grid``; returns the run's folder.

    secret: what the server's noise is drawn from. Without one it comes from the run's seed, which protects nobody: in a
    simulation only.
    """
    began = time.perf_counter()
    check_names(experiment)
    if experiment.runtime.threads is not None:
        torch.set_num_threads(experiment.runtime.threads)
    data = load(experiment.data)
    check_parts(experiment, data)
    check_models(experiment, data.task)
    check_methods(experiment, len(data.task.classes))
    folder = experiment.runtime.folder / experiment.name
    opened = RunStore.resume if experiment.runtime.resume else RunStore.create
    with opened(folder, experiment) as store:
        callbacks.on_start(experiment, folder)
        public = PublicPart(data.task, data.proxy).fingerprint
        sites = Sites(grid, experiment.runtime.sites, deadline=experiment.federation.deadline, public=public)
        each_seed = range(experiment.seed, experiment.seed + experiment.repeats)
        poisoned = {seed: sorted(liars(experiment, sites.merchants, seed)) for seed in each_seed}
        teaching = prepare_teacher(experiment, data, callbacks)
        data = teaching.data
        if teaching.chosen is not None:
            sites.choose_proxy(teaching.chosen)
        server, evaluator = ServerTraining(data, experiment.training, experiment.runtime), Evaluator(data)
        outcomes: list[Outcome] = []
        for seed in each_seed:
            comparison = Comparison(experiment, seed, sites, teaching, server, evaluator, store, callbacks, secret)
            with observed(seed=seed):
                outcomes += comparison.run()
            if seed == experiment.seed:
                first = comparison
        callbacks.on_stage("report", None)
        student = first.school.student(experiment.student.model)
        student.load_state_dict(dict(first.final_weights(experiment.federation.title)))
        store.save_student(student.save)
        probabilities = evaluator.test_probabilities(student).numpy()
        store.write(CLASSES, classification_report(probabilities, data.test.labels, data.task))
        summary = summarize(
            experiment,
            data.task,
            teaching.metrics,
            student.parameter_count(),
            outcomes,
            merchants=len(sites.merchants),
            seconds=time.perf_counter() - began,
            speed=speed(teaching.teacher, student, data.test) if experiment.runtime.measure_speed else None,
            account=data.account,
            records=store.records(),
            poisoned=poisoned,
        )
        if (folder / SUMMARY).exists():  # a finished run, resumed: what an audit found stays with it
            summary["privacy"]["audit"] = read_audit(folder)
        store.write_summary(summary)
        write_report(folder)
        callbacks.on_end(summary)
    return folder


def check_names(experiment: Experiment) -> None:
    """Build every method, aggregator and trainer before anything is spent on them; ConfigError on the first that is
    wrong."""
    build_trainer(experiment.training, experiment.runtime)
    ATTACKS.build(experiment.poisoning.attack, experiment.poisoning.options)
    for federation in experiment.federations():
        method = METHODS.build(federation.method, federation.options)
        AGGREGATORS.build(federation.aggregator, federation.aggregator_options)
        check_promise(experiment.privacy.unit, federation, method)
        Codec.of(experiment.transport_of(federation.title))
        if not any(kind.holds_weights for kind in method.sends) and (
            federation.aggregator != "fedavg" or federation.aggregator_options
        ):
            raise ConfigError(
                f"method {federation.method} sends no weights that aggregator {federation.aggregator} could merge: set "
                "federation.aggregator = 'fedavg', without options"
            )
        weighting = experiment.privacy.weighting
        if weighting != "examples" and federation.aggregator_options.get("weight", weighting) != weighting:
            raise ConfigError(f"privacy.weighting = {weighting!r} and another weight in aggregator_options: drop one")
        if weighting != "examples" and federation.aggregator != "fedavg":
            raise ConfigError(
                f"privacy.weighting = {weighting!r} is for aggregator fedavg, not {federation.aggregator}"
            )
        if getattr(method, "relearns", False):
            check_heard(experiment.distill)
        if experiment.student.by_merchant and not method.personal:
            raise ConfigError(
                "student.by_merchant needs a method whose merchants keep students of their own, such as fedmd; "
                f"{federation.method} shares one student's weights"
            )
        if isinstance(method, Mutual) and len(experiment.teacher.members()) * experiment.teacher.domains > 1:
            raise ConfigError(
                f"method {federation.method} teaches one teacher: drop teacher.ensemble and teacher.domains"
            )
        if experiment.privacy.unit in AT_MERCHANTS and passes(experiment.training) > 1:
            raise ConfigError(
                f"privacy.unit = {experiment.privacy.unit!r} clips the gradient of one pass over an example: set "
                "training.adversarial.attack = 'none' and training.r_drop = 0"
            )
        if federation.aggregator in SUBMODEL_AGGREGATORS and not experiment.training.submodel:
            raise ConfigError(
                f"aggregator {federation.aggregator} averages submodels: it needs training.submodel = true"
            )
    check_transport(experiment)


def check_transport(experiment: Experiment) -> None:
    """ConfigError for chains that would code nothing, of a part that no federation on those terms sends or is sent, and
    for a cache of soft labels where one sends those of some proxy examples only."""
    sends: dict[str, set[type[Payload]]] = {}
    receives: dict[str, set[type[Payload]]] = {}
    for federation in experiment.federations():
        key = "[transport]" if federation.transport is None else f"the transport of {federation.title}"
        method: Method = METHODS.build(federation.method, federation.options)
        sends.setdefault(key, set()).update(method.sends)
        receives.setdefault(key, set()).update(method.receives)
    tables = {f"the transport of {one.title}": one.transport for one in experiment.federations() if one.transport}
    for key, config in {"[transport]": experiment.transport, **tables}.items():
        sent = sends.get(key, set())
        for part, kinds in CODED.items():
            if getattr(config, part) and not sent.intersection(kinds):
                raise ConfigError(f"{key} codes {part}, which no method on its terms sends: drop {part} from it")
            if getattr(config, f"downlink_{part}") and not receives.get(key, set()).intersection(kinds):
                raise ConfigError(
                    f"{key} codes {part} on their way to merchants, where no method on its terms sends any: drop "
                    f"downlink_{part} from it"
                )
        if config.downlink_soft_labels and SelectedSoftLabels in sent:
            raise ConfigError(f"{key} codes soft labels that merchants select by as the server does: drop it")
        if config.soft_label_cache is not None and (lacking := _uncacheable(sent)):
            raise ConfigError(f"{key} caches soft labels, {lacking}: drop soft_label_cache from it")


def _uncacheable(sent: Collection[type[Payload]]) -> str:
    """Why soft labels cannot be cached where merchants send these payloads; empty if they can."""
    if SelectedSoftLabels in sent:
        return "and a method on its terms sends those of some proxy examples only"
    return "" if SoftLabels in sent else "which no method on its terms sends"


def check_methods(experiment: Experiment, classes: int) -> None:
    """ConfigError for the first method that cannot be trained as merchants do, or on a task of so many classes."""
    for federation in experiment.federations():
        method = METHODS.build(federation.method, federation.options)
        private = experiment.privacy if experiment.unit_of(federation.title) in AT_MERCHANTS else None
        if isinstance(method, Correcting) and private is not None and (private.rows or private.row_rate_power):
            raise ConfigError(
                f"method {federation.method} trains whole tables: drop privacy.rows and privacy.row_rate_power"
            )
        if isinstance(method, Correcting) and private is not None and private.weighting != "examples":
            raise ConfigError(f"method {federation.method} counts all merchants alike: drop privacy.weighting")
        if isinstance(method, Particular):
            method.check(federation, experiment.training_of(federation.title), classes)


def check_promise(unit: str, federation: FederationConfig, method: Method) -> None:
    """ConfigError unless the noise of privacy ``unit`` covers all that the method says it sends."""
    sends = getattr(method, "sends", None)
    if sends is None:
        raise ConfigError(
            f"method {federation.method} does not declare what merchants send: give it `sends`, for example "
            "sends: ClassVar[Kinds] = (StudentWeights,)"
        )
    check_covered(unit, federation.method, sends)
    if unit == "merchant" and (sends != (StudentWeights,) or federation.aggregator != "fedavg"):
        raise ConfigError(
            f"privacy.unit = 'merchant' noises a mean of weights: it needs a method that sends weights only, such as "
            f"fedavg-kd, and aggregator fedavg, not {federation.method} with {federation.aggregator}"
        )
    if unit == "vote" and sends != (Votes,):
        raise ConfigError(
            f"privacy.unit = 'vote' noises counts of votes: it needs a method that sends votes only, such as pate, not "
            f"{federation.method}"
        )


def check_parts(experiment: Experiment, data: FederatedData) -> None:
    """DataError unless there is something to choose a teacher by, to validate and adapt students by, and a test set."""
    for name, part, share in (
        ("public validation", data.public_valid, "valid_share"),
        ("common validation", data.valid, "valid_share"),
        ("common test", data.test, "test_share"),
    ):
        if not len(part):
            raise DataError(f"the {name} set is empty: raise data.{share}, or give the data more rows")
    if experiment.adaptation.enabled and data.task.gains is not None and data.ranking_valid is None:
        raise DataError(
            "domain adaptation is judged by ranking, and no validation query has candidates of two grades: "
            "raise data.valid_share, give the data more candidates a query, or set adaptation.enabled = false"
        )


def check_models(experiment: Experiment, task: Task) -> None:
    """Build the teacher and each student once, so that a wrong name or option is said before anything is written."""
    check_augmentation(experiment.training.augmentation)
    if experiment.privacy.unit == "group" and experiment.privacy.group == "pair" and not task.pair:
        raise ConfigError(
            f"privacy.group = 'pair' groups examples by their second text, and task {task.name} has one text only: set "
            "privacy.group to 'text' or 'group'"
        )
    with seeds.scope(experiment.seed, "check models"):
        teachers = [load_teacher(member, task) for member, _ in experiment.teacher.members()]
        teacher = teachers[0]
        for model in teachers if experiment.teacher.masked_epochs else ():
            check_reads(model)
        for name in experiment.student.models():
            student = build_student(name, experiment.student.options_of(name), task, teacher)
            check_transfer(experiment.distill, task, student)
            check_robust(student, experiment.training)
            if experiment.privacy.unit in AT_MERCHANTS:
                check_per_example(student)
            if experiment.student.masked_epochs:
                check_reads(student)
        for assistant in experiment.distill.assistants:
            check_robust(build_student(assistant.model, assistant.options, task, teacher), experiment.training)

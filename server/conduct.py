"""One experiment from data to report: teacher and soft labels first, then everything that is compared, seed by seed.

Every finished piece is kept in the run's ``checkpoint`` folder; a resumed run skips what is there.
"""

import time
from pathlib import Path

import torch
from flwr.serverapp import Grid

from fed_distill.config import Experiment, FederationConfig
from fed_distill.data import load
from fed_distill.data.examples import FederatedData, Task
from fed_distill.errors import ConfigError, DataError
from fed_distill.merging import AGGREGATORS
from fed_distill.methods import METHODS
from fed_distill.methods.base import Method
from fed_distill.models import build_student, load_teacher
from fed_distill.results.metrics import classification_report
from fed_distill.results.outcome import Outcome
from fed_distill.results.report import write_report
from fed_distill.results.speed import speed
from fed_distill.results.store import CLASSES, SUMMARY, RunStore, read_summary
from fed_distill.results.summary import summarize
from fed_distill.runtime import seeds
from fed_distill.runtime.callbacks import Callback
from fed_distill.training.choosing import build_trainer
from server.comparison import Comparison
from server.evaluation import Evaluator
from server.sites import Sites
from server.students import ServerTraining
from server.teaching import prepare_teacher


def conduct(experiment: Experiment, grid: Grid, callbacks: Callback) -> Path:
    """Run ``experiment`` over the sites behind ``grid``; returns the run's folder."""
    began = time.perf_counter()
    check_names(experiment)
    if experiment.runtime.threads is not None:
        torch.set_num_threads(experiment.runtime.threads)
    data = load(experiment.data)
    check_parts(experiment, data)
    check_models(experiment, data.task)
    folder = experiment.runtime.folder / experiment.name
    opened = RunStore.resume if experiment.runtime.resume else RunStore.create
    with opened(folder, experiment) as store:
        callbacks.on_start(experiment, folder)
        sites = Sites(grid, experiment.runtime.sites)
        teaching = prepare_teacher(experiment, data, callbacks)
        server, evaluator = ServerTraining(data, experiment.training, experiment.runtime), Evaluator(data)
        outcomes: list[Outcome] = []
        for seed in range(experiment.seed, experiment.seed + experiment.repeats):
            comparison = Comparison(experiment, seed, sites, teaching, server, evaluator, store, callbacks)
            outcomes += comparison.run()
            if seed == experiment.seed:
                first = comparison
        callbacks.on_stage("report", None)
        student = first.student(experiment.student.model)
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
        )
        if (folder / SUMMARY).exists():  # a finished run, resumed: what an audit found stays with it
            summary["privacy"]["audit"] = read_summary(folder)["privacy"]["audit"]
        store.write_summary(summary)
        write_report(folder)
        callbacks.on_end(summary)
    return folder


def check_names(experiment: Experiment) -> None:
    """Build every method, aggregator and trainer before anything is spent on them; ConfigError on the first that is
    wrong."""
    build_trainer(experiment.training, experiment.runtime)
    for federation in experiment.federations():
        method = METHODS.build(federation.method, federation.options)
        AGGREGATORS.build(federation.aggregator, federation.aggregator_options)
        check_promise(experiment.privacy.unit, federation, method)
        if experiment.student.by_merchant and not method.personal:
            raise ConfigError(
                "student.by_merchant needs a method whose merchants keep students of their own, such as fedmd; "
                f"{federation.method} shares one student's weights"
            )
        if federation.aggregator == "fedsubavg" and not experiment.training.submodel:
            raise ConfigError("aggregator fedsubavg averages submodels: it needs training.submodel = true")


def check_promise(unit: str, federation: FederationConfig, method: Method) -> None:
    """ConfigError unless the noise of privacy ``unit`` covers all that the method says it sends."""
    sends = getattr(method, "sends", None)
    if sends is None:
        raise ConfigError(
            f"method {federation.method} does not declare what merchants send: give it `sends`, for example "
            'sends: ClassVar[tuple[Part, ...]] = ("weights",)'
        )
    if unit == "merchant" and (sends != ("weights",) or federation.aggregator != "fedavg"):
        raise ConfigError(
            f"privacy.unit = 'merchant' noises a mean of weights: it needs a method that sends weights only, such as "
            f"fedavg-kd, and aggregator fedavg, not {federation.method} with {federation.aggregator}"
        )
    if unit == "vote" and sends != ("votes",):
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
    with seeds.scope(experiment.seed, "check models"):
        teacher = load_teacher(experiment.teacher, task)
        for name in experiment.student.models():
            build_student(name, experiment.student.options_of(name), task, teacher)

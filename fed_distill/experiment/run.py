"""One experiment from data to report: teacher and soft labels, then controls and federations, seed by seed.

Every finished part is stored in the run's ``checkpoint`` folder; a resumed run skips it.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from flwr.serverapp import Grid

from fed_distill.adversaries.byzantine import byzantine_merchants
from fed_distill.config import DataConfig, Experiment
from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.coordinator.sites import Sites
from fed_distill.coordinator.students import ServerTraining
from fed_distill.data import load
from fed_distill.data.cleaning import unlabeled_rows
from fed_distill.data.examples import FederatedData
from fed_distill.data.fingerprint import run_fingerprint
from fed_distill.data.public_part import PublicPart
from fed_distill.data.student_description import StudentDescription
from fed_distill.evaluation.metrics import classification_report, confusion
from fed_distill.evaluation.shares import chance_scores
from fed_distill.experiment.absolute import only_names
from fed_distill.experiment.comparison import Comparison
from fed_distill.experiment.grid import is_simulated
from fed_distill.experiment.preflight import check_rounds, check_settings, check_with_data
from fed_distill.experiment.teaching import Teaching, prepare_teacher
from fed_distill.logs import observed
from fed_distill.models.labels_file import LabelsFile
from fed_distill.models.student_folder import save_student
from fed_distill.reporting.callbacks import Callback
from fed_distill.reporting.campaign_effect import EFFECTS, EFFECTS_TABLE, as_json, as_table, campaign_effect
from fed_distill.reporting.disagreements import DISAGREEMENTS, disagreements
from fed_distill.reporting.disagreements import written as texts_written
from fed_distill.reporting.model_card import CARD, model_card
from fed_distill.reporting.outcome import Outcome
from fed_distill.reporting.report import write_report
from fed_distill.reporting.speed import speed
from fed_distill.reporting.store import CLASSES, SUMMARY, RunStore, read_audit
from fed_distill.reporting.summary import summarize
from fed_distill.reporting.unit_scores import UNIT_SCORES, written

_log = logging.getLogger(__name__)


def run_experiment(
    experiment: Experiment,
    grid: Grid,
    callbacks: Callback,
    secret: str = "",
    read: Callable[[DataConfig], FederatedData] = load,
) -> Path:
    """Run ``experiment`` with the sites of ``grid``, and return the run's folder.

    :param secret: seeds the server's noise; empty in a simulation only, which uses the run's seed and gives no
        protection
    :param read: reads the data: a ``DataReader`` that the sites of this process share
    """
    began = time.perf_counter()
    check_settings(experiment)
    if experiment.runtime.threads is not None:
        torch.set_num_threads(experiment.runtime.threads)
    data = read(experiment.data)
    check_with_data(experiment, data)
    if told := unlabeled_rows(data.account["cleaning"]):
        _log.warning("%s", told)
    folder = experiment.runtime.folder / experiment.name
    opened = RunStore.resume if experiment.runtime.resume else RunStore.create
    with opened(folder, experiment) as store:
        store.check_data(run_fingerprint(data))
        callbacks.on_start(experiment, folder)
        if "proxy_set" in data.account:
            callbacks.on_message(f"the proxy set has {data.account['proxy_set']}")
        public = PublicPart(data.task, data.proxy).fingerprint
        sites = Sites(grid, experiment.runtime.sites, deadline=experiment.federation.deadline, public=public)
        check_rounds(experiment, len(sites.merchants))
        each_seed = range(experiment.seed, experiment.seed + experiment.repeats)
        byzantine = {seed: sorted(byzantine_merchants(experiment, sites.merchants, seed)) for seed in each_seed}
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
        student = first.factory.student(experiment.student.model)
        student.load_state_dict(dict(first.final_weights(experiment.federation.title)))
        probabilities = evaluator.test_probabilities(student).numpy()
        store.write(CLASSES, classification_report(probabilities, data.test.labels, data.task))
        if data.task.of_campaigns:
            _write_effect(store, teaching, probabilities, experiment.data.seed)
        # a file of labels has no speed
        measure_speed = experiment.runtime.measure_speed and not isinstance(teaching.teacher, LabelsFile)
        summary = summarize(
            experiment,
            data.task,
            teaching.metrics,
            student.parameter_count(),
            outcomes,
            merchants=len(sites.merchants),
            seconds=time.perf_counter() - began,
            speed=speed(teaching.teacher, student, data.test) if measure_speed else None,
            account=data.account,
            records=store.records(),
            byzantine=byzantine,
            confusion=confusion(probabilities, data.test.labels, data.task).tolist(),
            chance=chance_scores(data.test.labels.tolist(), data.ranking_test, data.task),
        )
        if experiment.reports_scores or not is_simulated(grid):  # a deployment's test set is the server's own
            store.write(UNIT_SCORES, written(outcomes))
        else:
            (folder / UNIT_SCORES).unlink(missing_ok=True)
        if (folder / SUMMARY).exists():  # a finished run was resumed: keep the results of audits
            summary["privacy"]["audit"] = read_audit(folder)
        described = StudentDescription(data.task, experiment.data.max_characters)

        def save(into: Path) -> None:
            save_student(into, student, described)
            card = model_card(summary, only_names(experiment), data.task, student, described.max_characters)
            (into / CARD).write_text(card, encoding="utf-8")

        store.save_student(save)
        listed = experiment.runtime.disagreements
        if listed:
            found = disagreements(student, data.task, data.proxy, teaching.labels, listed)
            store.write(DISAGREEMENTS, texts_written(found))
        else:
            (folder / DISAGREEMENTS).unlink(missing_ok=True)  # of a run that was resumed with other settings
        write_report(folder, summary)
        store.write_summary(summary)  # last: a run with a summary is finished
        callbacks.on_end(summary)
    return folder


def _write_effect(store: RunStore, teaching: Teaching, probabilities: npt.NDArray[np.float32], seed: int) -> None:
    """Write what a campaign did to the test customers, of whom the student predicts ``probabilities``."""
    data, ensemble = teaching.data, teaching.ensemble
    covered = bool(ensemble.covered(data.test).all())
    teacher = ensemble.labels("the test set", data.test).numpy() if covered else None
    account = campaign_effect(data.test, probabilities, teacher, data.true_effects, seed)
    store.write(EFFECTS, as_json(account))
    store.write(EFFECTS_TABLE, as_table(account))

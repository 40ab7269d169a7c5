"""Prune a run's transformer student: remove layers and neurons, then distil what is left from the whole student.

The smaller student is trained on the proxy set only, which is public, with the class probabilities of the whole
student, which was released. Of a private run this is post-processing (Dwork & Roth 2014, proposition 2.1): the
guarantee stays as it is, and nothing is charged. No test example is used, and validation examples decide nothing.
"""

import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from fed_distill import seeds
from fed_distill.config import Experiment
from fed_distill.coordinator.evaluation import Evaluator
from fed_distill.coordinator.students import ServerTraining
from fed_distill.data import load
from fed_distill.data.examples import FederatedData
from fed_distill.data.student_description import StudentDescription
from fed_distill.data.validation_only import without_test
from fed_distill.distill.losses import soft_labels
from fed_distill.errors import ConfigError
from fed_distill.models.pruning import (
    NetworkShape,
    drawn_classes,
    neuron_importance,
    prunable,
    pruned,
    pruned_shape,
    shape_of,
)
from fed_distill.models.student_folder import save_student
from fed_distill.models.transformer import Transformer
from fed_distill.reporting.callbacks import Callback
from fed_distill.reporting.model_card import CARD
from fed_distill.reporting.pruned_card import Pruning, PruningRow, pruned_card
from fed_distill.reporting.store import EXPERIMENT, STUDENT, read_experiment
from fed_distill.serving.measuring import latencies, one_thread, percentiles
from fed_distill.serving.student import Student, check_new_folder, load_student, student_folder
from fed_distill.storage.files import make_folder, replace_folder
from fed_distill.training.plan import Phase, Plan

_WEIGHTS = "model.safetensors"
_SAMPLE = 4096
"""Most proxy examples that the importance of neurons is measured on."""


def prune_student(
    run: Path, to: Path, layers: int | None, neurons: int | None, epochs: float, callbacks: Callback
) -> Pruning:
    """Write a smaller version of the student of ``run`` to the new folder ``to``, atomically.

    ``to`` gets the form of a run's folder, with ``student/`` and ``experiment.toml``, so that whatever takes a run's
    student takes it. Equal arguments give equal weights.

    :param run: folder of a run, or one that this function wrote
    :param layers: number of layers to keep; None for all
    :param neurons: number of neurons to keep of each feed-forward network; None for all
    :param epochs: epochs of distillation on the proxy set
    :param callbacks: receive the progress
    :raises ConfigError: ``to`` is not empty or in the student's folder, nothing or too much would be removed, or
        ``epochs`` is not positive
    :raises ModelError: there is no student, or one that cannot be pruned
    :raises CheckpointError: ``run`` has no experiment
    :raises DataError: the run's data cannot be loaded
    """
    if not (math.isfinite(epochs) and epochs > 0.0):
        raise ConfigError(f"--epochs {epochs:g}: choose a number above 0")
    experiment, folder = read_experiment(run), student_folder(run)
    check_new_folder(to, folder)
    student, description = load_student(folder), StudentDescription.read(folder)
    whole = prunable(student.model)
    shape = pruned_shape(whole, layers, neurons)
    private = experiment.protects(experiment.federation.title)
    data = _public_data(experiment, private)
    cut = _pruned(whole, shape, data, experiment.seed, callbacks)
    small = _distilled(cut, whole, data, experiment, epochs, callbacks)
    evaluator = Evaluator(data)
    score = evaluator.public_score if private else evaluator.validation_score
    found: list[Pruning] = []

    def fill(target: Path) -> None:
        save_student(target / STUDENT, small, description)
        shutil.copyfile(run / EXPERIMENT, target / EXPERIMENT)
        callbacks.on_stage("validation, and speed on one core", None)
        before = _row("before pruning", student, folder, description, score(whole))
        after = _row("pruned", Student(small, description), target / STUDENT, description, score(cut))
        distilled = replace(after, name="pruned and distilled", quality=score(small))  # of the same size and speed
        found.append(
            Pruning(
                name=experiment.name,
                model=experiment.student.model,
                digest=student.digest,
                before=shape_of(whole),
                after=shape,
                epochs=epochs,
                metric="macro_f1" if private else student.task.headline,
                private=private,
                rows=(before, after, distilled),
            )
        )
        card = pruned_card((folder / CARD).read_text(encoding="utf-8"), found[0])
        (target / STUDENT / CARD).write_text(card, encoding="utf-8")

    make_folder(to.parent)
    replace_folder(to, fill)
    return found[0]


def _public_data(experiment: Experiment, private: bool) -> FederatedData:
    """Return the run's data without test examples and merchants' tables; of a private run also without merchants'
    validation examples, so that not even a reported figure depends on them."""
    data = replace(without_test(load(experiment.data)), merchants={})
    if not private:
        return data
    return replace(data, valid=data.public_valid, test=data.public_valid, ranking_valid=None, ranking_test=None)


def _pruned(
    whole: Transformer, shape: NetworkShape, data: FederatedData, seed: int, callbacks: Callback
) -> Transformer:
    """Return ``whole`` pruned to ``shape``; neurons are ranked on a random sample of the proxy set."""
    if shape.neurons == shape_of(whole).neurons:
        return pruned(whole, shape)
    callbacks.on_stage("importance of neurons", None)
    order = torch.randperm(len(data.proxy), generator=seeds.torch_stream(seed, "prune", "examples"))
    sample = data.proxy.take(order[:_SAMPLE].numpy())
    encoded = whole.encode(sample.texts, sample.pairs)
    classes = drawn_classes(whole, encoded, (seed, "prune", "classes"))
    return pruned(whole, shape, neuron_importance(whole, encoded, classes))


def _distilled(
    cut: Transformer,
    whole: Transformer,
    data: FederatedData,
    experiment: Experiment,
    epochs: float,
    callbacks: Callback,
) -> Transformer:
    """Return a copy of ``cut`` that was trained on the soft labels of ``whole`` for the proxy set, with the optimizer
    and the temperature of ``[training.server]``."""
    callbacks.on_stage("distillation from the student before pruning", None)
    server, small = ServerTraining(data, experiment.training, experiment.runtime), copy.deepcopy(cut)
    objective = soft_labels(server.config.server.temperature)
    references = {"soft_labels": server.proxy_labels(whole)}
    plan = Plan((Phase(objective, data="proxy", epochs=epochs, references=references),))
    randomness = (experiment.seed, "prune", "distillation")

    def report(done: int, total: int) -> None:
        callbacks.on_step(done, {"steps": total})

    small.load_state_dict(server.train(small, cut.state_dict(), plan, randomness, progress=report))
    return small.eval()


def _row(name: str, student: Student, folder: Path, description: StudentDescription, quality: float) -> PruningRow:
    with one_thread():
        middle, high = percentiles(latencies(student, description.max_characters))
    size = (folder / _WEIGHTS).stat().st_size
    return PruningRow(name, student.model.parameter_count(), size, middle, high, quality)

"""Validate an experiment before training: run the check of each part."""

from fed_distill import seeds
from fed_distill.adversaries import ATTACKS
from fed_distill.aggregation import checks as aggregation
from fed_distill.config import Experiment
from fed_distill.coordinator.federation import sample_size
from fed_distill.data.augmentation import check_augmentation
from fed_distill.data.examples import FederatedData
from fed_distill.data.tasks import RELEVANCE
from fed_distill.distill.coverage import check_labels_files
from fed_distill.distill.masked import check_token_model
from fed_distill.distill.teacher import check_fine_tuning
from fed_distill.distill.transfer import check_transfer
from fed_distill.errors import ConfigError, DataError
from fed_distill.evaluation.recommenders import RECOMMENDERS
from fed_distill.experiment.student_factory import known_truth
from fed_distill.experiment.teaching import server_texts
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.methods import METHODS
from fed_distill.methods import checks as methods
from fed_distill.methods.base import Method
from fed_distill.models import TextModel, build_student, load_teacher
from fed_distill.models.precision import check_precision
from fed_distill.training.choosing import build_trainer, chosen_device
from fed_distill.training.robust import check_robust
from fed_distill.transport import checks as transport


def check_settings(experiment: Experiment) -> None:
    """Build every method, aggregator, codec and trainer, and check their requirements on the settings, without data.

    :raises ConfigError: the first invalid setting
    """
    build_trainer(experiment.training.of_merchants(), experiment.runtime)
    ATTACKS.build(experiment.byzantine.attack, experiment.byzantine.options)
    built: dict[str, Method] = {}
    for federation in experiment.federations():
        method: Method = METHODS.build(federation.method, federation.options)
        methods.check(experiment, federation, method)
        mechanism_of(experiment).check(experiment, federation, method.sends)
        methods.check_training(experiment, federation, method)
        aggregation.check(experiment, federation, "average" in method.uses)
        built[federation.title] = method
    transport.check(experiment, built)


def check_with_data(experiment: Experiment, data: FederatedData) -> None:
    """Check that all parts of the data exist, that all models can be built for the task, and that all methods support
    it.

    :raises ConfigError: a setting does not fit the task
    :raises DataError: a part of the data is missing, or a teacher's file has too few labels
    """
    check_parts(experiment, data)
    if data.merchants:  # those of a deployment are known once its sites have answered
        check_rounds(experiment, len(data.merchants))
    if experiment.training.unlabeled.epochs and not any(len(one.unlabeled) for one in data.merchants.values()):
        raise ConfigError(
            "training.unlabeled trains on rows whose labels are withheld, and no merchant has any: set "
            "data.client_labels below 1 in a simulation, or training.unlabeled.epochs = 0"
        )
    check_labels_files(experiment, check_models(experiment, data), data)
    if "oracle-proxy" in experiment.controls:
        known_truth(data)
    recommenders = [name for name in RECOMMENDERS if name in experiment.controls]
    if recommenders and not (data.task.of_histories and data.task.gains):
        raise ConfigError(
            f"control {recommenders[0]!r} recommends by purchases, which task {data.task.name!r} does not have: "
            "remove it from controls"
        )
    if "bm25" in experiment.controls and data.task.name != RELEVANCE.name:
        raise ConfigError(
            f"control 'bm25' ranks titles for queries, which task {data.task.name!r} does not have: "
            "remove it from controls"
        )
    for federation in experiment.federations():
        method = METHODS.build(federation.method, federation.options)
        methods.check_task(experiment, federation, method, data.task)


def check_rounds(experiment: Experiment, merchants: int) -> None:
    """Raise ConfigError if a round of ``merchants`` is smaller than its aggregator requires."""
    for federation in experiment.federations():
        needed, size = aggregation.least_merchants(federation), sample_size(merchants, federation.participation)
        if size < needed:
            raise ConfigError(
                f"aggregator {federation.aggregator} with its options requires {needed} merchants a round, and a round "
                f"has {size} of {merchants}: decrease its options, increase federation.participation, or use another"
            )


def check_parts(experiment: Experiment, data: FederatedData) -> None:
    """Raise DataError if a validation set for teacher, students or adaptation, or the test set, is empty."""
    for name, part, share in (
        ("public validation", data.public_valid, "valid_share"),
        ("common validation", data.valid, "valid_share"),
        ("common test", data.test, "test_share"),
    ):
        if not len(part):
            raise DataError(f"the {name} set is empty: increase data.{share}, or use data with more rows")
    if experiment.adaptation.enabled and data.task.gains is not None and data.ranking_valid is None:
        raise DataError(
            "domain adaptation is evaluated by ranking, but no validation query has candidates of two grades: "
            "increase data.valid_share, use data with more candidates per query, or set adaptation.enabled = false"
        )


def check_models(experiment: Experiment, data: FederatedData) -> list[TextModel]:
    """Build each teacher and student once, to report a wrong name or option before anything is written; return the
    teachers."""
    check_augmentation(experiment.training.augmentation)
    mechanism, task, texts = mechanism_of(experiment), data.task, server_texts(data, data.proxy)
    mechanism.check_task(task)
    mechanism.check_data(experiment, data)
    check_fine_tuning(experiment.teacher)
    with seeds.scope(experiment.seed, "check models"):
        teachers = [load_teacher(member, task) for member, _ in experiment.teacher.members()]
        teacher = teachers[0]
        for model in teachers if experiment.teacher.masked.epochs else ():
            check_token_model(model)
        device = chosen_device(experiment.runtime.device)
        for model, (member, _) in zip(teachers, experiment.teacher.members(), strict=True):
            check_precision(model, task.pair, member.precision, device, "teacher.precision")
        for name in experiment.student.models():
            student = build_student(name, experiment.student.options_of(name), task, teacher, texts)
            check_transfer(experiment.distill, task, student)
            check_robust(student, experiment.training)
            mechanism.check_student(student)
            check_precision(
                student, task.pair, experiment.training.of_merchants().precision, device, "training.precision"
            )
            if experiment.student.masked.epochs:
                check_token_model(student)
        for assistant in experiment.distill.assistants:
            model = build_student(assistant.model, assistant.options, task, teacher, texts)
            check_robust(model, experiment.training)
    return teachers

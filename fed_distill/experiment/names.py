"""Check the names of an experiment's parts, without importing what they name."""

from fed_distill.adversaries import ATTACKS
from fed_distill.aggregation import AGGREGATORS
from fed_distill.config import Experiment
from fed_distill.data import DATASETS
from fed_distill.methods import METHODS
from fed_distill.models.names import STUDENTS, check_teacher
from fed_distill.reporting.callbacks import CALLBACKS


def check_names(experiment: Experiment) -> None:
    """Raise ConfigError for the first unknown name of a dataset, model, method, aggregator, attack or callback.

    An import path is not followed, and the network is not used.
    """
    DATASETS.check(experiment.data.dataset)
    for member, _ in experiment.teacher.members():
        check_teacher(member)
    for name in (*experiment.student.models(), *(assistant.model for assistant in experiment.distill.assistants)):
        STUDENTS.check(name)
    for federation in experiment.federations():
        METHODS.check(federation.method)
        AGGREGATORS.check(federation.aggregator)
    ATTACKS.check(experiment.byzantine.attack)
    for callback in experiment.runtime.callbacks:
        CALLBACKS.check(callback)

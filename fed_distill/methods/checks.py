"""Check a method's declarations and its requirements on the experiment."""

from fed_distill.config import Experiment, FederationConfig
from fed_distill.data.examples import Task
from fed_distill.distill.transfer import check_soft_label_transfer
from fed_distill.errors import ConfigError
from fed_distill.mechanisms.at_merchants import AtMerchants
from fed_distill.mechanisms.lookup import mechanism_of
from fed_distill.methods.base import (
    HasControlVariate,
    HasIdleOptions,
    Method,
    NeedsMemory,
    ValidatesConfig,
    private_training,
)
from fed_distill.models.building import is_trainable
from fed_distill.payloads.student_weights import StudentWeights
from fed_distill.transport.records import RESERVED

DECLARED = {
    "sends": "the kinds of payloads that merchants send, for example sends: ClassVar[Kinds] = (StudentUpdate,)",
    "receives": "the kinds of payloads that they are sent, for example receives: ClassVar[Kinds] = (StudentWeights,)",
    "keeps": 'what a merchant keeps between rounds, for example keeps: ClassVar[Keeps] = "nothing"',
    "private_durations": "how long merchants train on private examples in a round, for example "
    "def private_durations(self, round): return (Duration(epochs=1.0),)",
    "uses": 'what its merge asks of the server, for example uses: ClassVar[tuple[Service, ...]] = ("average",)',
}
"""Required declarations of a method, with an example."""
_MOST_BYTES = 8 * 2**30


def check_declared(name: str, method: Method) -> None:
    """Raise ConfigError unless the method has all declarations, and its payloads have distinct records."""
    for declared, what in DECLARED.items():
        if getattr(method, declared, None) is None:
            raise ConfigError(f"method {name} does not declare `{declared}`: {what}")
    if StudentWeights in method.sends:
        raise ConfigError(
            f"method {name} sends StudentWeights, which only the server does: merchants send how far training moved "
            "them, StudentUpdate.of(trained.update), and `average` merges that"
        )
    for declared, kinds in (("sends", method.sends), ("receives", method.receives)):
        records = [*RESERVED, *(record for kind in kinds for record in kind.records)]
        twice = next((record for record in records if records.count(record) > 1), None)
        if twice is not None:
            raise ConfigError(
                f"method {name}: two kinds in `{declared}` have a record {twice!r}, or a message has one itself: "
                "rename it, or drop one of the kinds"
            )


def check(experiment: Experiment, federation: FederationConfig, method: Method) -> None:
    """Raise ConfigError unless the method has all declarations and the experiment meets its requirements."""
    check_declared(federation.method, method)
    _check_effect(federation, method)
    if {"distil_anew", "distil_onwards"} & {*method.uses}:
        check_soft_label_transfer(experiment.distill)
    if experiment.student.by_merchant and method.keeps != "own_student":
        raise ConfigError(
            "student.by_merchant needs a method whose merchants keep students of their own, such as fedmd; "
            f"{federation.method} shares one student's weights"
        )
    if any(kind.of_labels for kind in method.sends) and experiment.training.unlabeled.epochs:
        raise ConfigError(f"method {federation.method} trains nothing at merchants: set training.unlabeled.epochs = 0")
    if isinstance(method, HasControlVariate) and experiment.transport_of(federation.title).weights:
        raise ConfigError(
            f"method {federation.method} computes control variates at both ends from the same update: drop "
            "`weights` in [transport], which changes it on the way"
        )
    if "train_teacher" in method.uses and len(experiment.teacher.members()) * experiment.teacher.domains > 1:
        raise ConfigError(f"method {federation.method} teaches one teacher: drop teacher.ensemble and teacher.domains")
    if "train_teacher" in method.uses and not is_trainable(experiment.teacher):
        raise ConfigError(
            f"method {federation.method} trains the teacher, and teacher {experiment.teacher.model} cannot be trained: "
            "choose another method, or a teacher that is a model"
        )


def check_training(experiment: Experiment, federation: FederationConfig, method: Method) -> None:
    """Raise ConfigError if merchants add noise to private steps and a round has none."""
    mechanism = mechanism_of(experiment, federation.title)
    if isinstance(mechanism, AtMerchants):
        mechanism.check_training(private_training(method, federation.rounds))


def _check_effect(federation: FederationConfig, method: Method) -> None:
    """Raise ConfigError if an option is set that has no effect beside the others."""
    idle = method.idle_options(federation.rounds) if isinstance(method, HasIdleOptions) else {}
    for name in federation.options:
        if name in idle:
            raise ConfigError(
                f"method {federation.method}: options.{name} has no effect, since {idle[name]}: remove {name}"
            )


def check_task(experiment: Experiment, federation: FederationConfig, method: Method, task: Task) -> None:
    """Raise ConfigError if the method does not support the merchants' training or the task."""
    if task.of_titles and any(kind.of_labels for kind in method.sends):
        raise ConfigError(
            f"method {federation.method} sends texts, and those of task {task.name!r} are histories of customers: "
            "choose another method, such as fedavg-kd"
        )
    size, classes = experiment.data.proxy_size, len(task.classes)
    if isinstance(method, NeedsMemory) and (needed := method.merge_bytes(size, classes)) > _MOST_BYTES:
        raise ConfigError(
            f"method {federation.method} would need {needed / 2**30:.0f} GiB at the server to merge soft labels of "
            f"{classes} classes on a proxy set of {size:,}: decrease data.proxy_size, or choose another, such as fedmd"
        )
    mechanism = mechanism_of(experiment, federation.title)
    private = mechanism.settings if isinstance(mechanism, AtMerchants) else None
    if isinstance(method, HasControlVariate) and private is not None and (private.rows or private.row_rate_power):
        raise ConfigError(
            f"method {federation.method} trains whole tables: drop privacy.rows and privacy.row_rate_power"
        )
    if isinstance(method, HasControlVariate) and private is not None and private.weighting != "examples":
        raise ConfigError(f"method {federation.method} counts all merchants alike: drop privacy.weighting")
    if isinstance(method, ValidatesConfig):
        method.check(federation, experiment.training_of(federation.title), len(task.classes))

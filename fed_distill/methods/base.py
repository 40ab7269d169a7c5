"""The interface of federated methods: what is sent, what is trained, and how it is aggregated.

A method is a frozen dataclass with its options as fields. It does not depend on data loaders, optimizers or the
runtime.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from fed_distill.config import FederationConfig, TrainerConfig
from fed_distill.errors import UplinkRejected
from fed_distill.models.weights import PartialWeights, Weights, update_of
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.payloads.prototypes import Prototypes
from fed_distill.payloads.released_labels import ReleasedLabels
from fed_distill.training.early_stopping import EarlyStopping
from fed_distill.training.plan import Duration, Plan
from fed_distill.training.private_training import PrivateTraining
from fed_distill.transport.messages import Downlink, Kinds, Uplink

__all__ = ["GlobalState", "Method", "Trained", "private_training", "replace"]


Service = Literal["average", "tally", "distil", "distil_anew", "distil_onwards", "train_on_released", "train_teacher"]
"""Services of the server for a method's ``merge``; the names of the functions of ``Services``."""
Keeps = Literal["nothing", "own_student", "last_student", "control_variate"]
"""State of a merchant between rounds, in its site's store: none; its own student, which it continues to train; the
student that it trained last, as a reference; or a control variate (``HasControlVariate``)."""


@dataclass(frozen=True)
class GlobalState:
    """The server's state between rounds: data only, all of it in the checkpoint or known before the run.

    :param round: number of completed rounds
    :param weights: weights of the global student
    :param teacher_labels: the teacher's current probabilities on the proxy set ``[proxy, classes]``
    :param consensus: the merchants' aggregated probabilities on the proxy set, or None in the first round
    :param teacher_weights: weights of a teacher trained by the method (``Services.train_teacher``), else empty
    :param kept: other state of the method, by name
    :param population: number of merchants in the federation, participating or not
    :param rounds: number of planned rounds
    """

    round: int
    weights: Weights
    teacher_labels: Tensor
    consensus: Tensor | None = None
    teacher_weights: Weights = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    population: int = 1
    rounds: int = 1


class Services(Protocol):
    """Services of the server for a method's ``merge``; a method declares those functions that it ``uses``."""

    @property
    def local_rate(self) -> float:
        """Learning rate of merchants' steps in this round, without the scale of a phase."""

    def average(self, current: Weights, up: Iterable[Uplink]) -> Weights:
        """Return ``current`` plus the merchants' updates, aggregated by the configured aggregator."""

    def tally(self, votes: Tensor) -> Tensor:
        """Convert counts of votes ``[proxy, classes]`` to labels, int64 ``[proxy]``, negative for none."""

    def distil(self, weights: Weights, plan: Plan, stopping: EarlyStopping | None = None) -> Weights:
        """Continue training of the global student from ``weights`` with phases on the proxy set.

        :param stopping: with it, the plan's one phase is a maximum, and the weights with the best score on the server's
            own validation examples are returned, never those that merchants' examples select
        """

    def distil_anew(self, soft_labels: Tensor, temperature: float | None = None) -> Weights:
        """Re-initialise and distil the global student like the server's own, with other soft labels.

        :param soft_labels: soft labels of the proxy set ``[proxy, classes]``, in place of the teacher's
        :param temperature: constant temperature; None for the teacher's
        """

    def distil_onwards(self, weights: Weights, soft_labels: Tensor) -> Weights:
        """Distil the global student from ``weights``, otherwise as ``distil_anew``: with the server's labels, and for
        as many epochs.

        :param soft_labels: soft labels of the proxy set ``[proxy, classes]``, in place of the teacher's
        """

    def train_on_released(
        self, weights: Weights, released: Mapping[str, ReleasedLabels], passes: int, learning_rate_scale: float
    ) -> Weights:
        """Continue training of the global student from ``weights`` on merchants' randomized labels: on the
        probabilities of the true ones, with the student's predictions before each pass as prior (``mechanisms.label``).

        :param released: randomized labels by merchant
        :param passes: number of passes, each a training of one epoch as in [training.server]
        :param learning_rate_scale: factor of its learning rate
        """

    def train_teacher(self, state: GlobalState, plan: Plan) -> GlobalState:
        """Continue training of the teacher by ``plan``; return ``state`` with its weights and proxy labels."""


@dataclass(frozen=True)
class Trained:
    """One merchant after training.

    weights: trained weights of the federation's shared student, whole or the touched rows. received: that student's
    weights in the downlink; empty without it. predict_proxy: computes the trained student's probabilities on the proxy
    set ``[proxy, classes]``. class_means: computes the means of its probabilities over the private examples of each
    class. prototypes: computes the means of its representations alike. expertise: computes how close each proxy example
    is to its private examples, in [0, 1], float32 ``[proxy]``; from a noised sum of them, if privacy covers that.
    density_ratio: computes the density of its private examples relative to that of the proxy set, at each proxy
    example, ``[proxy]``. released_labels: gives the randomized labels of its private examples. These five use private
    examples, and are not available with privacy that does not cover it. steps, learning_rate: number of steps and the
    rate of each, without the scale of a phase.
    """

    merchant: str
    examples: int
    weights: PartialWeights
    received: Weights
    predict_proxy: Callable[[], Tensor]
    class_means: Callable[[], ClassMeans]
    prototypes: Callable[[], Prototypes]
    expertise: Callable[[], Tensor]
    density_ratio: Callable[[], Tensor]
    released_labels: Callable[[], ReleasedLabels]
    steps: int = 0
    learning_rate: float = 0.0

    @cached_property
    def update(self) -> PartialWeights:
        """How far ``weights`` are from what was ``received``, in float32, computed once. UplinkRejected, naming the
        merchant, if that is not finite, or of a weight that was not received."""
        try:
            return update_of(self.weights, self.received)
        except ValueError as error:
            raise UplinkRejected(f"merchant {self.merchant}: {error}") from error


class Method(Protocol):
    """Both halves of a federated algorithm, of server and merchant.

    Checks, privacy and measured bytes rely on its declarations. ``sends`` and ``receives``: kinds of payloads in
    uplinks and downlinks; a site rejects others. ``keeps``: a merchant's state between rounds; with ``own_student``
    merchants may have different student models, otherwise each round starts from the weights in the downlink; of a
    plan's pair only the own student is kept. ``uses``: services of the server that ``merge`` calls.
    """

    sends: ClassVar[Kinds]
    receives: ClassVar[Kinds]
    keeps: ClassVar[Keeps]
    uses: ClassVar[tuple[Service, ...]]

    def broadcast(self, state: GlobalState) -> Downlink:
        """Server, at the start of a round: return the message to every merchant."""

    def private_durations(self, round: int) -> tuple[Duration, ...]:
        """Merchant, before the first round: return how long each phase on private examples lasts in ``round``, 1-based.

        Privacy is calibrated for these phases of all rounds, so they depend on the method's options alone.
        """

    def plan(self, down: Downlink) -> Plan:
        """Merchant: return the phases to train. A site rejects a plan whose phases on private examples do not have the
        ``private_durations`` of the round."""

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Merchant: return the message to the server."""

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Server, while uplinks arrive: return the next state, with ``round`` increased by one.

        ``up`` is ordered by merchant and iterated once. Accumulate sums instead of uplinks, so that memory does not
        grow with the number of merchants.
        """


def private_training(method: Method, rounds: int) -> PrivateTraining:
    """Return the private training of a merchant in a federation of ``rounds`` rounds."""
    return PrivateTraining(tuple(method.private_durations(number) for number in range(1, rounds + 1)))


@runtime_checkable
class HasControlVariate(Protocol):
    """A method with corrected gradients, whose correction depends on a merchant's state between rounds.

    The plan marks the corrected phases. The state is in the site's store and is not sent itself.
    """

    def correction(self, down: Downlink, kept: Weights | None) -> Weights:
        """Merchant, before training: return the term added to the gradient of every step; ``kept`` is None at first."""

    def keep(self, trained: Trained, down: Downlink, kept: Weights | None) -> Weights:
        """Merchant, after training: return the next state in place of ``kept``."""


@runtime_checkable
class HasIdleOptions(Protocol):
    """A method with options that have no effect beside certain values of others."""

    def idle_options(self, rounds: int) -> Mapping[str, str]:
        """Return the options that now have no effect in a federation of ``rounds``, each with the reason."""


@runtime_checkable
class NeedsMemory(Protocol):
    """A method whose merge needs much more memory than one merchant's soft labels."""

    def merge_bytes(self, proxy: int, classes: int) -> int:
        """Return the bytes that ``merge`` keeps for a proxy set of that size and so many classes."""


@runtime_checkable
class ValidatesConfig(Protocol):
    """A method that does not support every experiment."""

    def check(self, federation: FederationConfig, training: TrainerConfig, classes: int) -> None:
        """Server, before a run: raise ConfigError if the method does not support this federation, the merchants'
        training, or the number of classes."""

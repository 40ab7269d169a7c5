"""A federated method: what is sent, what is trained, and how it is merged. Nothing else.

A method is a frozen dataclass whose fields are its options. It never opens a data loader, never calls an
optimizer and never knows which runtime carries it.
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
from fed_distill.training.plan import Plan
from fed_distill.transport.messages import Downlink, Kinds, Uplink

__all__ = ["GlobalState", "Method", "Trained", "replace"]


Service = Literal["average", "tally", "distil", "distil_anew", "train_teacher"]
"""What a server can do for a method while it merges a round, by the names of the functions of ``Services``."""
Keeps = Literal["nothing", "own_student", "last_student", "control_variate"]
"""What a merchant keeps between rounds, in its site's store: nothing; a student of its own, which it trains on; the
student that it trained last, which it compares with; or what corrects its gradients (``HasControlVariate``)."""


@dataclass(frozen=True)
class GlobalState:
    """What the server knows between rounds: data alone, all of which is in the checkpoint or known before the run.

    :param round: rounds completed.
    :param weights: of the global student.
    :param teacher_labels: the teacher's probabilities on the proxy set ``[proxy, classes]``, as it is now.
    :param consensus: the merchants' merged probabilities on it, once there are any.
    :param teacher_weights: of the teacher, where a method has trained it (``Services.train_teacher``), else empty.
    :param kept: what a method itself carries from round to round beside these, by name.
    :param population: merchants of the federation, whether they take part in a round or not.
    :param rounds: how many are planned.
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
    """What the server does for a method while it merges a round. A method names those that it ``uses``."""

    def average(self, current: Weights, up: Iterable[Uplink]) -> Weights:
        """``current`` moved by what the configured aggregator makes of the merchants' updates."""

    def tally(self, votes: Tensor) -> Tensor:
        """From counts of votes ``[proxy, classes]`` to answers, int64 ``[proxy]`` and negative where there is none."""

    def distil(self, weights: Weights, plan: Plan) -> Weights:
        """The global student trained onwards from ``weights``, by phases over the proxy set."""

    def distil_anew(self, soft_labels: Tensor, temperature: float | None = None) -> Weights:
        """The global student re-initialised and distilled: with soft labels of the proxy set ``[proxy, classes]`` in
        the place of the teacher's, and all else as the server's own student was. ``temperature``: theirs throughout,
        where it is not the teacher's."""

    def train_teacher(self, state: GlobalState, plan: Plan) -> GlobalState:
        """``state`` with the teacher trained onwards by ``plan``: its weights, and its labels of the proxy set."""


@dataclass(frozen=True)
class Trained:
    """One merchant after training.

    weights: what training could change of the student that the federation shares, whole or the touched rows. received:
    that student's weights in the downlink; empty if it has none. predict_proxy: the trained student's probabilities on
    the proxy set ``[proxy, classes]``, computed when called. class_means: the means of its probabilities over the
    private examples of each class, computed when called; what sees private examples after training is refused if
    protected. steps, learning_rate: how many steps it took, and the rate of each (but for a phase's own scale).
    """

    merchant: str
    examples: int
    weights: PartialWeights
    received: Weights
    predict_proxy: Callable[[], Tensor]
    class_means: Callable[[], ClassMeans]
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
    """The two halves of a federated algorithm, side by side.

    What it declares is what checks, privacy and bytes rest on. ``sends`` and ``receives``: the kinds of payloads in its
    uplinks and downlinks; a site sends no other and reads no other. ``keeps``: what a merchant keeps between rounds;
    with ``own_student`` merchants may have students of different kinds, else each round starts from the weights in the
    downlink. Of a plan's pair only the own student is kept. ``uses``: the services that its merge asks for.
    """

    sends: ClassVar[Kinds]
    receives: ClassVar[Kinds]
    keeps: ClassVar[Keeps]
    uses: ClassVar[tuple[Service, ...]]

    def broadcast(self, state: GlobalState) -> Downlink:
        """Server, start of a round: what every merchant gets."""

    def plan(self, down: Downlink) -> Plan:
        """Merchant: the phases to train."""

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Merchant: what leaves it."""

    def merge(self, state: GlobalState, up: Iterable[Uplink], server: Services) -> GlobalState:
        """Server, while the merchants' uplinks come in: the next state, its ``round`` one higher.

        ``up`` is ordered by merchant and iterated once; keep sums of it rather than the uplinks themselves, so that
        memory does not grow with the number of merchants.
        """


@runtime_checkable
class HasControlVariate(Protocol):
    """A method whose merchants correct their gradients by something that they keep between rounds.

    Its plan says which phases are corrected. What is kept is in the site's store, and never leaves it as such.
    """

    def correction(self, down: Downlink, kept: Weights | None) -> Weights:
        """Merchant, before training: what is added to the gradient of every step; None was kept by who is new."""

    def keep(self, trained: Trained, down: Downlink, kept: Weights | None) -> Weights:
        """Merchant, after training: what it keeps for its next round, in the place of what it had ``kept``."""


@runtime_checkable
class ValidatesConfig(Protocol):
    """A method that cannot do with every experiment."""

    def check(self, federation: FederationConfig, training: TrainerConfig, classes: int) -> None:
        """Server, before a run: ConfigError if this federation, whose merchants train so, or a task of so many classes
        will not do."""

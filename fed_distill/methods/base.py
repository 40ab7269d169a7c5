"""A federated method: what is sent, what is trained, and how it is merged. Nothing else.

A method is a frozen dataclass whose fields are its options. It never opens a data loader, never calls an
optimizer and never knows which runtime carries it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from fed_distill.config import FederationConfig, TrainingConfig
from fed_distill.models.weights import PartialWeights, Weights
from fed_distill.payloads.class_means import ClassMeans
from fed_distill.training.plan import Plan
from fed_distill.transport.messages import Downlink, Kinds, Uplink

__all__ = ["GlobalState", "Method", "Trained", "replace"]


class Relearn(Protocol):
    """Teaches the global student anew."""

    def __call__(self, soft_labels: Tensor, temperature: float | None = None) -> Weights:
        """Its weights, with soft labels of the proxy set ``[proxy, classes]`` in the place of the teacher's and all
        else as the server's own student was; ``temperature``: theirs throughout, where it is not the teacher's."""


@dataclass(frozen=True)
class GlobalState:
    """What the server knows between rounds.

    round: rounds completed. weights: the global student. teacher_labels: the teacher's probabilities on the
    proxy set ``[proxy, classes]``. consensus: the merchants' merged probabilities on it, once there are any.
    server_plan: what the server itself trains after a merge (phases over the proxy set), before evaluation.
    teacher_plan: what its teacher trains before that (see ``Mutual``); what it says is then ``teacher_labels``, and
    teacher_weights are its own, empty as long as it has not learned.
    average: the configured aggregator, from the merchants' weights to the next global weights. tally: from votes
    ``[proxy, classes]`` to answers, int64 ``[proxy]`` and negative where there is none. relearn: the global
    student taught anew. kept: what a method itself carries from round to round
    beside these, by name; it is in the checkpoint, so that a resumed run goes on from it.
    population: merchants of the federation, whether they take part in a round or not. rounds: how many are planned.
    """

    round: int
    weights: Weights
    teacher_labels: Tensor
    average: Callable[[Weights, Iterable[Uplink]], Weights]
    tally: Callable[[Tensor], Tensor]
    relearn: Relearn
    consensus: Tensor | None = None
    server_plan: Plan = field(default_factory=Plan)
    teacher_plan: Plan = field(default_factory=Plan)
    teacher_weights: Weights = field(default_factory=dict)
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    population: int = 1
    rounds: int = 1


@dataclass(frozen=True)
class Trained:
    """One merchant after training.

    weights: what changed (whole, or the touched rows). predict_proxy: the trained student's probabilities on the proxy
    set ``[proxy, classes]``, computed when called. class_means: the means of its probabilities over the private
    examples of each class, computed when called; what sees private examples after training is refused if protected.
    steps, learning_rate: how many steps it took, and the rate of each (but for a phase's own scale).
    """

    merchant: str
    examples: int
    weights: PartialWeights
    predict_proxy: Callable[[], Tensor]
    class_means: Callable[[], ClassMeans]
    steps: int = 0
    learning_rate: float = 0.0


class Method(Protocol):
    """The two halves of a federated algorithm, side by side.

    ``personal`` declares that a merchant keeps its own student between rounds (in the site's store), and
    that students may differ by merchant; otherwise each round starts from ``Downlink.weights``, and a plan may ask for
    the student that the merchant had trained before. Of a plan's pair only the own student is kept. ``sends`` and
    ``receives`` declare the kinds of payloads in its uplinks and downlinks: a site sends no other, reads no other, and
    what privacy is promised rests on it. One that calls
    ``GlobalState.relearn`` may say so by ``relearns: ClassVar[bool] = True``, to have ``[distill]`` checked before it
    runs.
    """

    personal: ClassVar[bool]
    sends: ClassVar[Kinds]
    receives: ClassVar[Kinds]

    def broadcast(self, state: GlobalState) -> Downlink:
        """Server, start of a round: what every merchant gets."""

    def plan(self, down: Downlink) -> Plan:
        """Merchant: the phases to train."""

    def uplink(self, trained: Trained, down: Downlink) -> Uplink:
        """Merchant: what leaves it."""

    def merge(self, state: GlobalState, up: Iterable[Uplink]) -> GlobalState:
        """Server, while the merchants' uplinks come in: the next state, its ``round`` one higher.

        ``up`` is ordered by merchant and iterated once; keep sums of it rather than the uplinks themselves, so that
        memory does not grow with the number of merchants.
        """


@runtime_checkable
class Correcting(Protocol):
    """What a method has besides, whose merchants correct their gradients by something that they keep between rounds.

    Its plan says which phases are corrected. What is kept is in the site's store, and never leaves it as such.
    """

    def correction(self, down: Downlink, kept: Weights | None) -> Weights:
        """Merchant, before training: what is added to the gradient of every step; None was kept by who is new."""

    def keep(self, trained: Trained, down: Downlink, kept: Weights | None) -> Weights:
        """Merchant, after training: what it keeps for its next round, in the place of what it had ``kept``."""


@runtime_checkable
class Mutual(Protocol):
    """What a method has besides, in whose merges the server's teacher is to learn from the merchants."""

    @property
    def teacher_epochs(self) -> float:
        """Epochs of the teacher over the proxy set after each merge."""


@runtime_checkable
class Particular(Protocol):
    """What a method has besides, that cannot do with every experiment."""

    def check(self, federation: FederationConfig, training: TrainingConfig, classes: int) -> None:
        """Server, before a run: ConfigError if this federation, whose merchants train so, or a task of so many classes
        will not do."""
